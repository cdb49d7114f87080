/* SPDX-License-Identifier: Apache-2.0 */
/* A step that may hang, such as a mount of a dead disk: a child does it, for so long and no longer. */
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "initd.h"

/*
 * The step's result, which is an exit status; -1 if it is not done in so many
 * seconds, or `give_up`, which may be NULL, returns true before. A child that
 * hangs in the kernel cannot be killed, and stays.
 */
int within(long long seconds, bool (*give_up)(void), int (*step)(void *), void *argument)
{
	long long until = uptime_us() + seconds * 1000000;
	struct timespec pause = { .tv_nsec = 10000000 };
	sigset_t child;
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(step(argument));
	if (pid < 0)
		return step(argument);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	while (waitpid(pid, &status, WNOHANG) != pid) {
		if (uptime_us() > until || (give_up && give_up())) {
			kill(pid, SIGKILL);
			return -1;
		}
		sigtimedwait(&child, NULL, &pause);	/* SIGCHLD is blocked */
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
