# SPDX-License-Identifier: Apache-2.0
"""A release with a firmware that was built here names all that it was built from."""

import json
from pathlib import Path

import msgspec
import pytest

from minguest.bundle import manifests
from minguest.release import materials, provenance, sbom
from tests import workshop

BUILT = manifests.Built(
    debian=manifests.Part(("http://example.org/edk2_1.debian.tar.xz",), "1" * 64),
    patches=(
        manifests.Patch("debian/one.patch", "2" * 64, "one"),
        manifests.Patch("patches/0001-two.patch", "3" * 64, "two"),
    ),
    platform={"minguest.dsc": "4" * 64},
    tools={"gcc": "12.2.0", "nasm": "2.16.01", "glibc": "2.36"},
)


@pytest.fixture
def manifest(tmp_path: Path) -> manifests.Manifest:
    found = manifests.load(workshop.build(tmp_path).bundle)
    firmware = msgspec.structs.replace(found.firmware, version="1-2+minguest1", built=BUILT)
    return msgspec.structs.replace(found, firmware=firmware)


def test_the_bill_has_the_source_its_patches_and_tools(manifest: manifests.Manifest) -> None:
    bill = materials.of(manifest)
    ovmf = bill["ovmf"]
    assert ovmf.purl == "pkg:generic/edk2@1-2%2Bminguest1"
    assert dict(ovmf.properties) == {
        "minguest:patch:debian/one.patch": "2" * 64,
        "minguest:patch:patches/0001-two.patch": "3" * 64,
        "minguest:platform:minguest.dsc": "4" * 64,
    }
    assert (bill["source:ovmf:debian"].urls_sha256, bill["source:ovmf:debian"].excluded) == ("1" * 64, True)
    assert (bill["nasm"].version, bill["nasm"].excluded) == ("2.16.01", True)
    texts = {patch.file: "text" for patch in manifest.kernel.patches}
    bom = json.loads(sbom.render(manifest, "x", "1", texts))
    assert {"ovmf", "source:ovmf:debian", "nasm"} <= {part["bom-ref"] for part in bom["components"]}


def test_the_provenance_has_every_input_by_hash(manifest: manifests.Manifest) -> None:
    found = {each["name"]: each["digest"]["sha256"] for each in provenance.dependencies(manifest, None) if
             each["name"].startswith(("ovmf", "firmware/"))}  # fmt: skip
    assert found == {
        "ovmf": "f" * 64, "ovmf/debian": "1" * 64, "firmware/debian/one.patch": "2" * 64,
        "firmware/patches/0001-two.patch": "3" * 64, "firmware/minguest.dsc": "4" * 64,
    }  # fmt: skip


def test_debians_package_is_named_as_before(tmp_path: Path) -> None:
    bill = materials.of(manifests.load(workshop.build(tmp_path).bundle))
    assert bill["ovmf"].purl == "pkg:deb/debian/ovmf@2025.02-8%2Bdeb13u1?arch=all"
    assert not {"source:ovmf:debian", "nasm"} & set(bill)
