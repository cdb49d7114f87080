# SPDX-License-Identifier: Apache-2.0
"""Verifies a release folder: who signed it, that nothing in it was changed, and that its papers tell of these files.

Needs none of the build's tools: Python, and ssh-keygen for the signatures.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from minguest import attest, boottest, bundle, evidence, provenance, released, sshsig
from minguest.errors import UserError

# Bytes that evidence may have when it is unpacked: more than a release has, less than what fills memory.
EVIDENCE_MAX = 256 << 20
FORMATS = ("1.6",)


class Row(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    what: str
    result: Literal["ok", "WRONG", "UNSIGNED", "not checked"]
    detail: str


class Report(msgspec.Struct, frozen=True):
    """What was found; `holds` only when all of it does."""

    facts: released.Facts | None
    rows: tuple[Row, ...]
    checks: tuple[evidence.Check, ...]
    holds: bool


def verify(folder: Path, trusted: sshsig.Trusted | None, *, allow_failed: bool = False) -> Report:
    """Verify a release. `trusted` has the keys that may sign; None accepts an unsigned release, as the user said.

    `allow_failed`: a check whose own result is FAIL does not spoil the whole. Errors become rows, so that one of them
    does not hide the next; but where the signature is wrong nothing else is looked at: it would mean nothing.
    """
    rows: list[Row] = []
    try:
        rows.append(signed(_read(folder, released.SUMS), _signature(folder), trusted))
        found = released.load(folder)
    except UserError as error:
        rows.append(Row("signature" if not rows else "sums", "WRONG", _one_line(error)))
        return Report(None, tuple(rows), (), False)
    rows.append(Row("sums", "ok", f"{len(found.items)} files are what {released.SUMS} lists"))
    checks: tuple[evidence.Check, ...] = ()
    steps: list[tuple[str, Callable[[], str]]] = []
    try:
        if found.facts.signed == (trusted is None):
            said = "signed" if found.facts.signed else "unsigned"
            raise UserError(f"{released.FACTS} says that the release is {said}, which it is not")
        manifest = _manifest(folder)
    except UserError as error:
        return Report(found.facts, (*rows, Row("manifest", "WRONG", _one_line(error))), (), False)
    sums = {item.name: item.sha256 for item in found.items}
    verifier = trusted.verify if trusted is not None else None

    def proof() -> str:
        nonlocal checks
        told, checks = _evidence(folder, manifest, sums, verifier)
        return told

    steps = [
        ("manifest", lambda: _facts(found.facts, manifest)),
        ("SBOM", lambda: _sbom(_read(folder, released.SBOM), manifest, found.facts)),
        ("provenance", lambda: _provenance(folder, manifest, sums, verifier)),
        ("evidence", proof),
    ]
    for what, look in steps:
        try:
            rows.append(Row(what, "ok", look()))
        except UserError as error:
            rows.append(Row(what, "WRONG", _one_line(error)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            rows.append(Row(what, "WRONG", f"not in the form that it must have: {error!r}"))
    failed = [check.name for check in checks if check.result == "FAIL"]
    if failed:
        rows.append(Row("results", "ok" if allow_failed else "WRONG", f"FAIL: {', '.join(failed)}, says its own maker"))
    rows += _not_checked(folder, sums)
    holds = all(row.result in ("ok", "not checked", "UNSIGNED") for row in rows)
    return Report(found.facts, tuple(rows), checks, holds)


def signed(sums: bytes, signature: bytes | None, trusted: sshsig.Trusted | None) -> Row:
    """The row of SHA256SUMS' signature; UserError for a wrong one, a missing one, and one that nobody can check."""
    if trusted is None:
        if signature is not None:
            raise UserError("--unsigned: this release is signed", "verify it with its signer's key: --key FILE.pub")
        return Row("signature", "UNSIGNED", "accepted as asked: nobody vouches for these files")
    if signature is None:
        raise UserError(
            f"UNSIGNED: there is no {released.SIGNATURE}",
            "if its maker told you that it is unsigned, and you trust the way it came: --unsigned",
        )
    return Row("signature", "ok", f"by {trusted.verify(sums, signature, released.SIGNATURE)}")


def table(report: Report) -> str:
    """The report for a person: a row a look, then what the evidence says."""
    wide = max(len(row.what) for row in report.rows)
    marks = max(len(row.result) for row in report.rows)
    text = [f"  {row.what:<{wide}}  {row.result:<{marks}}  {row.detail}" for row in report.rows]
    if report.checks:
        text += ["  what its maker ran:", evidence.table(report.checks)]
    return "\n".join(text)


def _one_line(error: UserError) -> str:
    return " ".join(error.message.split()) + (f" — {error.remedy}" if error.remedy else "")


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: missing, or not a plain file")
    return path.read_bytes()


