# SPDX-License-Identifier: Apache-2.0
"""Verifies a release folder: who signed it, that it is unchanged, and that its documents describe these files.

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

# Most bytes of evidence, packed and unpacked: more than a release has, too few to fill a /tmp in memory.
PACKED_MAX = 32 << 20
EVIDENCE_MAX = 128 << 20
# Most files in it; it has about 40.
MEMBERS_MAX = 1000
# Most characters of a row, and most names in it.
SHOWN = 2000
NAMES = 20
_OF_BOOTS = "|".join(map(re.escape, (*runner.KEPT, runner.KERNEL_LOG)))
EVIDENCE_NAME = re.compile(rf"[a-z0-9-]+/({_OF_BOOTS})|{'|'.join(map(re.escape, evidence.RECORDS))}")
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
FORMATS = ("1.6",)


class Row(msgspec.Struct, frozen=True):
    """One check."""

    what: str
    result: Literal["ok", "WRONG", "UNSIGNED", "not checked"]
    detail: str


class Report(msgspec.Struct, frozen=True):
    """The result; `holds` only if all of it does."""

    facts: layout.Facts | None
    rows: tuple[Row, ...]
    checks: tuple[evidence.Check, ...]
    holds: bool


def verify(folder: Path, trusted: sshsig.Verifier | None, *, allow_failed: bool = False) -> Report:
    """Verify a release. `trusted` has the keys that may sign; None accepts an unsigned release, as the user requested.

    `allow_failed`: a check with the result FAIL in the evidence is accepted. Errors become rows, so that one does not
    hide the next; but after a wrong signature nothing else is checked: it would mean nothing.
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
            summary, checks = _evidence(folder, unpacked, manifest, sums, verifier)
        return summary

    steps: list[tuple[str, Callable[[], str]]] = [
        ("manifest", lambda: _facts(found.facts, manifest)),
        ("SBOM", lambda: _sbom(_document(folder, layout.SBOM, sums), manifest, found.facts)),
        ("provenance", lambda: _provenance(folder, manifest, sums, verifier)),
        ("evidence", proof),
    ]
    for what, check in steps:
        try:
            rows.append(Row(what, "ok", check()))
        except UserError as error:
            rows.append(Row(what, "WRONG", _one_line(error)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            rows.append(Row(what, "WRONG", f"not in the required form: {error!r}"))
    failed = [check.name for check in checks if check.result == "FAIL"]
    if failed:
        rows.append(
            Row("results", "ok" if allow_failed else "WRONG", f"FAIL: {', '.join(failed)}, by its maker's own evidence")
        )
    rows += _not_checked(folder, sums, manifest)
    holds = all(row.result in ("ok", "not checked", "UNSIGNED") for row in rows)
    return Report(found.facts, tuple(rows), checks, holds)


def signed(sums: bytes, signature: bytes | None, trusted: sshsig.Verifier | None) -> Row:
    """The row of SHA256SUMS' signature; UserError for a wrong or missing one, and for one that cannot be checked."""
    if trusted is None:
        if signature is not None:
            raise UserError("--unsigned: this release is signed", "verify it with its signer's key: --key FILE.pub")
        return Row("signature", "UNSIGNED", "accepted as requested: nothing proves the origin of these files")
    if signature is None:
        raise UserError(
            f"UNSIGNED: there is no {layout.SIGNATURE}",
            "pass --unsigned only if its maker says that it is unsigned, and you trust the way it came",
        )
    return Row("signature", "ok", f"by {trusted.verify(sums, signature, layout.SIGNATURE)}")


def table(report: Report) -> str:
    """The report for a reader: a row per check, then the evidence."""
    wide = max(len(row.what) for row in report.rows)
    marks = max(len(row.result) for row in report.rows)
    text = [printable(f"  {row.what:<{wide}}  {row.result:<{marks}}  {_cut(row.detail)}") for row in report.rows]
    if report.checks:
        text += ["  checks that its maker ran:", evidence.table(report.checks)]
    return "\n".join(text)


def _one_line(error: UserError) -> str:
    return " ".join(error.message.split()) + (f" — {error.remedy}" if error.remedy else "")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _document(folder: Path, name: str, sums: Mapping[str, str], limit: int = strictjson.LIMIT) -> bytes:
    """A file's content, if its sum is still the verified one."""
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
        claimed = "signed" if facts.signed else "unsigned"
        raise UserError(f"{layout.FACTS} says that the release is {claimed}, which is wrong")
    manifest = manifests.parse(_document(folder, layout.MANIFEST, sums), folder / layout.MANIFEST)
    for name, file in manifest.files.items():
        # A file with this hash has only one size, so another number in the manifest is wrong.
        if sums.get(name) != file.sha256 or layout.plain(folder, name).stat().st_size != file.size:
            raise UserError(f"{layout.MANIFEST}: describes another {name} than {layout.SUMS}")
    optional = {layout.SIGNATURE, *layout.LATER}
    if missing := [name for name in layout.MEDIA_TYPES if name not in sums and name not in optional]:
        raise UserError(f"{layout.SUMS} lists no {', '.join(missing)}")
    return manifest


def _facts(facts: layout.Facts, manifest: manifests.Manifest) -> str:
    claimed = (facts.guest, facts.series, facts.kernel, facts.firmware, facts.name)
    wanted = (
        manifest.guest.name,
        manifest.kernel.series,
        manifest.kernel.version,
        manifest.firmware.version,
        f"{manifest.guest.name}-{manifest.kernel.series}",
    )
    if claimed != wanted:
        raise UserError(f"{layout.FACTS} describes {claimed}, {layout.MANIFEST} {wanted}")
    if manifest.config.problems:
        raise UserError("the bundle was built with contract=ignore and breaks its contract")
    return f"{len(manifest.files)} files of the bundle; linux {facts.kernel}, OVMF {facts.firmware}"


def _sbom(content: bytes, manifest: manifests.Manifest, facts: layout.Facts) -> str:
    name = layout.SBOM
    bom = strictjson.loads(content)
    if bom["bomFormat"] != "CycloneDX" or bom["specVersion"] not in FORMATS:
        raise UserError(f"{name}: {bom['bomFormat']} {bom['specVersion']}; this minguest reads CycloneDX 1.6")
    product = bom["metadata"]["component"]
    if (product["name"], product["version"]) != (facts.name, facts.version):
        raise UserError(f"{name}: is of {product['name']} {product['version']}, not of {facts.name} {facts.version}")
    found = [_material(part) for part in bom["components"]]
    wanted = materials.of(manifest)
    if sorted(part.ref for part in found) != sorted(wanted):
        raise UserError(f"{name}: its components are not {', '.join(sorted(wanted))}")
    if wrong := sorted(part.ref for part in found if part != wanted[part.ref]):
        raise UserError(f"{name}: differs from the manifest in {', '.join(wrong)}")
    linux = next(part for part in bom["components"] if part["bom-ref"] == "linux")
    texts = [patch["diff"]["text"]["content"] for patch in linux.get("pedigree", {}).get("patches", [])]
    hashes = sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts)
    if hashes != sorted(patch.sha256 for patch in manifest.kernel.patches):
        raise UserError(f"{name}: its patches are not those that the manifest names")
    return f"CycloneDX {bom['specVersion']}: {len(found)} components, {len(texts)} patches, agree with the manifest"


def _material(part: Mapping[str, Any]) -> materials.Material:
    """A component of the SBOM as a material."""
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
    statement = attest.unseal(_document(folder, name, sums), name, verifier)
    if statement.kind != provenance.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {provenance.KIND}")
    made = {file: sums[file] for file in [*manifest.files, layout.MANIFEST, paths.RUN_GUEST]}
    if wrong := attest.same(statement.subjects, made):
        raise UserError(f"{name}: its subjects differ from the release in {', '.join(wrong)}")
    build = statement.predicate["buildDefinition"]
    used = build["resolvedDependencies"]
    commits = [each["digest"]["gitCommit"] for each in used if "gitCommit" in each.get("digest", {})]
    if any(not COMMIT.fullmatch(str(commit)) for commit in commits):
        raise UserError(f"{name}: {commits[0]!r} is not a commit of git")
    # Through JSON, like the other one.
    wanted = msgspec.json.decode(msgspec.json.encode(provenance.predicate(manifest, commits[0] if commits else None)))
    for part, expected in wanted["buildDefinition"].items():
        if build.get(part) != expected:
            raise UserError(f"{name}: its {part} differs from the manifest")
    if statement.predicate["runDetails"] != wanted["runDetails"]:
        raise UserError(f"{name}: its runDetails differs from the manifest")
    at = f", minguest's commit {commits[0][:12]}" if commits else ", no commit of minguest recorded"
    return f"SLSA: {len(used)} inputs, agree with the manifest{at}"


def _evidence(
    folder: Path,
    unpacked: Path,
    manifest: manifests.Manifest,
    sums: Mapping[str, str],
    verifier: Callable[[bytes, bytes, str], str] | None,
) -> tuple[str, tuple[evidence.Check, ...]]:
    name = layout.EVIDENCE
    statement = attest.unseal(_document(folder, name, sums), name, verifier)
    if statement.kind != evidence.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {evidence.KIND}")
    about = {file: sums[file] for file in [*manifest.files, layout.EVIDENCE_FILES]}
    if wrong := attest.same(statement.subjects, about):
        raise UserError(f"{name}: its subjects differ from the release in {', '.join(wrong)}")
    try:
        predicate = msgspec.convert(statement.predicate, evidence.Predicate)
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}") from error
    if predicate.schema != evidence.SCHEMA:
        raise UserError(f"{name}: schema {predicate.schema}, this minguest knows {evidence.SCHEMA}")
    packed = _unpack(_document(folder, layout.EVIDENCE_FILES, sums, PACKED_MAX), unpacked)
    proof = {path: digest for check in predicate.checks for path, digest in check.files.items()}
    if wrong := attest.same(proof, packed):
        raise UserError(f"{layout.EVIDENCE_FILES}: differs from {name} in {', '.join(wrong)}")
    _document(folder, "kernel.config", sums)  # checks that it is not too large to read
    _agree(predicate.checks, unpacked, manifest, runner.nr_cpus_of(folder))
    results = [check.result for check in predicate.checks]
    counted = ", ".join(f"{results.count(result)} {result}" for result in get_args(evidence.Result))
    return f"{len(packed)} files about exactly these bytes: {counted}", predicate.checks


