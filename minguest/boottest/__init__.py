# SPDX-License-Identifier: Apache-2.0
"""Boot a bundle and judge it; the fault matrix; the rehearsal."""
