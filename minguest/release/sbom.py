# SPDX-License-Identifier: Apache-2.0
"""The bill of materials of a bundle, CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json/"""

import uuid
from collections.abc import Mapping

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

from minguest.bundle.manifests import Manifest
from minguest.release import materials
from minguest.release.materials import Material

# The components of each file of a bundle, by reference; packages are in initrd.img too.
MADE_OF = {
    "bzImage": ["linux"],
    "System.map": ["linux"],
    "kernel.config": ["linux"],
    "kernel-devel.tar.zst": ["linux"],
    "drivers.img": [],
    "initrd.img": ["initd", "musl"],
    "OVMF_CODE.fd": ["ovmf"],
    "OVMF_VARS.fd": ["ovmf"],
}


def render(manifest: Manifest, name: str, version: str, patches: Mapping[str, str]) -> bytes:
    """The SBOM as JSON; `patches` has the text of each patch by its file name. The same input gives the same bytes."""
    product = Component(
        name=name,
        version=version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref="release",
        description="kernel, initrd and UEFI firmware of a guest, tested together",
    )
    parts = {
        ref: _component(material, _pedigree(manifest, patches) if ref == "linux" else None)
        for ref, material in materials.of(manifest).items()
    }
    made_of = {file: [*refs, *materials.in_file(manifest, file)] for file, refs in MADE_OF.items()}
    bom = Bom(
        components=parts.values(),
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"{name}-{version}-{sorted(manifest.files.items())}"),
        metadata=BomMetaData(component=product),
        dependencies=[
            Dependency(product.bom_ref, [Dependency(parts[f"file:{file}"].bom_ref) for file in manifest.files]),
            *(
                Dependency(parts[f"file:{file}"].bom_ref, [Dependency(parts[ref].bom_ref) for ref in made_of[file]])
                for file in MADE_OF
                if file in manifest.files
            ),
        ],
    )
    # The library sets it to the current time, but the same release must give the same bytes.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    return JsonV1Dot6(bom).output_as_string(indent=1).encode() + b"\n"


def _component(material: Material, pedigree: Pedigree | None) -> Component:
    return Component(
        name=material.name,
        version=material.version,
        type=ComponentType(material.kind),
        bom_ref=material.ref,
        description=material.description,
        scope=ComponentScope.EXCLUDED if material.excluded else None,
        licenses=[LicenseExpression(material.licence)] if material.licence else (),
        hashes=_sha256(material.sha256) if material.sha256 else (),
        purl=PackageURL.from_string(material.purl) if material.purl else None,
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.SOURCE_DISTRIBUTION, url=XsUri(url), hashes=_sha256(material.urls_sha256)
            )
            for url in material.urls
        ],
        properties=[Property(name=name, value=value) for name, value in material.properties],
        pedigree=pedigree,
    )


def _pedigree(manifest: Manifest, patches: Mapping[str, str]) -> Pedigree | None:
    applied = manifest.kernel.patches
    if not applied:
        return None
    return Pedigree(
        patches=[
            Patch(
                type=PatchClassification.UNOFFICIAL,
                diff=Diff(text=AttachedText(content=patches[patch.file], content_type="text/x-diff")),
            )
            for patch in applied
        ],
        notes="\n".join(f"{patch.file}: {patch.reason}" for patch in applied),
    )


def _sha256(digest: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]
