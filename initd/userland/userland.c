/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest's programs ask of the kernel, one call each: a line on the
 * console says whether it is there. doit certify starts it as a root's init,
 * and sees what is missing without an option.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Linux include/uapi/linux/magic.h and futex.h, which musl does not have. */
#define TMPFS_MAGIC 0x01021994
#define FUTEX_WAKE 1

/* `result`: not negative if the call worked; else errno says why it did not. */
static void say(const char *name, long result)
{
	printf("userland: %s: %s\n", name, result < 0 ? strerror(errno) : "ok");
}

static void say_if(const char *name, int there)
{
	printf("userland: %s: %s\n", name, there ? "ok" : "no");
}

/* The first line of a file, or "". */
static const char *line_of(const char *path)
{
	static char text[256];
	FILE *file = fopen(path, "r");

	text[0] = 0;
	if (file) {
		if (!fgets(text, sizeof(text), file))
			text[0] = 0;
		fclose(file);
	}
	return text;
}

/* Whether a file, which may have many lines, has this text. */
static int has(const char *path, const char *text)
{
	char line[512];
	FILE *file = fopen(path, "r");
	int there = 0;

	while (file && !there && fgets(line, sizeof(line), file))
		there = strstr(line, text) != 0;
	if (file)
		fclose(file);
	return there;
}

/* Whether a path of this pattern is there, and with a `size` one of so many bytes. */
static int any(const char *pattern, off_t size)
{
	glob_t found;
	struct stat about;
	int there = 0;

	if (glob(pattern, 0, 0, &found))
		return 0;
	for (size_t i = 0; i < found.gl_pathc && !there; i++)
		there = !size || (!stat(found.gl_pathv[i], &about) && about.st_size == size);
	globfree(&found);
	return there;
}

