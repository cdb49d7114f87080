# SPDX-License-Identifier: Apache-2.0
"""What ships: initrd, firmware, manifest; comparing and reproducing it."""