def _agree(checks: tuple[evidence.Check, ...], folder: Path, manifest: manifests.Manifest, nr_cpus: int) -> None:
    """UserError unless each result follows from its files in `folder`, computed again as for the release."""
    name = layout.EVIDENCE
    tests = {test.name: test for test in runner.tests(manifest.guest.launch)}
    claimed = {check.name: check for check in checks}
    if len(claimed) != len(checks):
        raise UserError(f"{name}: lists a check twice")
    if missing := sorted(tests.keys() - claimed.keys()):
        raise UserError(f"{name}: lacks {', '.join(missing)}")
    for check in checks:
        if check.name in tests:
            again = evidence.of_boot(folder, tests[check.name], manifest, nr_cpus)
        elif check.name == "reproduce":
            again = evidence.of_reproduction(folder / evidence.REPRODUCED, manifest)
        elif check.name == "pits":
            again = evidence.of_matrix(folder / evidence.MATRIX, manifest)
        elif check.name == "rehearsal":
            again = evidence.of_rehearsal(folder / evidence.REHEARSED, manifest)
        elif check.name == "necessity":
            again = evidence.of_certificate(folder / evidence.NECESSITY, manifest)
        elif check.result == "NOT RUN" and not check.files:
            continue
        else:
            raise UserError(f"{name}: {check.name}: {check.result}: an unknown check", "use a newer minguest")
        proven = check.result == "NOT RUN" and not check.files and again.result == "NOT RUN"
        # Titles are for readers; a later version may have other texts.
        if not proven and msgspec.structs.replace(again, title=check.title) != check:
            raise UserError(f"{name}: {check.name}: {check.result}, but its files show {_brief(again)}")
    own = runner.own_test(manifest.guest.launch)
    if claimed[own].result != "PASS":
        raise UserError(f"{name}: the guest's own launch, {own}, did not pass")


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
                    raise UserError(f"{name}: {member!r}: not evidence, not a plain file, or a duplicate")
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
        Row("notes, page", "not checked", f"the text of {layout.NOTES} and {layout.PAGE}: only the sums cover it"),
        Row("build", "not checked", "nothing was built again; doit reproduce builds it again"),
    ]
    unknown = sorted(sums.keys() - layout.MEDIA_TYPES.keys() - manifest.files.keys())
    if unknown:
        rows.append(Row("unknown files", "not checked", f"listed, but unknown to this minguest: {', '.join(unknown)}"))
    # Bounded: a folder may have any number of files.
    extra = heapq.nsmallest(NAMES + 1, (entry.name for entry in os.scandir(folder) if entry.name not in sums))
    if extra:
        names = [*extra[:NAMES], *(["and more"] if len(extra) > NAMES else [])]
        rows.append(Row("other files", "not checked", f"not part of the release: {', '.join(names)}"))
    return rows