def _signature(folder: Path) -> bytes | None:
    path = folder / released.SIGNATURE
    return _read(folder, released.SIGNATURE) if path.exists() or path.is_symlink() else None


def _manifest(folder: Path) -> bundle.Manifest:
    manifest = bundle.load(folder)
    unlisted = [name for name in manifest.files if not released.NAME.fullmatch(name)]
    if unlisted:
        raise UserError(f"{released.MANIFEST}: names {unlisted[0]!r}")
    return manifest


def _facts(facts: released.Facts, manifest: bundle.Manifest) -> str:
    told = (facts.guest, facts.line, facts.kernel, facts.firmware, facts.name)
    wanted = (
        manifest.guest["name"],
        manifest.kernel["line"],
        manifest.kernel["version"],
        manifest.firmware["version"],
        f"{manifest.guest['name']}-{manifest.kernel['line']}",
    )
    if told != wanted:
        raise UserError(f"{released.FACTS} tells of {told}, {released.MANIFEST} of {wanted}")
    if manifest.config["problems"]:
        raise UserError("the bundle was built with contract=ignore and breaks its contract")
    return f"{len(manifest.files)} files of the bundle; linux {facts.kernel}, OVMF {facts.firmware}"


def _sbom(content: bytes, manifest: bundle.Manifest, facts: released.Facts) -> str:
    try:
        bom = json.loads(content)
    except ValueError as error:
        raise UserError(f"{released.SBOM}: no JSON: {error}") from error
    if bom["bomFormat"] != "CycloneDX" or bom["specVersion"] not in FORMATS:
        raise UserError(f"{released.SBOM}: {bom['bomFormat']} {bom['specVersion']}; CycloneDX 1.6 is known here")
    product = bom["metadata"]["component"]
    parts = {part["bom-ref"]: part for part in bom["components"]}
    told = {ref.removeprefix("file:"): _hash(part) for ref, part in parts.items() if part["type"] == "file"}
    kernel, firmware = manifest.kernel, manifest.firmware
    kind, _, digest = kernel["origin"].partition(":")
    properties = {each["name"]: each["value"] for each in parts["linux"].get("properties", [])}
    texts = [each["diff"]["text"]["content"] for each in parts["linux"].get("pedigree", {}).get("patches", [])]
    wrong = [
        what
        for what, same in {
            "the release": (product["name"], product["version"]) == (facts.name, facts.version),
            "the files": told == {name: file.sha256 for name, file in manifest.files.items()},
            "linux": parts["linux"]["version"] == kernel["version"],
            "the origin of linux": properties.get("minguest:origin") == kernel["origin"],
            "the source of linux": _downloads(parts["linux"]) == ({digest} if kind == "sha256" else set()),
            "the patches": {hashlib.sha256(text.encode()).hexdigest() for text in texts}
            == {each["sha256"] for each in kernel["patches"]},
            "OVMF": parts["ovmf"]["version"] == firmware["version"]
            and _downloads(parts["ovmf"]) == {firmware["sha256"]},
            "initd": _hash(parts["initd"]) == manifest.initrd["initd"]["sha256"],
            "the tools": all(parts[tool]["version"] == version for tool, version in manifest.tools.items()),
            "the licences": all("licenses" in parts[name] for name in ("linux", "ovmf", "initd", "musl")),
        }.items()
        if not same
    ]
    if wrong:
        raise UserError(f"{released.SBOM}: tells another story than the manifest of {', '.join(wrong)}")
    return f"CycloneDX {bom['specVersion']}: {len(parts)} components, {len(texts)} patches, agree with the manifest"


def _hash(part: Mapping[str, Any]) -> str:
    return next(str(each["content"]) for each in part["hashes"] if each["alg"] == "SHA-256")


def _downloads(part: Mapping[str, Any]) -> set[str]:
    return {_hash(each) for each in part.get("externalReferences", [])}


def _provenance(
    folder: Path,
    manifest: bundle.Manifest,
    sums: Mapping[str, str],
    verifier: Callable[[bytes, bytes, str], str] | None,
) -> str:
    name = released.PROVENANCE
    statement = attest.unseal(_read(folder, name), name, verifier)
    if statement.kind != provenance.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {provenance.KIND}")
    made = {file: sums[file] for file in [*manifest.files, released.MANIFEST, released.RUN_GUEST]}
    if wrong := attest.same(statement.subjects, made):
        raise UserError(f"{name}: is not about {', '.join(wrong)} as it is here")
    build = statement.predicate["buildDefinition"]
    used = build["resolvedDependencies"]
    commits = [each["digest"]["gitCommit"] for each in used if "gitCommit" in each.get("digest", {})]
    wanted = provenance.predicate(manifest, commits[0] if commits else None)
    for part, told in wanted["buildDefinition"].items():
        if build.get(part) != told:
            raise UserError(f"{name}: its {part} tell another story than the manifest")
    if statement.predicate["runDetails"] != wanted["runDetails"]:
        raise UserError(f"{name}: its runDetails tell another story than the manifest")
    at = f", minguest's commit {commits[0][:12]}" if commits else ", no commit of minguest told"
    return f"SLSA: {len(used)} inputs, agree with the manifest{at}"


