# SPDX-License-Identifier: Apache-2.0
"""Whether a config and an image are of the same kernel; and the config that a distribution puts beside an image."""

import re
from collections.abc import Mapping
from pathlib import Path

from minguest.kernel import kconfig, vmlinux
from minguest.kernel.image import Image

# A release: 6.1.0-47-cloud-amd64, 6.12-rc3, 5.15.153.1-microsoft.
RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")
COMPILER_VERSION = re.compile(r"\d+\.\d+\.\d+")
# What a distribution calls its image; the rest of the name is that of its config.
NAMES = ("vmlinuz-", "vmlinux-", "bzImage-", "kernel-")


def beside(image: Path) -> Path | None:
    """The config beside an image: /boot/config-X of /boot/vmlinuz-X, /lib/modules/X/config of …/X/vmlinuz; or None."""
    name = next((image.name.removeprefix(each) for each in NAMES if image.name.startswith(each)), None)
    if name:
        path = image.with_name(f"config-{name}")
    elif image.name in ("vmlinuz", "vmlinux") and RELEASE.match(image.parent.name):
        path = image.with_name("config")
    else:
        return None
    return path if path.is_file() else None


def mismatch(image: Image, config: Mapping[str, str], version: str | None) -> str:
    """What shows that a config, whose title line has `version`, is of another kernel than the image; "" for nothing.

    Only what the image says is compared. A config says nothing of what a distribution adds to a release.
    """
    release = (image.version or "").split(" ")[0]
    for differs in (
        _version(release, version),
        _local_version(image, release, kconfig.string(config.get("LOCALVERSION", '""'))),
        _compiler(image.compiler, kconfig.string(config.get("CC_VERSION_TEXT", '""'))),
        _banner(image, config),
        _headers(image, config),
    ):
        if differs:
            return differs
    return ""


def _version(release: str, version: str | None) -> str:
    of_image, of_config = RELEASE.match(release), RELEASE.match(version or "")
    if not of_image or not of_config:
        return ""
    one, two = of_image.groups(default="0"), of_config.groups(default="0")
    # Debian's and Ubuntu's releases are 6.1.0-47 while the kernel is 6.1.170.
    if one[:2] != two[:2] or one[2] not in ("0", two[2]):
        return f"the image is linux {release}, the config is of linux {version}"
    return ""


def _local_version(image: Image, release: str, local: str) -> str:
    if image.kind == "config" or not release or local in release:
        return ""
    return f"the image is linux {release}, the config has CONFIG_LOCALVERSION={local!r}"


def _compiler(of_image: str | None, of_config: str) -> str:
    versions = COMPILER_VERSION.findall(of_config)
    if not of_image or not versions or of_config in of_image or versions[-1] in of_image:
        return ""
    return f"the image was built with {of_image.split(',')[0]}, the config is of {of_config}"


def _banner(image: Image, config: Mapping[str, str]) -> str:
    flags = vmlinux.flags(image.version or "")
    for option in ("SMP", "PREEMPT_RT"):
        if flags is not None and (option in flags) != (config.get(option) == "y"):
            has = "has" if option in flags else "has no"
            return f"the image's version {has} {option}, the config {_value(option, config)}"
    return ""


def _headers(image: Image, config: Mapping[str, str]) -> str:
    header = image.bzimage
    if header is None:
        return ""
    if header.efi_stub != (config.get("EFI_STUB") == "y"):
        return f"the image has {'an' if header.efi_stub else 'no'} EFI stub, the config {_value('EFI_STUB', config)}"
    packings = {name: f"KERNEL_{name.upper()}" for name in ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")}
    of_config = next((name for name, option in packings.items() if config.get(option) == "y"), None)
    if header.compression in packings and of_config not in (None, header.compression):
        return f"the image is packed with {header.compression}, the config says {of_config}"
    return ""


def _value(option: str, config: Mapping[str, str]) -> str:
    return f"has CONFIG_{option}={config.get(option, 'n')}"
