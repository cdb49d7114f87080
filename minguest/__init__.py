# SPDX-License-Identifier: Apache-2.0
"""minguest: the smallest guest that a passed-through GPU works in, built and proven to boot."""

VERSION = "0.1.0"