def _evidence(
    folder: Path,
    manifest: bundle.Manifest,
    sums: Mapping[str, str],
    verifier: Callable[[bytes, bytes, str], str] | None,
) -> tuple[str, tuple[evidence.Check, ...]]:
    name = released.EVIDENCE
    statement = attest.unseal(_read(folder, name), name, verifier)
    if statement.kind != evidence.KIND:
        raise UserError(f"{name}: is a {statement.kind}, not a {evidence.KIND}")
    about = {file: sums[file] for file in [*manifest.files, released.EVIDENCE_FILES]}
    if wrong := attest.same(statement.subjects, about):
        raise UserError(f"{name}: is not about {', '.join(wrong)} as it is here")
    try:
        predicate = msgspec.convert(statement.predicate, evidence.Predicate)
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}") from error
    if predicate.schema != evidence.SCHEMA:
        raise UserError(f"{name}: schema {predicate.schema}, this minguest knows {evidence.SCHEMA}")
    packed = _unpack(folder / released.EVIDENCE_FILES)
    told = {path: digest for check in predicate.checks for path, digest in check.files.items()}
    if wrong := attest.same(told, {path: hashlib.sha256(data).hexdigest() for path, data in packed.items()}):
        raise UserError(f"{released.EVIDENCE_FILES}: is not what {name} names: {', '.join(wrong)}")
    _agree(predicate.checks, packed, manifest)
    own = boottest.cell_name(*boottest.own_cell(evidence.launch_of(manifest)))
    if not any(check.name == own and check.result == "PASS" for check in predicate.checks):
        raise UserError(f"{name}: the guest's own launch, {own}, has no PASS")
    results = [check.result for check in predicate.checks]
    counted = ", ".join(f"{results.count(result)} {result}" for result in get_args(evidence.Result))
    return f"{len(packed)} files tell of exactly these bytes: {counted}", predicate.checks


def _agree(checks: tuple[evidence.Check, ...], packed: Mapping[str, bytes], manifest: bundle.Manifest) -> None:
    """Each result is what the verdict in the evidence says, of this bundle and this launch."""
    launch = evidence.launch_of(manifest)
    for check in checks:
        verdict = packed.get(f"{check.name}/verdict.json")
        if verdict is None:
            if check.result == "PASS" and check.name.startswith("boot-test-"):
                raise UserError(f"{released.EVIDENCE}: {check.name}: PASS without a verdict")
            continue
        try:
            outcome = msgspec.json.decode(verdict, type=boottest.Outcome)
        except msgspec.DecodeError as error:
            raise UserError(f"{released.EVIDENCE_FILES}: {check.name}/verdict.json: {error}") from error
        if outcome.bundle != manifest.files or outcome.wanted != launch:
            raise UserError(f"{released.EVIDENCE_FILES}: {check.name} is the test of other bytes or another launch")
        if boottest.cell_name(outcome.spec.machine, outcome.spec.cpus) != check.name:
            raise UserError(f"{released.EVIDENCE_FILES}: {check.name} was another test")
        if (outcome.verdict.result == "pass") != (check.result == "PASS"):
            raise UserError(f"{released.EVIDENCE}: {check.name}: {check.result}, but its verdict is another")


def _unpack(path: Path) -> dict[str, bytes]:
    """Files of the evidence, in memory: no name of the archive becomes a path."""
    found: dict[str, bytes] = {}
    left = EVIDENCE_MAX
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or member.name in found:
                    raise UserError(f"{path.name}: {member.name!r}: no plain file, or there twice")
                left -= member.size
                if left < 0:
                    raise UserError(f"{path.name}: more than {EVIDENCE_MAX >> 20} MiB")
                found[member.name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path.name}: damaged: {error}") from error
    return found


def _not_checked(folder: Path, sums: Mapping[str, str]) -> list[Row]:
    rows = [
        Row("notes, page", "not checked", f"what {released.NOTES} and {released.PAGE} say: only the sums cover it"),
        Row("build", "not checked", "nothing was built again: doit reproduce does that"),
    ]
    extra = sorted(path.name for path in folder.iterdir() if path.name not in sums)
    if extra:
        rows.append(Row("other files", "not checked", f"no part of the release: {', '.join(extra)}"))
    return rows
