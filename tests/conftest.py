# SPDX-License-Identifier: Apache-2.0
"""For all tests."""

import hypothesis

# A deadline would measure the machine, not the code.
hypothesis.settings.register_profile("minguest", deadline=None)
hypothesis.settings.load_profile("minguest")
