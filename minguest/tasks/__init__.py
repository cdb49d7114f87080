# SPDX-License-Identifier: Apache-2.0
"""The task graph. The only package that knows doit."""
