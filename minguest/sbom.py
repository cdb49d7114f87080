# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a bundle, CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/"""

import uuid
from collections.abc import Mapping
from typing import Any

from cyclonedx.model import (
    AttachedText,
    ExternalReference,
    ExternalReferenceType,
    HashAlgorithm,
    HashType,
    Property,
    XsUri,
)
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import (
    Component,
    ComponentScope,
    ComponentType,
    Diff,
    Patch,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.dependency import Dependency
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from minguest.bundle import Manifest

# What the files of a bundle are made of, by bom-ref.
MADE_OF = {
    "bzImage": ["linux"],
    "System.map": ["linux"],
    "kernel.config": ["linux"],
    "initrd.img": ["initd", "musl"],
    "OVMF_CODE.fd": ["ovmf"],
    "OVMF_VARS.fd": ["ovmf"],
}
LICENCES = {"initd": "Apache-2.0", "musl": "MIT"}


def render(manifest: Manifest, name: str, version: str, patches: Mapping[str, str]) -> bytes:
    """The SBOM as JSON; `patches` has the text of each patch by its file name. The same input gives the same bytes."""
    product = Component(
        name=name,
        version=version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="release",
        description="kernel, initrd and UEFI firmware of a guest, tested together",
    )
    parts = [
        _linux(manifest, patches),
        _ovmf(manifest),
        Component(
            name="initd", version=manifest.minguest, type=ComponentType.APPLICATION, bom_ref="initd",
            description="PID 1, in initrd.img", hashes=_sha256(manifest.initrd["initd"]["sha256"]),
            licenses=[LicenseExpression(LICENCES["initd"])],
        ),
        Component(
            name="musl", version=manifest.tools["musl"], type=ComponentType.LIBRARY, bom_ref="musl",
            description="linked into initd", licenses=[LicenseExpression(LICENCES["musl"])],
            purl=PackageURL("generic", None, "musl", manifest.tools["musl"]),
        ),
    ]  # fmt: skip
    tools = [
        Component(
            name=tool, version=version_, type=ComponentType.APPLICATION, bom_ref=tool, scope=ComponentScope.EXCLUDED,
            description="built with it; not in the release",
        )
        for tool, version_ in sorted(manifest.tools.items())
        if tool != "musl"
    ]  # fmt: skip
    content = [
        Component(name=file, type=ComponentType.FILE, bom_ref=f"file:{file}", hashes=_sha256(facts.sha256))
        for file, facts in sorted(manifest.files.items())
    ]
    bom = Bom(
        components=[*parts, *tools, *content],
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{name}-{version}-{sorted(manifest.files.items())}"),
        metadata=BomMetaData(component=product),
        dependencies=[
            Dependency(product.bom_ref, [Dependency(each.bom_ref) for each in content]),
            *(
                Dependency(each.bom_ref, [Dependency(part.bom_ref) for part in parts if part.bom_ref.value in made_of])
                for each in content
                if (made_of := MADE_OF.get(each.name))
            ),
        ],
    )
    # The library puts the time there; the same release shall give the same bytes.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    return JsonV1Dot6(bom).output_as_string(indent=1).encode() + b"\n"


def _linux(manifest: Manifest, patches: Mapping[str, str]) -> Component:
    kernel = manifest.kernel
    kind, _, digest = kernel["origin"].partition(":")
    pinned = kind == "sha256"
    return Component(
        name="linux",
        version=kernel["version"],
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="linux",
        description="the kernel" if pinned else "the kernel, from a source tree of the builder's own",
        # The licence of the line's pinned source holds for the builder's own tree of the line as well.
        licenses=[LicenseExpression(kernel["licence"] or "GPL-2.0-only WITH Linux-syscall-note")],
        purl=PackageURL("generic", None, "linux", kernel["version"], {"download_url": kernel["urls"][0]})
        if pinned
        else PackageURL("generic", None, "linux", kernel["version"]),
        external_references=_sources(kernel["urls"], digest) if pinned else [],
        properties=[
            Property(name="minguest:origin", value=kernel["origin"]),
            Property(name="minguest:signature", value=kernel["signature"]),
            *(Property(name=f"minguest:patch:{each['file']}", value=each["sha256"]) for each in kernel["patches"]),
        ],
        pedigree=Pedigree(
            patches=[
                Patch(
                    type=PatchClassification.UNOFFICIAL,
                    diff=Diff(text=AttachedText(content=patches[each["file"]], content_type="text/x-diff")),
                )
                for each in kernel["patches"]
            ],
            notes="\n".join(f"{each['file']}: {each['reason']}" for each in kernel["patches"]) or None,
        )
        if kernel["patches"]
        else None,
    )


def _ovmf(manifest: Manifest) -> Component:
    firmware = manifest.firmware
    return Component(
        name="ovmf",
        version=firmware["version"],
        type=ComponentType.FIRMWARE,
        bom_ref="ovmf",
        description="UEFI firmware of the guest",
        licenses=[LicenseExpression(firmware["licence"])],
        purl=PackageURL("deb", "debian", "ovmf", firmware["version"], {"arch": "all"}),
        external_references=_sources(firmware["urls"], firmware["sha256"]),
    )


def _sources(urls: list[str], sha256: str) -> list[ExternalReference]:
    kind = ExternalReferenceType.SOURCE_DISTRIBUTION
    return [ExternalReference(type=kind, url=XsUri(url), hashes=_sha256(sha256)) for url in urls]


def _sha256(digest: Any) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
