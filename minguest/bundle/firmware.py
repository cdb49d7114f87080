# SPDX-License-Identifier: Apache-2.0
"""OVMF: code and variables from Debian's package, checked to be firmware volumes."""

from pathlib import Path

import msgspec

from minguest.model import Source
from minguest.util import archive, files
from minguest.util.errors import UserError

# The 4 MiB build without Secure Boot: it starts a kernel without a signature. ovmf's README.Debian lists the builds.
CODE = "OVMF_CODE_4M.fd"
VARS = "OVMF_VARS_4M.fd"
FOLDER = "./usr/share/OVMF"


class Firmware(msgspec.Struct, frozen=True):
    """OVMF's version, and the hashes of code and variables."""

    version: str
    code_sha256: str
    vars_sha256: str


def unpack(package: Path, source: Source, target: Path) -> Firmware:
    """Write OVMF_CODE.fd, OVMF_VARS.fd and firmware.json into the folder `target`."""
    members = archive.deb_member(package, [f"{FOLDER}/{CODE}", f"{FOLDER}/{VARS}"])
    code, variables = members[f"{FOLDER}/{CODE}"], members[f"{FOLDER}/{VARS}"]
    with files.replacing_tree(target) as folder:
        facts = Firmware(source.version, *write(folder, code, variables, str(package)))
        (folder / "firmware.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
    return facts


def write(folder: Path, code: bytes, variables: bytes, where: str) -> tuple[str, str]:
    """Write OVMF_CODE.fd and OVMF_VARS.fd into `folder`; returns their SHA-256. UserError if one is no volume."""
    for name, image in ((CODE, code), (VARS, variables)):
        # UEFI Platform Initialization specification, volume 3, EFI_FIRMWARE_VOLUME_HEADER: "_FVH" at 40.
        if image[40:44] != b"_FVH":
            raise UserError(f"{where}: {name} is not a UEFI firmware volume")
    (folder / "OVMF_CODE.fd").write_bytes(code)
    (folder / "OVMF_VARS.fd").write_bytes(variables)
    return files.sha256(folder / "OVMF_CODE.fd"), files.sha256(folder / "OVMF_VARS.fd")
