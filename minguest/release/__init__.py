# SPDX-License-Identifier: Apache-2.0
"""Make, sign, describe and verify a release."""
