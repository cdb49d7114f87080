# SPDX-License-Identifier: Apache-2.0
"""Jinja2 templates of configs/templates/."""

import re
import shlex
from pathlib import Path
from typing import Any

from minguest.util.errors import UserError


def render(template: Path, **facts: Any) -> str:
    """A template's text; an unknown name in it is an error. In `*.html.j2` and `*.xml.j2`, all values are escaped."""
    import jinja2  # noqa: PLC0415 - slow, and few commands render

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=template.name.endswith((".html.j2", ".xml.j2")),
    )
    environment.filters["cell"] = cell
    environment.filters["quote"] = shlex.quote
    try:
        return environment.get_template(template.name).render(**facts)
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None)
        raise UserError(f"{template}{f':{line}' if line else ''}: {error}") from error


def cell(text: str) -> str:
    """Text for a cell of a Markdown table: markup and HTML escaped, on one line."""
    escaped = re.sub(r"([\\`*_\[\]|<>#~])", r"\\\1", " ".join(text.split()))
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")