static void sockets(void)
{
	say("unix socket", socket(AF_UNIX, SOCK_STREAM, 0));
	say("TCP socket", socket(AF_INET, SOCK_STREAM, 0));
	say("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
}

static void waiting(void)
{
	int word = 0;
	sigset_t none;
	timer_t timer;
	struct sigevent event = { .sigev_notify = SIGEV_NONE };
	struct itimerval off = { { 0, 0 }, { 0, 0 } };
	struct timespec resolution = { 0, 0 };

	sigemptyset(&none);
	say("futex", syscall(SYS_futex, &word, FUTEX_WAKE, 1, 0, 0, 0));
	say("epoll", epoll_create1(0));
	say("signalfd", signalfd(-1, &none, 0));
	say("timerfd", timerfd_create(CLOCK_MONOTONIC, 0));
	say("eventfd", eventfd(0, 0));
	say("inotify", inotify_init1(0));
	say("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer));
	say("setitimer", setitimer(ITIMER_REAL, &off, 0));
	/* They come only when the kernel's watchdog has compared the TSC with another clock, each half second. */
	for (int tries = 0; tries < 500 && resolution.tv_nsec != 1; tries++) {
		if (tries)
			usleep(10000);
		clock_getres(CLOCK_MONOTONIC, &resolution);
	}
	say_if("timers of 1 ns", resolution.tv_sec == 0 && resolution.tv_nsec == 1);
}

/* Interrupts of all CPUs' local timers. */
static unsigned long timer_interrupts(void)
{
	char line[4096], *at;
	unsigned long sum = 0;
	FILE *file = fopen("/proc/interrupts", "r");

	while (file && fgets(line, sizeof(line), file)) {
		at = strstr(line, "LOC:");
		if (!at)
			continue;
		at += 4;
		for (char *end; ; at = end) {
			unsigned long count = strtoul(at, &end, 10);

			if (end == at)
				break;
			sum += count;
		}
	}
	if (file)
		fclose(file);
	return sum;
}

/* A CPU with nothing to do has no tick: with one, it has 250 a second. */
static void idle(void)
{
	unsigned long before = timer_interrupts();

	usleep(1000000);
	say_if("idle without ticks", before && timer_interrupts() - before < 125UL * sysconf(_SC_NPROCESSORS_ONLN));
}

static void cards(void)
{
	say_if("message-signalled interrupts", any("/sys/bus/pci/devices/*/msi_irqs/*", 0));
	say_if("extended config space", any("/sys/bus/pci/devices/*/config", 4096));
	/* A prefetchable BAR has this file only with PAT. */
	say_if("write-combined BAR", any("/sys/bus/pci/devices/*/resource*_wc", 0));
	say("/proc/mtrr", open("/proc/mtrr", O_RDONLY));
	say("/dev/vga_arbiter", open("/dev/vga_arbiter", O_RDWR));
	/* Power management of q35's chipset, which is at ports without a BAR (drivers/pci/quirks.c). */
	say_if("ports of the chipset", has("/proc/ioports", " : 0000:00:1f.0"));
	say_if("native hot-plug", any("/sys/bus/pci_express/drivers/pciehp/*:pcie*", 0));
	say_if("slots of cards", any("/sys/bus/pci/slots/*", 0));
	say_if("clock of ACPI", has("/sys/devices/system/clocksource/clocksource0/available_clocksource", "acpi_pm"));
}

/* Whether a file takes this text. */
static int takes(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	int taken = write(file, text, strlen(text)) == (ssize_t)strlen(text);

	close(file);
	return taken;
}

/* Whether a block of memory can be given back, as before its DIMM is unplugged; most hold pages that cannot move. */
static int gives_back(void)
{
	glob_t found;
	int given = 0;

	if (glob("/sys/devices/system/memory/memory*/state", 0, 0, &found))
		return 0;
	for (size_t i = found.gl_pathc; i-- && !given; ) {
		given = takes(found.gl_pathv[i], "offline");
		if (given)
			takes(found.gl_pathv[i], "online");
	}
	globfree(&found);
	return given;
}

static void memory(void)
{
	void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	say("madvise", madvise(page, 4096, MADV_DONTNEED));
	say("memfd_create", syscall(SYS_memfd_create, "x", 0));
	say_if("memory offline", gives_back());
}

/* In a child, whose exit status is errno. */
static void as_user(void)
{
	int status = 0;
	pid_t child = fork();

	if (!child)
		_exit(setgid(1000) || setuid(1000) || getuid() != 1000 ? errno : 0);
	waitpid(child, &status, 0);
	errno = WEXITSTATUS(status);
	say("setuid", status ? -1 : 0);
}

static void script(void)
{
	int status = 0, file = open("/tmp/script", O_WRONLY | O_CREAT, 0755);
	pid_t child;

	dprintf(file, "#!/sbin/init\n");
	close(file);
	child = fork();
	if (!child) {
		execl("/tmp/script", "/tmp/script", (char *)0);
		_exit(errno);
	}
	waitpid(child, &status, 0);
	errno = WEXITSTATUS(status);
	say("script", status ? -1 : 0);
}

static void file_systems(void)
{
	struct statfs about;
	int file;

	mkdir("/tmp", 0755);
	say("tmpfs", mount("tmpfs", "/tmp", "tmpfs", 0, "size=1M"));
	memset(&about, 0, sizeof(about));
	statfs("/tmp", &about);
	/* Without SHMEM it is a ramfs. */
	say_if("tmpfs with a limit", about.f_type == TMPFS_MAGIC && about.f_blocks);
	file = open("/tmp/lock", O_RDWR | O_CREAT, 0644);
	say("flock", flock(file, LOCK_EX | LOCK_NB));
	say("/proc/config.gz", open("/proc/config.gz", O_RDONLY));
	say("/proc/sys", open("/proc/sys/kernel/osrelease", O_RDONLY));
	say("/proc/kallsyms", open("/proc/kallsyms", O_RDONLY));
	say("/dev/kmsg", open("/dev/kmsg", O_RDONLY | O_NONBLOCK));
	say_if("times of messages", line_of("/sys/module/printk/parameters/time")[0] == 'Y');
	say_if("SMBIOS", strstr(line_of("/sys/class/dmi/id/sys_vendor"), "QEMU") != 0);
	say("pseudo-terminal", open("/dev/ptmx", O_RDWR));
	say("/dev/hwrng", open("/dev/hwrng", O_RDONLY));
	say_if("virtio's random numbers", strstr(line_of("/sys/class/misc/hw_random/rng_current"), "virtio") != 0);
	/* Sectors: a kernel that does not know GPT takes the protective MBR's one partition, which is larger. */
	say_if("partition of a GPT", atol(line_of("/sys/class/block/vdb1/size")) == 2048);
	say_if("partition of an MBR", atol(line_of("/sys/class/block/vdc1/size")) == 2048);
	say("/dev/hvc0", open("/dev/hvc0", O_RDWR | O_NONBLOCK));
	say("loader of firmware", access("/sys/module/firmware_class", F_OK));
}

static void modules(void)
{
	/* A module of no name, and a file that is none: the calls are there. */
	long result = syscall(SYS_delete_module, "none", O_NONBLOCK);

	say("delete_module", result < 0 && errno == ENOENT ? 0 : result);
	result = syscall(SYS_finit_module, -1, "", 0);
	say("finit_module", result < 0 && errno == EBADF ? 0 : result);
}

/* KASLR_FLAG in loadflags of the x86 boot protocol. The address of the kernel tells less: one boot in
 * 490 draws the one that it has without KASLR. */
static int randomized(void)
{
	unsigned char flags = 0;
	int file = open("/sys/kernel/boot_params/data", O_RDONLY);

	if (pread(file, &flags, 1, 0x211) != 1)
		flags = 0;
	close(file);
	return (flags & 2) != 0;
}

static void protection(void)
{
	const char *spectre;

	say_if("KASLR", randomized());
	spectre = line_of("/sys/devices/system/cpu/vulnerabilities/spectre_v1");
	say_if("mitigations", strstr(spectre, "Mitigation") != 0);
}

int main(void)
{
	/* Of the script. */
	if (getpid() != 1)
		return 0;
	setvbuf(stdout, 0, _IOLBF, 0);
	mount("proc", "/proc", "proc", 0, 0);
	mount("sysfs", "/sys", "sysfs", 0, 0);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	file_systems();
	sockets();
	waiting();
	memory();
	as_user();
	script();
	modules();
	protection();
	cards();
	idle();
	say("network card", access("/sys/class/net/eth0", F_OK));
	printf("userland: end\n");
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}
