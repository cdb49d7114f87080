# SPDX-License-Identifier: Apache-2.0
"""The parts of a bundle: `sbom` writes them, `verify` compares the SBOM with them."""

from collections.abc import Iterator
from urllib.parse import quote, unquote

import msgspec

from minguest.bundle.manifests import Drivers, Initrd, Manifest, Package

# What has packages and modules in it.
INITRD, DRIVERS = "initrd.img", "drivers.img"
# The licence of a series' pinned source also applies to the builder's own tree of that series.
LINUX_LICENCE = "GPL-2.0-only WITH Linux-syscall-note"


class Material(msgspec.Struct, frozen=True):
    """One part, in CycloneDX' terms: https://cyclonedx.org/docs/1.6/json/#components"""

    ref: str
    kind: str
    name: str
    version: str | None = None
    description: str | None = None
    licence: str | None = None
    """SPDX expression."""
    sha256: str | None = None
    """Of the part itself."""
    purl: str | None = None
    """https://github.com/package-url/purl-spec"""
    urls: tuple[str, ...] = ()
    """Where its source can be downloaded; the next field is the SHA-256 of that download."""
    urls_sha256: str = ""
    excluded: bool = False
    """Used, but not in the release."""
    properties: tuple[tuple[str, str], ...] = ()


def of(manifest: Manifest) -> dict[str, Material]:
    """Every part by its reference: sources, tools, and the files of the bundle."""
    tools = manifest.tools
    parts = [
        _linux(manifest),
        *_firmware(manifest),
        *(part for name, package in sorted(manifest.packages.items()) for part in _package(manifest, name, package)),
        *_modules(manifest),
        Material(
            ref="initd",
            kind="application",
            name="initd",
            version=manifest.minguest,
            description="PID 1, in initrd.img",
            licence="Apache-2.0",
            sha256=manifest.initrd.initd.sha256,
        ),
        *(
            Material(
                ref="musl",
                kind="library",
                name="musl",
                version=version,
                description="linked into initd",
                licence="MIT",
                purl=f"pkg:generic/musl@{quote(version, safe='.-~')}",
            )
            if tool == "musl"
            else Material(
                ref=tool,
                kind="application",
                name=tool,
                version=version,
                description="built with it; not in the release",
                excluded=True,
            )
            for tool, version in sorted(tools.items())
        ),
        *(
            Material(ref=f"file:{name}", kind="file", name=name, sha256=file.sha256)
            for name, file in sorted(manifest.files.items())
        ),
    ]
    # In a fixed order: CycloneDX' lists are sets.
    return {
        part.ref: msgspec.structs.replace(
            part, urls=tuple(sorted(part.urls)), properties=tuple(sorted(part.properties))
        )
        for part in parts
    }


def _firmware(manifest: Manifest) -> Iterator[Material]:
    """Debian's package; or edk2, Debian's changes to it, and what built it."""
    firmware, built = manifest.firmware, manifest.firmware.built
    version = quote(firmware.version, safe=".-~")
    made_of = f"pkg:generic/edk2@{version}" if built else f"pkg:deb/debian/ovmf@{version}?arch=all"
    properties = [
        *((f"minguest:patch:{patch.file}", patch.sha256) for patch in (built.patches if built else ())),
        *((f"minguest:platform:{name}", digest) for name, digest in (built.platform if built else {}).items()),
    ]
    yield Material(
        ref="ovmf",
        kind="firmware",
        name="ovmf",
        version=firmware.version,
        description="UEFI firmware of the guest" + (", built from edk2's source" if built else ""),
        licence=firmware.licence,
        purl=made_of,
        urls=firmware.urls,
        urls_sha256=firmware.sha256,
        properties=tuple(properties),
    )
    if built:
        yield Material(
            ref="source:ovmf:debian",
            kind="file",
            name="debian.tar.xz",
            description="changes to edk2, source of ovmf; not in the release, offered where it can be downloaded",
            urls=built.debian.urls,
            urls_sha256=built.debian.sha256,
            excluded=True,
        )
        for tool in sorted(set(built.tools) - set(manifest.tools) - {"glibc"}):
            yield Material(
                ref=tool,
                kind="application",
                name=tool,
                version=built.tools[tool],
                description="built with it; not in the release",
                excluded=True,
            )


def in_file(manifest: Manifest, file: str) -> list[str]:
    """References of the packages that have files in a file of the bundle, and of the modules in it."""
    place = _places(manifest).get(file)
    if place is None:
        return []
    return [f"package:{name}" for name in sorted(place.packages)] + [
        f"module:{of.name}/{module.name}" for of in place.modules for module in of.modules
    ]


def _places(manifest: Manifest) -> dict[str, Initrd | Drivers]:
    """What has packages and modules in it, by its file."""
    found: dict[str, Initrd | Drivers] = {INITRD: manifest.initrd}
    if manifest.drivers:
        found[DRIVERS] = manifest.drivers
    return found


def _where(manifest: Manifest, name: str) -> str:
    return " and ".join(file for file, place in _places(manifest).items() if name in place.packages)


def _modules(manifest: Manifest) -> Iterator[Material]:
    """Modules out of the tree. What one says of its licence is no SPDX expression."""
    sets = {of.name: (file, of) for file, place in _places(manifest).items() for of in place.modules}
    for file, of in sets.values():
        for module in of.modules:
            yield Material(
                ref=f"module:{of.name}/{module.name}",
                kind="library",
                name=module.name,
                version=module.version or None,
                description=f"kernel module out of the tree, in {file}",
                sha256=module.sha256,
                properties=(("minguest:module-licence", module.licence), ("minguest:source-sha256", of.source)),
            )


def _package(manifest: Manifest, name: str, package: Package) -> Iterator[Material]:
    """A Debian package that has files in the bundle, and each file of its source."""
    sources = {unquote(part.urls[0].rpartition("/")[2]): part for part in package.source}
    yield Material(
        ref=f"package:{name}",
        kind="application",
        name=package.deb or name,
        version=package.version,
        description=f"Debian's package; files of it are in {_where(manifest, name)}",
        licence=package.licence,
        # A version's epoch ends with a colon, which a purl has as it is.
        purl=f"pkg:deb/debian/{package.deb or name}@{quote(package.version, safe='.-~:')}?arch=amd64",
        urls=package.urls,
        urls_sha256=package.sha256,
        properties=tuple(("minguest:source", file) for file in sources),
    )
    for file, part in sources.items():
        yield Material(
            ref=f"source:{name}:{file}",
            kind="file",
            name=file,
            description=f"source of {name}; not in the release, offered where it can be downloaded",
            urls=part.urls,
            urls_sha256=part.sha256,
            excluded=True,
        )


def _linux(manifest: Manifest) -> Material:
    kernel = manifest.kernel
    kind, _, digest = kernel.origin.partition(":")
    pinned = kind == "sha256"
    return Material(
        ref="linux",
        kind="operating-system",
        name="linux",
        version=kernel.version,
        description="the kernel" if pinned else "the kernel, from a source tree of the builder's own",
        licence=kernel.licence or LINUX_LICENCE,
        purl=f"pkg:generic/linux@{quote(kernel.version, safe='.-~')}",
        urls=kernel.urls if pinned else (),
        urls_sha256=digest if pinned else "",
        properties=(
            ("minguest:origin", kernel.origin),
            ("minguest:signature", kernel.signature),
            *((f"minguest:patch:{patch.file}", patch.sha256) for patch in kernel.patches),
        ),
    )
