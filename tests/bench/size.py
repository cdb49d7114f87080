# SPDX-License-Identifier: Apache-2.0
"""bench size: how large what ships is, beside files of others."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from minguest.bundle import manifests
from minguest.util.errors import UserError
from tests.bench import boot, record
from tests.bench.record import Part, Subject, Value

KERNEL, BOTH = "bzImage", "bzImage + initrd.img"
MEASURES = (KERNEL, "initrd.img", BOTH, "initd", "kernel-devel.tar.zst", "OVMF_CODE.fd")
NOTES = (
    f"A peer's {BOTH} is all of the files that were given for it: a peer without an initrd is compared with our two.",
)


def ours(text: str) -> tuple[str, Subject]:
    """A bundle's files, by its manifest."""
    name, _, folder = text.rpartition("=")
    manifest = manifests.load(Path(folder))
    sizes = {each: manifest.files[each].size for each in MEASURES if each in manifest.files}
    sizes |= {BOTH: sizes[KERNEL] + sizes["initrd.img"], "initd": manifest.initrd.initd.size}
    about = f"linux {manifest.kernel.version}"
    return name or f"{manifest.guest.name}-{manifest.kernel.series}", _subject("ours", about, manifest.files, sizes)


def peer(text: str) -> tuple[str, Subject]:
    """NAME=BZIMAGE[,INITRD]; UserError for a file that is missing."""
    name, files = boot.pair(text, "--peer")
    paths = [Path(each) for each in files.split(",")]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(f"{missing[0]}: no such file, for the peer {name}", "--peer NAME=BZIMAGE[,INITRD]")
    described = {path.name: manifests.describe(path) for path in paths}
    sizes = [path.stat().st_size for path in paths]
    found = {KERNEL: sizes[0], BOTH: sum(sizes)}
    if len(sizes) > 1:
        found["initrd.img"] = sum(sizes[1:])
    return name, _subject("peer", ", ".join(described), described, found)


def _subject(kind: str, about: str, files: dict[str, manifests.File], sizes: dict[str, int]) -> Subject:
    values = {name: Value("bytes", (float(size),)) for name, size in sizes.items()}
    return Subject("ours" if kind == "ours" else "peer", about, dict(files), values)


def run(part: Part, bundles: Sequence[str], peers: Sequence[str], base: str) -> Part:
    """UserError for what cannot be compared."""
    made = [*map(ours, bundles), *map(peer, peers)]
    return msgspec.structs.replace(part, base=boot.one_of(base, [name for name, _ in made]), subjects=dict(made),
                                   notes=NOTES)  # fmt: skip


def tables(part: Part) -> dict[str, record.Rows]:
    return {"Sizes": record.table(part, MEASURES)}
