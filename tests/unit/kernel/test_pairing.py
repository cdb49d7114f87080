# SPDX-License-Identifier: Apache-2.0
"""A config of another kernel is seen by its version, its compiler and what the image says of itself."""

from pathlib import Path

import msgspec
import pytest

from minguest.kernel import binary, pairing
from minguest.kernel.image import Image

DEBIAN = "6.1.0-50-cloud-amd64 (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-07-02)"
GCC = "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
BZIMAGE = binary.BzImage(
    protocol="2.15", version=DEBIAN, efi_stub=True, xloadflags=("kernel-64",), relocatable=True, init_size=1, size=1,
    handover_offset=0, pref_address=0, alignment=1, min_alignment=1, compression="lz4",
)  # fmt: skip
IMAGE = Image(
    kind="bzImage", path="vmlinuz", size=1, wrapped_in="", version=DEBIAN, bzimage=BZIMAGE, compression="lz4",
    opened=True, closed_because="", config=None, strings=frozenset(), compiler=f"{GCC}, GNU ld (GNU Binutils) 2.40",
)  # fmt: skip
CONFIG = {
    "SMP": "y", "LOCALVERSION": '""', "CC_VERSION_TEXT": f'"{GCC}"', "EFI_STUB": "y", "KERNEL_LZ4": "y",
}  # fmt: skip


@pytest.mark.parametrize(
    ("release", "version", "differs"),
    [
        ("6.1.0-50-cloud-amd64", "6.1.176", False),  # Debian, Ubuntu
        ("6.12.117+deb12-cloud-amd64", "6.12.117", False),
        ("6.5.6-300.fc39.x86_64", "6.5.6", False),
        ("5.14.0-362.8.1.el9_3.x86_64", "5.14.0", False),
        ("5.15.153.1-microsoft-standard-WSL2", "5.15.153.1", False),
        ("6.13.0-rc3+", "6.13.0-rc3", False),
        ("6.1.0-50-cloud-amd64", None, False),
        ("6.1.0-50-cloud-amd64", "6.12.117", True),
        ("6.12.94", "6.12.93", True),
        ("6.12.94", "6.12.0", True),
        ("16.1.0", "6.1.0", True),
    ],
)
def test_the_version(release: str, version: str | None, differs: bool) -> None:
    image = msgspec.structs.replace(IMAGE, version=DEBIAN.replace("6.1.0-50-cloud-amd64", release))
    said = f"the image is linux {release}, the config is of linux {version}" if differs else ""
    assert pairing.mismatch(image, CONFIG, version) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"LOCALVERSION": '"-50"'}, ""),
        (
            {"LOCALVERSION": '"-kata"'},
            "the image is linux 6.1.0-50-cloud-amd64, the config has CONFIG_LOCALVERSION='-kata'",
        ),
        ({"CC_VERSION_TEXT": '"x86_64-linux-gnu-gcc-12 (GCC) 12.2.0"'}, ""),
        (
            {"CC_VERSION_TEXT": '"gcc (GCC) 13.1.0"'},
            f"the image was built with {GCC}, the config is of gcc (GCC) 13.1.0",
        ),
        ({"SMP": "n"}, "the image's version has SMP, the config has CONFIG_SMP=n"),
        ({"PREEMPT_RT": "y"}, "the image's version has no PREEMPT_RT, the config has CONFIG_PREEMPT_RT=y"),
        ({"EFI_STUB": "n"}, "the image has an EFI stub, the config has CONFIG_EFI_STUB=n"),
        ({"KERNEL_LZ4": "n", "KERNEL_XZ": "y"}, "the image is packed with lz4, the config says xz"),
    ],
)
def test_what_the_image_says_of_itself(change: dict[str, str], said: str) -> None:
    assert pairing.mismatch(IMAGE, {**CONFIG, **change}, "6.1.176") == said


def test_what_the_image_does_not_say_is_not_compared() -> None:
    silent = msgspec.structs.replace(IMAGE, kind="vmlinux", version=None, bzimage=None, compiler=None)
    assert pairing.mismatch(silent, {"CC_VERSION_TEXT": '"gcc 13.1.0"', "LOCALVERSION": '"-x"'}, "6.1.176") == ""


def test_the_config_beside_an_image(tmp_path: Path) -> None:
    modules = tmp_path / "lib/modules/6.1.0-50"
    modules.mkdir(parents=True)
    for name in ("config-6.1.0-50", "lib/modules/6.1.0-50/config", "config"):
        (tmp_path / name).touch()
    for name, beside in (
        ("vmlinuz-6.1.0-50", "config-6.1.0-50"),
        ("vmlinux-6.1.0-50", "config-6.1.0-50"),
        ("vmlinuz-6.1.0-51", None),
        ("lib/modules/6.1.0-50/vmlinuz", "lib/modules/6.1.0-50/config"),
        ("vmlinuz", None),
        ("bzImage", None),
    ):
        assert pairing.beside(tmp_path / name) == (tmp_path / beside if beside else None)
