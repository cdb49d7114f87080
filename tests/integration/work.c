/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program of test_pid1.py's guests. The kernel passes "work=NAME" of its
 * command line on, so the name of what to do is in the environment.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void print(const char *text)
{
	dprintf(1, "work: %s\n", text);
}

static void wait_for_the_end(void)
{
	for (;;)
		pause();
}

/* Programs that have ended, and whose parent is initd. */
static int zombies(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	char path[300], state;
	int count = 0, parent;
	FILE *f;

	while ((entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%*d (%*[^)]) %c %d", &state, &parent) == 2 && state == 'Z' && parent == 1)
			count++;
		fclose(f);
	}
	closedir(proc);
	return count;
}

/* A child that ends at once, and whose parent has ended before. */
static void orphan(void)
{
	pid_t pid = fork();

	if (!pid) {
		if (!fork())
			usleep(1000);
		_exit(0);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

static void storm(void)
{
	int i, limit;

	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "storm\n");
	limit = open("/proc/sys/kernel/threads-max", O_WRONLY | O_CLOEXEC);
	write(limit, "1000", 4);	/* else an emulated guest takes a minute to have them all */
	close(limit);
	for (i = 0; i < 500; i++)
		orphan();
	for (i = 0; i < 100 && zombies(); i++)
		usleep(50000);
	dprintf(1, "work: %d zombies\n", zombies());
	for (i = 0; i < 4; i++)
		if (!fork())
			for (;;)
				orphan();
	/* Every child forks as well, until the kernel has no more for anybody. */
	while (fork() >= 0)
		;
	if (errno == EAGAIN && getpid() < 100)
		print("no more programs");
	for (;;)
		if (fork() < 0)
			usleep(100000);
}

static void on_term(int number)
{
	(void)number;
	tcflow(1, TCOON);
	signal(SIGTERM, SIG_IGN);
}

/* As ^S does it. The kernel's buffer of a serial port has 4 KiB. */
static void deaf_console(void)
{
	char line[100];

	signal(SIGTERM, on_term);
	memset(line, '.', sizeof(line));
	fcntl(1, F_SETFL, O_RDWR | O_NONBLOCK);
	tcflow(1, TCOOFF);
	while (write(1, line, sizeof(line)) > 0)
		;
	kill(1, SIGUSR2);
	/* The order that comes second changes nothing. */
	sleep(1);
	kill(1, SIGINT);
	wait_for_the_end();
}

static void hung_up_console(void)
{
	signal(SIGHUP, SIG_IGN);
	vhangup();
	kill(1, SIGUSR2);
	wait_for_the_end();
}

static void fill(const char *path)
{
	static char block[1 << 16];
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);

	while (write(fd, block, sizeof(block)) > 0)
		;
	while (write(fd, block, 1) > 0)
		;
	dprintf(1, "work: %s: %s\n", path, strerror(errno));
	close(fd);
}

/* To the root, which vanishes meanwhile. */
static void write_without_end(void)
{
	int fd = open("/file", O_WRONLY | O_CREAT, 0644);

	signal(SIGTERM, SIG_IGN);
	print("writing");
	while (write(fd, "x", 1) == 1 && !fsync(fd))
		usleep(10000);
	print(strerror(errno));
	wait_for_the_end();
}

static void eat(void)
{
	char *block;
	pid_t pid;

	signal(SIGTERM, SIG_IGN);
	for (;;) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_NAME, "eater");
			for (;;) {
				block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE,
					     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
				if (block != MAP_FAILED)
					memset(block, 1, 1 << 20);
			}
		}
		waitpid(pid, NULL, 0);
	}
}

int main(void)
{
	const char *work = getenv("work");

	if (!work)
		work = "nothing";
	if (getpid() == 1)
		print("the root's init");
	if (!strcmp(work, "storm"))
		storm();
	if (!strcmp(work, "deaf-console"))
		deaf_console();
	if (!strcmp(work, "hung-up-console"))
		hung_up_console();
	if (!strcmp(work, "fill")) {
		fill("/run/initd/report.jsonl");
		fill("/tmp/filler");
		fill("/filler");
	}
	if (!strcmp(work, "write"))
		write_without_end();
	if (!strcmp(work, "nothing"))
		wait_for_the_end();
	if (!strcmp(work, "eat"))
		eat();
	return 3;
}
