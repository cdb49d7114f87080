# SPDX-License-Identifier: Apache-2.0
"""Provenance: the inputs of a bundle and its build, as a SLSA predicate.

Format: https://slsa.dev/spec/v1.0/provenance. The builder is the person who makes and signs the release: SLSA build
level 1. It guarantees nothing about the machine.
"""

from typing import Any

import msgspec

from minguest.bundle.manifests import Manifest

KIND = "https://slsa.dev/provenance/v1"
BUILD = "urn:minguest:build:v1"
BUILDER = "urn:minguest:doit"


def predicate(manifest: Manifest, commit: str | None) -> dict[str, Any]:
    """The predicate; `commit` is the checkout's commit in git, None if it is not a checkout or has changes."""
    return {
        "buildDefinition": {
            "buildType": BUILD,
            "externalParameters": msgspec.to_builtins({"guest": manifest.guest, "wanted": manifest.kernel.wanted}),
            "internalParameters": {"tools": manifest.tools, "kernel": manifest.kernel.version},
            "resolvedDependencies": dependencies(manifest, commit),
        },
        "runDetails": {"builder": {"id": BUILDER, "version": {"minguest": manifest.minguest}}},
    }


def dependencies(manifest: Manifest, commit: str | None) -> list[dict[str, Any]]:
    """All inputs, as in-toto resource descriptors."""
    found: list[dict[str, Any]] = [_kernel(manifest)]
    found.append(
        {
            "name": "ovmf",
            "uri": manifest.firmware.urls[0],
            "digest": {"sha256": manifest.firmware.sha256},
            "annotations": {"version": manifest.firmware.version},
        }
    )
    if built := manifest.firmware.built:
        found.append({"name": "ovmf/debian", "uri": built.debian.urls[0], "digest": {"sha256": built.debian.sha256}})
        found += [
            {"name": f"firmware/{name}", "digest": {"sha256": digest}}
            for name, digest in [
                *((patch.file, patch.sha256) for patch in built.patches),
                *sorted(built.platform.items()),
            ]
        ]
    found += [
        {"name": f"patches/{patch.file}", "digest": {"sha256": patch.sha256}} for patch in manifest.kernel.patches
    ]
    found += [
        {"name": f"fragments/{name}", "digest": {"sha256": digest}}
        for name, digest in sorted(manifest.config.fragments.items())
    ]
    found.append({"name": "initrd/template", "digest": {"sha256": manifest.initrd.template}})
    found += [
        {"name": f"overlays/{name}", "digest": {"sha256": digest}}
        for name, digest in sorted(manifest.initrd.overlays.items())
    ]
    found += [
        {
            "name": f"packages/{name}",
            "uri": package.urls[0],
            "digest": {"sha256": package.sha256},
            "annotations": {"version": package.version},
        }
        for name, package in sorted(manifest.packages.items())
    ]
    if commit is not None:
        found.append({"name": "minguest", "digest": {"gitCommit": commit}})
    return found


def _kernel(manifest: Manifest) -> dict[str, Any]:
    kind, _, digest = manifest.kernel.origin.partition(":")
    descriptor: dict[str, Any] = {
        "name": "linux",
        "annotations": {"version": manifest.kernel.version, "signature": manifest.kernel.signature},
    }
    if kind == "sha256":
        return {**descriptor, "uri": manifest.kernel.urls[0], "digest": {"sha256": digest}}
    # The user's own tree: a hash over its content, not over a file that can be downloaded.
    descriptor["annotations"]["origin"] = manifest.kernel.origin
    return descriptor
