# SPDX-License-Identifier: Apache-2.0
"""Out to a folder, OCI registry, GitHub or S3, and in again."""
