/* SPDX-License-Identifier: Apache-2.0 */
/* Not as PID 1: an ordinary program that mounts nothing and changes nothing. */
#include <stdio.h>
#include <string.h>

#include "initd.h"

static int print_report(const struct moment *started)
{
	struct json report = { 0 };

	report_all(&report, started, NULL, NULL);
	if (fwrite(report.text, 1, report.len, stdout) != report.len || fflush(stdout))
		die("write");
	json_free(&report);
	return 0;
}

int as_program(int argc, char **argv, const struct moment *started)
{
	static const char usage[] =
		"usage: initd --report | --help | --version\n"
		"\n"
		"As PID 1 initd starts a guest. As a program it only looks:\n"
		"  --report   print the report of this machine, as JSON lines\n"
		"\n"
		"Options on the guest kernel's command line:\n"
		"  initd.report=DEVICE   where the report goes, e.g. /dev/ttyS3\n"
		"  initd.then=WHAT       then: init (the default with a root), wait\n"
		"                        (the default without), shell, poweroff,\n"
		"                        reboot, halt, or a program's /PATH\n"
		"  initd.root=WHAT       the root: /dev/vda1, LABEL=, UUID=, PARTUUID=,\n"
		"                        PARTLABEL=, SERIAL=, 9p:TAG or virtiofs:TAG;\n"
		"                        then its init starts as PID 1, or a program or\n"
		"                        shell in it\n"
		"  initd.init=/PATH      that init (/sbin/init)\n"
		"  initd.root-seconds=S  how long to wait for the root (1 to 600; 30)\n"
		"  initd.onfail=WHAT     without the root: poweroff (the default), shell,\n"
		"                        reboot, halt or wait\n"
		"  initd.report-after=root  look for the root before the report\n"
		"  initd.report-log=kernel  the kernel's log after the report\n"
		"  initd.share=TAG       a program's /run/share: a 9p share, writable\n"
		"Kernel modules, loaded before the report, each with what it needs:\n"
		"  initd.modules=NAME,...      these (a name, or a .ko's /PATH); those\n"
		"                              that a device asks for load by themselves\n"
		"  initd.drivers=DISK          from a disk, named as a root is\n"
		"  initd.modules-seconds=S     each has so long (1 to 600; 30)\n"
		"Before the report, wait until as much is in use:\n"
		"  initd.wait-cpus=N         so many CPUs\n"
		"  initd.wait-cpus-left=N    then no more CPUs than that\n"
		"  initd.wait-memory=BYTES   so much memory, in whole blocks\n"
		"  initd.wait-seconds=S      but no longer than that (1 to 600; 10)\n";

	if (argc == 2 && !strcmp(argv[1], "--report"))
		return print_report(started);
	if (argc == 2 && !strcmp(argv[1], "--version"))
		return puts("initd " INITD_VERSION) < 0;
	if (argc == 2 && !strcmp(argv[1], "--help"))
		return fputs(usage, stdout) < 0;
	fputs(usage, stderr);
	return 2;
}
