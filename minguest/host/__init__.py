# SPDX-License-Identifier: Apache-2.0
"""The host's side of VFIO: what is there, what is missing, binding and unbinding."""
