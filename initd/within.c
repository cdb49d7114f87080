/* SPDX-License-Identifier: Apache-2.0 */
/* A step that may hang, such as a mount of a dead disk: a child does it, for so long and no longer. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

/*
 * Whether the child ended, with its status as in wait(2). False after so many
 * seconds, or if `give_up`, which may be NULL, returns true before: then it is
 * killed, but a child that hangs in the kernel stays.
 */
bool child_ended(pid_t pid, int *status, long long seconds, bool (*give_up)(void))
{
	long long until = uptime_us() + seconds * 1000000;
	struct timespec pause = { .tv_nsec = 10000000 };
	sigset_t child;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	while (waitpid(pid, status, WNOHANG) != pid) {
		if (uptime_us() > until || (give_up && give_up())) {
			kill(pid, SIGKILL);
			return false;
		}
		sigtimedwait(&child, NULL, &pause);	/* SIGCHLD is blocked */
	}
	return true;
}

/* fork() fails while there is no memory or no free PID: a killed program may still hold both. */
static pid_t fork_within(long long seconds, bool (*give_up)(void))
{
	long long until = uptime_us() + seconds * 1000000;
	struct timespec pause = { .tv_nsec = 10000000 };
	pid_t pid;

	while ((pid = fork()) < 0 && uptime_us() < until && !(give_up && give_up()))
		nanosleep(&pause, NULL);
	if (pid < 0)
		say("fork: %s", strerror(errno));
	return pid;
}

/* The step's result, which is an exit status; -1 if it had none in time. */
int within(long long seconds, bool (*give_up)(void), int (*step)(void *), void *argument)
{
	pid_t pid = fork_within(seconds, give_up);
	int status;

	if (!pid)
		_exit(step(argument));
	if (pid < 0 || !child_ended(pid, &status, seconds, give_up))
		return -1;
	if (!WIFEXITED(status)) {	/* the kernel killed it, for want of memory */
		say("a child of initd was killed by signal %d", WTERMSIG(status));
		return -1;
	}
	return WEXITSTATUS(status);
}
