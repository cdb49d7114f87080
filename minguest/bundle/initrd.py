# SPDX-License-Identifier: Apache-2.0
"""The initrd: a list rendered from a template, overlays on top, newc, gzip."""

from collections.abc import Sequence
from pathlib import Path

from minguest.bundle import cpio
from minguest.util import archive, files, templates


def build(template: Path, initd: Path, overlays: Sequence[Path], target: Path) -> None:
    """Write the initrd: the template's list with `initd` as its file of that name, then each overlay, later wins."""
    base = cpio.parse_list(templates.render(template, initd=str(initd)), str(template))
    layers = [cpio.tree(overlay) for overlay in overlays]
    files.write(target, archive.gzip_bytes(cpio.archive(cpio.merge(base, *layers))))
