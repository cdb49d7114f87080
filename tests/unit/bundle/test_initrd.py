# SPDX-License-Identifier: Apache-2.0
"""The initrd comes from a template and overlays; the same input gives the same bytes."""

import gzip
import subprocess
from pathlib import Path

import pytest

from minguest.bundle import initrd
from minguest.util.errors import UserError
from tests import ROOT

TEMPLATE = ROOT / "configs/templates/initrd.list.j2"


def names(image: Path) -> list[str]:
    data = gzip.decompress(image.read_bytes())
    return (
        subprocess.run(["cpio", "-it", "--quiet"], input=data, capture_output=True, check=True).stdout.decode().split()
    )


def test_the_projects_list_and_an_overlay(tmp_path: Path) -> None:
    (tmp_path / "a b,c'd\"e").write_bytes(b"initd")  # quoting holds
    (tmp_path / "over/etc").mkdir(parents=True)
    (tmp_path / "over/etc/motd").write_text("hello")
    for name in ("1", "2"):
        initrd.build(TEMPLATE, tmp_path / "a b,c'd\"e", [tmp_path / "over"], tmp_path / name)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    found = names(tmp_path / "1")
    assert {"init", "dev/console", "proc", "sys", "run", "tmp", "etc/motd"} <= set(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [("file /init {{ initdd }} 0755 0 0", "'initdd' is undefined"), ("{% if %}", r"list:1: ")],
)
def test_a_wrong_template_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(UserError, match=message):
        initrd.build(tmp_path / "list", tmp_path / "x", [], tmp_path / "out")
    assert not (tmp_path / "out").exists()
