# SPDX-License-Identifier: Apache-2.0
"""Verifies a release folder: who signed it, that nothing in it was changed, and that its papers tell of these files.

Needs none of the build's tools: Python, and ssh-keygen for the signatures.
"""

import gzip
import hashlib
import heapq
import io
import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import msgspec

from minguest import paths
from minguest.boottest import runner
from minguest.bundle import manifests
from minguest.release import attest, evidence, layout, materials, provenance, sshsig
from minguest.util import archive, scratch, strictjson
from minguest.util.errors import UserError, printable

# Bytes that evidence may have, packed and unpacked: more than a release has, less than what fills a /tmp in memory.
PACKED_MAX = 32 << 20
EVIDENCE_MAX = 128 << 20
# Files in it; it has about 40.
MEMBERS_MAX = 1000
# Characters of a row, and names in it.
SHOWN = 2000
NAMES = 20
EVIDENCE_NAME = re.compile(
    rf"[a-z0-9-]+/({'|'.join(map(re.escape, runner.KEPT))})|{'|'.join(map(re.escape, evidence.RECORDS))}"
)
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
FORMATS = ("1.6",)


class Row(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    what: str
    result: Literal["ok", "WRONG", "UNSIGNED", "not checked"]
    detail: str


class Report(msgspec.Struct, frozen=True):
    """What was found; `holds` only when all of it does."""

    facts: layout.Facts | None
    rows: tuple[Row, ...]
    checks: tuple[evidence.Check, ...]
    holds: bool


def verify(folder: Path, trusted: sshsig.Verifier | None, *, allow_failed: bool = False) -> Report:
    """Verify a release. `trusted` has the keys that may sign; None accepts an unsigned release, as the user said.

    `allow_failed`: a check whose own result is FAIL does not spoil the whole. Errors become rows, so that one of them
    does not hide the next; but where the signature is wrong nothing else is looked at: it would mean nothing.
    """
    rows: list[Row] = []
    try:
        sums_text = layout.read(folder, layout.SUMS, layout.SMALL)
        rows.append(signed(sums_text, _signature(folder), trusted))
        found = layout.load(folder, sums_text)
    except UserError as error:
        rows.append(Row("signature" if not rows else "sums", "WRONG", _one_line(error)))
        return Report(None, tuple(rows), (), False)
    rows.append(Row("sums", "ok", f"{len(found.items)} files are what {layout.SUMS} lists"))
    checks: tuple[evidence.Check, ...] = ()
    sums = {item.name: item.sha256 for item in found.items}
    verifier = trusted.verify if trusted is not None else None
    try:
        manifest = _manifest(folder, found.facts, sums, signed=trusted is not None)
    except UserError as error:
        return Report(found.facts, (*rows, Row("manifest", "WRONG", _one_line(error))), (), False)

    def proof() -> str:
        nonlocal checks
        with scratch.folder("evidence") as unpacked:
            told, checks = _evidence(folder, unpacked, manifest, sums, verifier)
        return told

    looks: list[tuple[str, Callable[[], str]]] = [
        ("manifest", lambda: _facts(found.facts, manifest)),
        ("SBOM", lambda: _sbom(_paper(folder, layout.SBOM, sums), manifest, found.facts)),
        ("provenance", lambda: _provenance(folder, manifest, sums, verifier)),
        ("evidence", proof),
    ]
    for what, look in looks:
        try:
            rows.append(Row(what, "ok", look()))
        except UserError as error:
            rows.append(Row(what, "WRONG", _one_line(error)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            rows.append(Row(what, "WRONG", f"not in the form that it must have: {error!r}"))
    failed = [check.name for check in checks if check.result == "FAIL"]
    if failed:
        rows.append(Row("results", "ok" if allow_failed else "WRONG", f"FAIL: {', '.join(failed)}, says its own maker"))
    rows += _not_checked(folder, sums, manifest)
    holds = all(row.result in ("ok", "not checked", "UNSIGNED") for row in rows)
    return Report(found.facts, tuple(rows), checks, holds)


def signed(sums: bytes, signature: bytes | None, trusted: sshsig.Verifier | None) -> Row:
    """The row of SHA256SUMS' signature; UserError for a wrong one, a missing one, and one that nobody can check."""
    if trusted is None:
        if signature is not None:
            raise UserError("--unsigned: this release is signed", "verify it with its signer's key: --key FILE.pub")
        return Row("signature", "UNSIGNED", "accepted as requested: nobody vouches for these files")
    if signature is None:
        raise UserError(
            f"UNSIGNED: there is no {layout.SIGNATURE}",
            "if its maker told you that it is unsigned, and you trust the way it came: --unsigned",
        )
    return Row("signature", "ok", f"by {trusted.verify(sums, signature, layout.SIGNATURE)}")


def table(report: Report) -> str:
    """The report for a person: a row a look, then what the evidence says."""
    wide = max(len(row.what) for row in report.rows)
    marks = max(len(row.result) for row in report.rows)
    text = [printable(f"  {row.what:<{wide}}  {row.result:<{marks}}  {_cut(row.detail)}") for row in report.rows]
    if report.checks:
        text += ["  what its maker ran:", evidence.table(report.checks)]
    return "\n".join(text)


def _one_line(error: UserError) -> str:
    return " ".join(error.message.split()) + (f" — {error.remedy}" if error.remedy else "")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _paper(folder: Path, name: str, sums: Mapping[str, str], limit: int = strictjson.LIMIT) -> bytes:
    """A file as it was when its sum was verified."""
    if name not in sums:
        raise UserError(f"{layout.SUMS} lists no {name}")
    content = layout.read(folder, name, limit)
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise UserError(f"{folder / name}: changed while it was verified")
    return content


def _signature(folder: Path) -> bytes | None:
    path = folder / layout.SIGNATURE
    return layout.read(folder, layout.SIGNATURE, layout.SMALL) if path.exists() or path.is_symlink() else None


def _manifest(folder: Path, facts: layout.Facts, sums: Mapping[str, str], *, signed: bool) -> manifests.Manifest:
    if facts.signed != signed:
        said = "signed" if facts.signed else "unsigned"
        raise UserError(f"{layout.FACTS} says that the release is {said}, which it is not")
    manifest = manifests.parse(_paper(folder, layout.MANIFEST, sums), folder / layout.MANIFEST)
    for name, file in manifest.files.items():
        # A file of this hash has one size only, and another number would be another story.
        if sums.get(name) != file.sha256 or layout.plain(folder, name).stat().st_size != file.size:
            raise UserError(f"{layout.MANIFEST}: tells of another {name} than {layout.SUMS}")
    optional = {layout.SIGNATURE, *layout.LATER}
    if missing := [name for name in layout.MEDIA_TYPES if name not in sums and name not in optional]:
        raise UserError(f"{layout.SUMS} lists no {', '.join(missing)}")
    return manifest


def _facts(facts: layout.Facts, manifest: manifests.Manifest) -> str:
    told = (facts.guest, facts.series, facts.kernel, facts.firmware, facts.name)
    wanted = (
        manifest.guest.name,
        manifest.kernel.series,
        manifest.kernel.version,
        manifest.firmware.version,
        f"{manifest.guest.name}-{manifest.kernel.series}",
    )
    if told != wanted:
        raise UserError(f"{layout.FACTS} tells of {told}, {layout.MANIFEST} of {wanted}")
    if manifest.config.problems:
        raise UserError("the bundle was built with contract=ignore and breaks its contract")
    return f"{len(manifest.files)} files of the bundle; linux {facts.kernel}, OVMF {facts.firmware}"


def _sbom(content: bytes, manifest: manifests.Manifest, facts: layout.Facts) -> str:
    name = layout.SBOM
    bom = strictjson.loads(content)
    if bom["bomFormat"] != "CycloneDX" or bom["specVersion"] not in FORMATS:
        raise UserError(f"{name}: {bom['bomFormat']} {bom['specVersion']}; CycloneDX 1.6 is known here")
    product = bom["metadata"]["component"]
    if (product["name"], product["version"]) != (facts.name, facts.version):
        raise UserError(f"{name}: is of {product['name']} {product['version']}, not of {facts.name} {facts.version}")
    told = [_material(part) for part in bom["components"]]
    wanted = materials.of(manifest)
    if sorted(part.ref for part in told) != sorted(wanted):
        raise UserError(f"{name}: its components are not {', '.join(sorted(wanted))}")
    if wrong := sorted(part.ref for part in told if part != wanted[part.ref]):
        raise UserError(f"{name}: tells another story than the manifest of {', '.join(wrong)}")
    linux = next(part for part in bom["components"] if part["bom-ref"] == "linux")
    texts = [patch["diff"]["text"]["content"] for patch in linux.get("pedigree", {}).get("patches", [])]
    hashes = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    if hashes != sorted(patch.sha256 for patch in manifest.kernel.patches):
        raise UserError(f"{name}: its patches are not those that the manifest names")
    return f"CycloneDX {bom['specVersion']}: {len(told)} components, {len(texts)} patches, agree with the manifest"


def _material(part: Mapping[str, Any]) -> materials.Material:
    """A component of the SBOM, read back."""
    downloads = part.get("externalReferences", ())
    hashes = {_hash(each) for each in downloads}
    if len(hashes) > 1:
        raise UserError(f"{layout.SBOM}: {part['bom-ref']}: its downloads are not one file")
    licences = [each["expression"] for each in part.get("licenses", ())]
    return materials.Material(
        ref=part["bom-ref"],
        kind=part["type"],
        name=part["name"],
        version=part.get("version"),
        description=part.get("description"),
        licence=" AND ".join(licences) or None,
        sha256=_hash(part) if "hashes" in part else None,
        purl=part.get("purl"),
        urls=tuple(sorted(each["url"] for each in downloads)),
        urls_sha256=next(iter(hashes), ""),
        excluded=part.get("scope") == "excluded",
        properties=tuple(sorted((each["name"], each["value"]) for each in part.get("properties", ()))),
    )


def _hash(part: Mapping[str, Any]) -> str:
    (only,) = part["hashes"]
    return str(only["content"]) if only["alg"] == "SHA-256" else f"{only['alg']}:{only['content']}"


def _provenance(
    folder: Path,
    manifest: manifests.Manifest,
    sums: Mapping[str, str],
    verifier: Callable[[bytes, bytes, str], str] | None,
) -> str:
    name = layout.PROVENANCE
    statement = attest.unseal(_paper(folder, name, sums), name, verifier)
    if statement.kind != provenance.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {provenance.KIND}")
    made = {file: sums[file] for file in [*manifest.files, layout.MANIFEST, paths.RUN_GUEST]}
    if wrong := attest.same(statement.subjects, made):
        raise UserError(f"{name}: is not about {', '.join(wrong)} as it is here")
    build = statement.predicate["buildDefinition"]
    used = build["resolvedDependencies"]
    commits = [each["digest"]["gitCommit"] for each in used if "gitCommit" in each.get("digest", {})]
    if any(not COMMIT.fullmatch(str(commit)) for commit in commits):
        raise UserError(f"{name}: {commits[0]!r} is no commit of git")
    # By way of JSON, as the other one came.
    wanted = msgspec.json.decode(msgspec.json.encode(provenance.predicate(manifest, commits[0] if commits else None)))
    for part, told in wanted["buildDefinition"].items():
        if build.get(part) != told:
            raise UserError(f"{name}: its {part} tell another story than the manifest")
    if statement.predicate["runDetails"] != wanted["runDetails"]:
        raise UserError(f"{name}: its runDetails tell another story than the manifest")
    at = f", minguest's commit {commits[0][:12]}" if commits else ", no commit of minguest told"
    return f"SLSA: {len(used)} inputs, agree with the manifest{at}"


def _evidence(
    folder: Path,
    unpacked: Path,
    manifest: manifests.Manifest,
    sums: Mapping[str, str],
    verifier: Callable[[bytes, bytes, str], str] | None,
) -> tuple[str, tuple[evidence.Check, ...]]:
    name = layout.EVIDENCE
    statement = attest.unseal(_paper(folder, name, sums), name, verifier)
    if statement.kind != evidence.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {evidence.KIND}")
    about = {file: sums[file] for file in [*manifest.files, layout.EVIDENCE_FILES]}
    if wrong := attest.same(statement.subjects, about):
        raise UserError(f"{name}: is not about {', '.join(wrong)} as it is here")
    try:
        predicate = msgspec.convert(statement.predicate, evidence.Predicate)
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}") from error
    if predicate.schema != evidence.SCHEMA:
        raise UserError(f"{name}: schema {predicate.schema}, this minguest knows {evidence.SCHEMA}")
    packed = _unpack(_paper(folder, layout.EVIDENCE_FILES, sums, PACKED_MAX), unpacked)
    told = {path: digest for check in predicate.checks for path, digest in check.files.items()}
    if wrong := attest.same(told, packed):
        raise UserError(f"{layout.EVIDENCE_FILES}: is not what {name} names: {', '.join(wrong)}")
    _paper(folder, "kernel.config", sums)  # is not too large to be read
    _agree(predicate.checks, unpacked, manifest, runner.nr_cpus_of(folder))
    results = [check.result for check in predicate.checks]
    counted = ", ".join(f"{results.count(result)} {result}" for result in get_args(evidence.Result))
    return f"{len(packed)} files tell of exactly these bytes: {counted}", predicate.checks


def _agree(checks: tuple[evidence.Check, ...], folder: Path, manifest: manifests.Manifest, nr_cpus: int) -> None:
    """Each result is what its files in `folder` come to, gathered again as the release did it; UserError else."""
    name = layout.EVIDENCE
    tests = {test.name: test for test in runner.tests(manifest.guest.launch)}
    told = {check.name: check for check in checks}
    if len(told) != len(checks):
        raise UserError(f"{name}: a check is told twice")
    if missing := sorted(tests.keys() - told.keys()):
        raise UserError(f"{name}: tells nothing of {', '.join(missing)}")
    for check in checks:
        if check.name in tests:
            again = evidence.of_boot(folder, tests[check.name], manifest, nr_cpus)
        elif check.name == "reproduce":
            again = evidence.of_reproduction(folder / evidence.REPRODUCED, manifest)
        elif check.name == "pits":
            again = evidence.of_matrix(folder / evidence.MATRIX, manifest)
        elif check.name == "rehearsal":
            again = evidence.of_rehearsal(folder / evidence.REHEARSED, manifest)
        elif check.result == "NOT RUN" and not check.files:
            continue
        else:
            raise UserError(f"{name}: {check.name}: {check.result}: a check unknown here", "get a newer minguest")
        proven = check.result == "NOT RUN" and not check.files and again.result == "NOT RUN"
        # Titles are for reading; a later version may word them otherwise.
        if not proven and msgspec.structs.replace(again, title=check.title) != check:
            raise UserError(f"{name}: {check.name}: {check.result}, but its files come to {_brief(again)}")
    own = runner.own_test(manifest.guest.launch)
    if told[own].result != "PASS":
        raise UserError(f"{name}: the guest's own launch, {own}, has no PASS")


def _brief(check: evidence.Check) -> str:
    return f"{check.result}, {check.reason}" if check.result != "PASS" else "a PASS of another run"


def _unpack(packed: bytes, target: Path) -> dict[str, str]:
    """Write the files of the evidence to the empty folder `target`, bounded; SHA-256 by name."""
    name = layout.EVIDENCE_FILES
    found: dict[str, str] = {}
    try:
        with gzip.open(io.BytesIO(packed)) as stream:
            for member, content in archive.plain_members(cast(IO[bytes], stream), EVIDENCE_MAX):
                if member in found or not EVIDENCE_NAME.fullmatch(member):
                    raise UserError(f"{name}: {member!r}: not evidence, no plain file, or there twice")
                if len(found) == MEMBERS_MAX:
                    raise UserError(f"{name}: has more than {MEMBERS_MAX} files")
                found[member] = _keep(content, target / member)
    except (zlib.error, gzip.BadGzipFile, EOFError, ValueError) as error:
        raise UserError(f"{name}: damaged: {error}") from error
    return found


def _keep(content: IO[bytes], path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        while chunk := content.read(archive.CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _not_checked(folder: Path, sums: Mapping[str, str], manifest: manifests.Manifest) -> list[Row]:
    rows = [
        Row("notes, page", "not checked", f"what {layout.NOTES} and {layout.PAGE} say: only the sums cover it"),
        Row("build", "not checked", "nothing was built again: doit reproduce does that"),
    ]
    unknown = sorted(sums.keys() - layout.MEDIA_TYPES.keys() - manifest.files.keys())
    if unknown:
        rows.append(Row("unknown files", "not checked", f"listed, and unknown to this minguest: {', '.join(unknown)}"))
    # However many there are.
    extra = heapq.nsmallest(NAMES + 1, (entry.name for entry in os.scandir(folder) if entry.name not in sums))
    if extra:
        told = [*extra[:NAMES], *(["and more"] if len(extra) > NAMES else [])]
        rows.append(Row("other files", "not checked", f"no part of the release: {', '.join(told)}"))
    return rows
