# SPDX-License-Identifier: Apache-2.0
"""The initrd: a list rendered from a template, overlays on top, newc, gzip."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from minguest import archive, cpio, files
from minguest.errors import UserError


def render(template: Path, **facts: str) -> str:
    """A Jinja2 template's text; an unknown name in it is an error, never an empty string."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    try:
        return environment.get_template(template.name).render(**facts)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"{template}{f':{line}' if line else ''}: {error}") from error


def build(template: Path, initd: Path, overlays: Sequence[Path], target: Path) -> None:
    """Write the initrd: the template's list with `initd` as its file of that name, then each overlay, later wins."""
    base = cpio.parse_list(render(template, initd=str(initd)), str(template))
    layers = [cpio.tree(overlay) for overlay in overlays]
    files.write(target, archive.gzip_bytes(cpio.archive(cpio.merge(base, *layers))))
