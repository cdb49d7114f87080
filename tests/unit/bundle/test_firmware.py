# SPDX-License-Identifier: Apache-2.0
"""OVMF comes out of a Debian package, and must be a firmware volume."""

import io
import tarfile
from pathlib import Path

import pytest

from minguest.bundle import firmware
from minguest.model import Source
from minguest.util.errors import UserError

SOURCE = Source("2025.02", ("u",), "0" * 64, "BSD-2-Clause-Patent")
VOLUME = b"\0" * 40 + b"_FVH" + b"code"


def package(path: Path, contents: dict[str, bytes]) -> Path:
    """A .deb as deb(5) describes it: an ar archive of three members."""

    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    out = b"!<arch>\n"
    control = b"Package: ovmf\nVersion: 2025.02\nArchitecture: all\n"
    for name, data in {
        "debian-binary": b"2.0\n", "control.tar.gz": tar({"./control": control}), "data.tar.gz": tar(contents),
    }.items():  # fmt: skip
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(out)
    return path


def test_both_halves_come_out(tmp_path: Path) -> None:
    code, variables = "./usr/share/OVMF/OVMF_CODE_4M.fd", "./usr/share/OVMF/OVMF_VARS_4M.fd"
    deb = package(tmp_path / "a.deb", {code: VOLUME, variables: VOLUME + b"v"})
    firmware.unpack(deb, SOURCE, tmp_path / "out")
    assert (tmp_path / "out/OVMF_CODE.fd").read_bytes() == VOLUME
    assert (tmp_path / "out/OVMF_VARS.fd").read_bytes() == VOLUME + b"v"
    package(deb, {code: b"no volume" * 9, variables: VOLUME})
    with pytest.raises(UserError, match=r"OVMF_CODE_4M\.fd is not a UEFI firmware volume"):
        firmware.unpack(deb, SOURCE, tmp_path / "out")
    assert (tmp_path / "out/OVMF_CODE.fd").read_bytes() == VOLUME
