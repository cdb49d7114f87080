# SPDX-License-Identifier: Apache-2.0
"""Small tools that know nothing about guests."""
