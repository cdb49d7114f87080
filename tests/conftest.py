# SPDX-License-Identifier: Apache-2.0
"""For all tests."""

import signal

import hypothesis

# A deadline would measure the machine, not the code.
hypothesis.settings.register_profile("minguest", deadline=None)
hypothesis.settings.load_profile("minguest")

# nohup, and a shell that starts a job in the background, let a process ignore these, and it hands that on to the
# programs that tests start: their own answer to a signal is what some tests are about.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
