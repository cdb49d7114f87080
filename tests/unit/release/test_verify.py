# SPDX-License-Identifier: Apache-2.0
"""A release holds, or verify says what does not: one changed byte, one document that does not match."""

import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minguest import cli
from minguest.release import layout, sshsig, verify
from minguest.util import files
from tests import workshop
from tests.forgery import change, change_statement, sign_again

Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    at = workshop.build(tmp_path_factory.mktemp("work") / "project")
    workshop.tested(at)
    workshop.tested(at, "pc", 8)
    workshop.make(at, key)
    return at.release


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "release")
    return tmp_path / "release"


def look(folder: Path, key: Path | None, **more: Any) -> verify.Report:
    public = key.with_suffix(".pub") if key else None
    with sshsig.trusting(public, Path("nowhere"), unsigned=key is None) as trusted:
        return verify.verify(folder, trusted, **more)


def wrong(report: verify.Report) -> dict[str, str]:
    assert not report.holds
    return {row.what: row.detail for row in report.rows if row.result == "WRONG"}


def test_a_release_holds(made: Path, key: Path) -> None:
    report = look(made, key)
    assert report.holds, verify.table(report)
    assert [(row.what, row.result) for row in report.rows] == [
        ("signature", "ok"), ("sums", "ok"), ("manifest", "ok"), ("SBOM", "ok"), ("provenance", "ok"),
        ("evidence", "ok"), ("notes, page", "not checked"), ("build", "not checked"),
    ]  # fmt: skip
    assert {check.name for check in report.checks if check.result == "PASS"} == {"boot-test-q35-4", "boot-test-pc-8"}
    assert "NOT RUN" in verify.table(report)


def test_any_changed_byte_is_found(folder: Path, key: Path) -> None:
    dice = random.Random(20261122)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(dice.randrange(len(whole)) for _ in range(6))}:
            spoiled = bytearray(whole)
            spoiled[place] ^= 1 << dice.randrange(8)
            path.write_bytes(spoiled)
            assert wrong(look(folder, key)), f"{path.name}, byte {place}"
        for spoiled_ in (whole + b"\n", whole[:-1], b""):
            path.write_bytes(spoiled_)
            assert wrong(look(folder, key)), path.name
        path.unlink()
        assert wrong(look(folder, key)), path.name
        path.write_bytes(whole)
    assert look(folder, key).holds


def test_a_file_of_its_own_right_elsewhere_is_no_file_of_the_release(folder: Path, key: Path) -> None:
    shutil.move(folder / "bzImage", folder.parent / "bzImage")
    (folder / "bzImage").symlink_to(folder.parent / "bzImage")
    assert "bzImage: missing, or not a plain file" in wrong(look(folder, key))["sums"]


def test_a_stranger_in_the_folder_is_said_and_not_checked(folder: Path, key: Path) -> None:
    (folder / "stranger").write_text("hello")
    report = look(folder, key)
    assert report.holds
    assert ("other files", "not checked", "not part of the release: stranger") in [
        (row.what, row.result, row.detail) for row in report.rows
    ]


def test_another_key_is_not_trusted(made: Path, tmp_path: Path) -> None:
    found = wrong(look(made, workshop.key(tmp_path)))
    assert list(found) == ["signature"]
    assert "which is not trusted here" in found["signature"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../outside", "is not a valid file name in a release"),
        ("/etc/passwd", "is not a valid file name in a release"),
        ("a/b", "is not a valid file name in a release"),
        (".hidden", "is not a valid file name in a release"),
    ],
)
def test_sums_that_name_files_elsewhere_are_refused(folder: Path, key: Path, name: str, what: str) -> None:
    sums = (folder / layout.SUMS).read_text() + f"{'0' * 64}  {name}\n"
    (folder / layout.SUMS).write_text(sums)
    (folder / layout.SIGNATURE).write_bytes(sshsig.sign(sums.encode(), key))
    assert what in wrong(look(folder, key))["sums"]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(folder: Path, key: Path, name: str) -> None:
    (folder.parent / "outside").write_text("")
    change(folder, layout.MANIFEST, lambda it: it["files"].update({name: it["files"]["bzImage"]}))
    sign_again(folder, key)
    assert "which is not a file beside it" in wrong(look(folder, key))["manifest"]


def set_in(*path: str | int, to: Any) -> Callable[[Any], None]:
    def spoil(content: Any) -> None:
        for step in path[:-1]:
            content = content[step]
        content[path[-1]] = to

    return spoil


def part(bom: Any, ref: str) -> Any:
    return next(each for each in bom["components"] if each["bom-ref"] == ref)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda bom: part(bom, "file:bzImage")["hashes"][0].update(content="0" * 64), "file:bzImage"),
        (lambda bom: bom["components"].remove(part(bom, "file:initrd.img")), "components are not"),
        (lambda bom: part(bom, "linux").update(version="4.12.1"), "linux"),
        (lambda bom: part(bom, "linux")["externalReferences"][0]["hashes"][0].update(content="0" * 64), "in linux"),
        (lambda bom: part(bom, "linux")["pedigree"]["patches"].pop(), "its patches"),
        (lambda bom: part(bom, "linux")["properties"].clear(), "in linux"),
        (lambda bom: part(bom, "ovmf").update(version="2022.11"), "in ovmf"),
        (lambda bom: part(bom, "ovmf").update(externalReferences=[]), "in ovmf"),
        (lambda bom: part(bom, "initd")["hashes"][0].update(content="0" * 64), "initd"),
        (lambda bom: part(bom, "gcc").update(version="13"), "in gcc"),
        (lambda bom: part(bom, "musl").pop("licenses"), "in musl"),
        (set_in("metadata", "component", "version", to="2.0"), "is of default-4.12 2.0"),
        (set_in("specVersion", to="1.4"), "this minguest reads CycloneDX 1.6"),
        (lambda bom: bom.pop("components"), "not in the required form"),
        (lambda bom: bom["components"].remove(part(bom, "gcc")), "components are not"),
    ],
)  # fmt: skip
def test_an_sbom_that_does_not_match_is_found(folder: Path, key: Path, spoil: Callable[[Any], None], why: str) -> None:
    change(folder, layout.SBOM, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["SBOM"]
    assert why in found["SBOM"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (set_in("subject", 0, "digest", "sha256", to="0" * 64), "its subjects differ"),
        (lambda it: it["subject"].pop(), "its subjects differ"),
        (set_in("predicateType", to="https://slsa.dev/provenance/v0.2"), "is a https://slsa.dev/provenance/v0.2"),
        (set_in("_type", to="https://in-toto.io/Statement/v0.1"), "statement of type"),
        (set_in("predicate", "buildDefinition", "resolvedDependencies", 0, "digest", "sha256", to="0" * 64), "its re"),
        (lambda it: it["predicate"]["buildDefinition"]["resolvedDependencies"].pop(1), "resolvedDep"),
        (set_in("predicate", "buildDefinition", "internalParameters", "tools", "gcc", to="14"), "internalParameters"),
        (set_in("predicate", "buildDefinition", "externalParameters", "guest", to={}), "externalParameters"),
        (set_in("predicate", "runDetails", "builder", "id", to="https://github.com/…"), "runDetails"),
        (set_in("predicate", to={}), "not in the required form"),
    ],
)  # fmt: skip
def test_a_provenance_that_does_not_match_is_found(
    folder: Path, key: Path, spoil: Callable[[Any], None], why: str
) -> None:
    change_statement(folder, layout.PROVENANCE, key, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["provenance"]
    assert why in found["provenance"]


def check(statement: Any, name: str) -> Any:
    return next(each for each in statement["predicate"]["checks"] if each["name"] == name)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (set_in("subject", 0, "digest", "sha256", to="0" * 64), "its subjects differ"),
        (lambda it: check(it, "boot-test-q35-8").update(result="PASS"), "but its files show NOT RUN"),
        (lambda it: check(it, "boot-test-pc-8").update(result="NOT RUN"), "but its files show a PASS"),
        (lambda it: check(it, "boot-test-pc-8").update(files={}), "differs from evidence.dsse.json"),
        (lambda it: check(it, "boot-test-pc-8")["files"].update({"boot-test-pc-8/report.json": "0" * 64}), "differs"),
        (lambda it: it["predicate"]["checks"].remove(check(it, "boot-test-q35-4")), "differs from evidence.dsse.json"),
        (lambda it: check(it, "boot-test-pc-8").update(result="MAYBE"), "Invalid enum value"),
        (set_in("predicate", "schema", to=2), "schema 2, this minguest knows 1"),
        (set_in("predicateType", to="other"), "is a other"),
    ],
)  # fmt: skip
def test_evidence_that_does_not_match_is_found(folder: Path, key: Path, spoil: Callable[[Any], None], why: str) -> None:
    change_statement(folder, layout.EVIDENCE, key, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["evidence"]
    assert why in found["evidence"]


def repack(folder: Path, key: Path, spoil: Callable[[dict[str, bytes]], None]) -> None:
    """Change what proves the evidence, with hashes and signatures that fit: what a lying signer could do."""
    with tarfile.open(folder / layout.EVIDENCE_FILES) as archive:
        packed = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    spoil(packed)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in packed.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / layout.EVIDENCE_FILES).write_bytes(content.getvalue())

    def changed(statement: Any) -> None:
        for subject in statement["subject"]:
            if subject["name"] == layout.EVIDENCE_FILES:
                subject["digest"]["sha256"] = files.sha256(folder / layout.EVIDENCE_FILES)
        for each in statement["predicate"]["checks"]:
            names = [name for name in packed if name.startswith(f"{each['name']}/")]
            each["files"] = {name: hashlib.sha256(packed[name]).hexdigest() for name in names}

    change_statement(folder, layout.EVIDENCE, key, changed)
    sign_again(folder, key)


def spoil_verdict(spoil: Callable[[Any], None], name: str = "boot-test-q35-4") -> Callable[[dict[str, bytes]], None]:
    def changed(packed: dict[str, bytes]) -> None:
        content = json.loads(packed[f"{name}/verdict.json"])
        spoil(content)
        packed[f"{name}/verdict.json"] = json.dumps(content).encode()

    return changed


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_verdict(set_in("spec", "memory", to=64 << 20)),
        spoil_verdict(set_in("spec", "gpus", to=[])),
        spoil_verdict(set_in("spec", "cmdline", to=["nosmp"])),
        spoil_verdict(set_in("spec", "cpus", to=1)),
        spoil_verdict(set_in("spec", "accel", to="kvm")),
        spoil_verdict(set_in("verdict", "checks", 0, "ok", to=False)),
        spoil_verdict(set_in("verdict", "checks", to=[])),
        spoil_verdict(set_in("verdict", "result", to="failed")),
        spoil_verdict(set_in("verdict", "phases", "wall", to=0.5)),
        spoil_verdict(set_in("verdict", "result", to="lost"), "boot-test-pc-8"),
        lambda packed: packed.pop("boot-test-q35-4/console.log"),
        lambda packed: packed.update({"boot-test-q35-4/report.json": b"garbage"}),
        lambda packed: packed.update({"../outside/console.log": b"x"}),
        lambda packed: packed.update({"pits/console.log": b"x"}),
    ],
)
def test_evidence_that_does_not_prove_it_is_found(
    folder: Path, key: Path, spoil: Callable[[dict[str, bytes]], None]
) -> None:
    repack(folder, key, spoil)
    assert list(wrong(look(folder, key))) == ["evidence"]


def test_a_failed_test_cannot_be_recorded_as_not_run(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "failed")
    workshop.tested(at)
    workshop.tested(at, "pc", 1, "failed")
    workshop.make(at, key)
    change_statement(
        at.release, layout.EVIDENCE, key, lambda it: check(it, "boot-test-pc-1").update(result="NOT RUN", reason="")
    )
    sign_again(at.release, key)
    assert "but its files show FAIL" in wrong(look(at.release, key))["evidence"]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda it: check(it, "reproduce").update(result="PASS"), "its files show NOT RUN"),
        (lambda it: check(it, "real-card").update(result="PASS"), "an unknown check"),
        (lambda it: it["predicate"]["checks"].append(check(it, "hotplug")), "lists a check twice"),
        (lambda it: it["predicate"]["checks"].remove(check(it, "boot-test-pc-1")), "lacks boot-test-pc-1"),
        (lambda it: it["subject"].append(it["subject"][0]), "named twice"),
    ],
)
def test_claims_without_proof_are_found(folder: Path, key: Path, spoil: Callable[[Any], None], why: str) -> None:
    change_statement(folder, layout.EVIDENCE, key, spoil)
    sign_again(folder, key)
    assert why in wrong(look(folder, key))["evidence"]


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-20], lambda data: data[:40] + b"\0" * 9 + data[49:], lambda data: b"x"]
)
def test_damaged_evidence_is_found(folder: Path, key: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = folder / layout.EVIDENCE_FILES
    path.write_bytes(spoil(path.read_bytes()))

    def changed(statement: Any) -> None:
        for each in statement["subject"]:
            if each["name"] == path.name:
                each["digest"]["sha256"] = files.sha256(path)

    change_statement(folder, layout.EVIDENCE, key, changed)
    sign_again(folder, key)
    assert "evidence.tar.gz: damaged" in wrong(look(folder, key))["evidence"]


def test_evidence_that_unpacks_without_end_is_not_unpacked(
    folder: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "EVIDENCE_MAX", 1000)
    assert "more than 0 MiB" in wrong(look(folder, key))["evidence"]


def test_a_file_that_is_not_there_is_missed(folder: Path, key: Path) -> None:
    for name in (layout.NOTES, layout.PAGE, layout.SBOM, layout.EVIDENCE):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        sign_again(folder, key)
        assert f"lists no {name}" in wrong(look(folder, key))["manifest"]
        (folder / name).write_bytes(whole)


def test_a_signed_file_that_nobody_knows_is_said(folder: Path, key: Path) -> None:
    (folder / "doit.sh").write_text("x")
    sign_again(folder, key)
    report = look(folder, key)
    assert report.holds and "unknown to this minguest: doit.sh" in verify.table(report)


def test_names_and_texts_do_not_move_the_cursor(folder: Path, key: Path) -> None:
    (folder / "\x1b[2J\n  signature    ok  by Linus").write_text("")
    change_statement(folder, layout.PROVENANCE, key, lambda it: it.update(predicateType="\x1b[2J"))
    sign_again_but = [path for path in folder.iterdir() if "\x1b" in path.name]
    for path in sign_again_but:
        path.rename(folder.parent / "aside")
    sign_again(folder, key)
    (folder.parent / "aside").rename(folder / "\x1b[2J\n  signature    ok  by Linus")
    text = verify.table(look(folder, key))
    assert "\x1b" not in text and "\n  signature    ok  by Linus" not in text


def test_documents_nested_without_end_are_wrong_and_do_not_crash(folder: Path, key: Path) -> None:
    for name in (layout.SBOM, layout.PROVENANCE, layout.MANIFEST, layout.FACTS):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(b"[" * 200_000)
        sign_again(folder, key)
        assert wrong(look(folder, key)), name
        (folder / name).write_bytes(whole)


def test_evidence_of_other_bytes_is_found(made: Path, folder: Path, key: Path, tmp_path: Path) -> None:
    # A signer who puts the evidence of another bundle beside this one, and signs all of it again.
    other = workshop.build(tmp_path / "other", "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\n")
    workshop.tested(other)
    workshop.make(other, key)
    for name in (layout.EVIDENCE, layout.EVIDENCE_FILES):
        shutil.copyfile(other.release / name, folder / name)
    sums = json.loads((made / layout.MANIFEST).read_bytes())["files"]

    def about_this(statement: Any) -> None:
        for subject in statement["subject"]:
            if subject["name"] in sums:
                subject["digest"]["sha256"] = sums[subject["name"]]["sha256"]

    change_statement(folder, layout.EVIDENCE, key, about_this)
    sign_again(folder, key)
    assert "its last run used other bytes" in wrong(look(folder, key))["evidence"]


@pytest.mark.parametrize("name", [layout.PROVENANCE, layout.EVIDENCE])
def test_an_attestation_by_another_key_or_by_nobody_is_found(
    folder: Path, key: Path, tmp_path: Path, name: str
) -> None:
    change_statement(folder, name, workshop.key(tmp_path), lambda it: None)
    sign_again(folder, key)
    assert "which is not trusted here" in "".join(wrong(look(folder, key)).values())
    change(folder, name, set_in("signatures", to=[]))
    sign_again(folder, key)
    assert "has 0 signatures" in "".join(wrong(look(folder, key)).values())


@pytest.mark.parametrize("name", [layout.PROVENANCE, layout.EVIDENCE])
@pytest.mark.parametrize(
    "spoil",
    [
        set_in("signatures", 0, to={"sig": "AAAA", "keyid": "x"}),
        set_in("signatures", 0, to={}),
        set_in("payload", to="!"),
        set_in("payloadType", to="text/plain"),
        lambda it: it.pop("payload"),
    ],
)
def test_a_damaged_envelope_is_found(folder: Path, key: Path, name: str, spoil: Callable[[Any], None]) -> None:
    change(folder, name, spoil)
    sign_again(folder, key)
    assert wrong(look(folder, key)).keys() & {"provenance", "evidence"}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [("version", "2.0", "is of default-4.12 1.0"), ("kernel", "4.12.1", "release.json describes"),
     ("signed", False, "says that the"), ("name", "other-4.12", "release.json describes"), ("schema", 1, "schema 1"),
     ("version", "a b", "is invalid")],
)  # fmt: skip
def test_facts_that_do_not_match_are_found(folder: Path, key: Path, name: str, value: Any, why: str) -> None:
    change(folder, layout.FACTS, set_in(name, to=value))
    sign_again(folder, key)
    assert why in " ".join(wrong(look(folder, key)).values())


# ── unsigned, and failed ──


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    at = workshop.build(tmp_path / "unsigned")
    workshop.tested(at)
    workshop.make(at, None)
    return at.release


def test_an_unsigned_release_holds_only_with_unsigned(unsigned: Path, key: Path) -> None:
    assert "UNSIGNED" in wrong(look(unsigned, key))["signature"]
    report = look(unsigned, None)
    assert report.holds, verify.table(report)
    assert report.rows[0].result == "UNSIGNED"
    for path in sorted(unsigned.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert wrong(look(unsigned, None)), path.name
        path.write_bytes(whole)


def test_a_signed_release_is_not_taken_for_an_unsigned_one(folder: Path) -> None:
    assert "this release is signed" in wrong(look(folder, None))["signature"]
    (folder / layout.SIGNATURE).unlink()
    assert "says that the release is signed, which is wrong" in wrong(look(folder, None))["manifest"]


def test_a_check_that_failed_spoils_the_whole_unless_accepted(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "failed")
    workshop.tested(at)
    workshop.tested(at, "pc", 1, "failed")
    workshop.make(at, key)
    assert wrong(look(at.release, key)) == {"results": "FAIL: boot-test-pc-1, by its maker's own evidence"}
    assert look(at.release, key, allow_failed=True).holds


# ── the command ──


def test_the_command(
    made: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.main(["verify", str(made), "--key", f"{key}.pub"]) == 0
    said = capsys.readouterr()
    assert "default-4.12 1.0: holds" in said.out and "not checked" in said.out
    assert cli.main(["verify", str(made)]) == 1
    assert "no key to verify with" in capsys.readouterr().err
    (tmp_path / "minguest").mkdir()
    (tmp_path / "minguest/trusted-keys").write_text(f"maker {Path(f'{key}.pub').read_text()}")
    assert cli.main(["verify", str(made)]) == 0
    assert "by maker (ssh-ed25519" in capsys.readouterr().out
    assert cli.main(["verify", str(tmp_path / "nowhere"), "--unsigned"]) == 1
    assert "nowhere': no such folder" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path), "--unsigned"]) == 1
    assert "does NOT hold" in capsys.readouterr().err
    assert cli.main(["verifi"]) == 2


def test_a_commit_that_is_none_is_found(folder: Path, key: Path) -> None:
    def changed(statement: Any) -> None:
        used = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        used[:] = [each for each in used if each["name"] != "minguest"]
        used.append({"name": "minguest", "digest": {"gitCommit": "\x1b[2J"}})

    change_statement(folder, layout.PROVENANCE, key, changed)
    sign_again(folder, key)
    assert "is not a commit of git" in wrong(look(folder, key))["provenance"]


def test_a_file_of_the_manifest_that_the_sums_do_not_list_is_found(folder: Path, key: Path) -> None:
    content = b"stranger"
    (folder / "stranger").write_bytes(content)
    facts = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    change(folder, layout.MANIFEST, lambda it: it["files"].update({"stranger": facts}))
    (folder / "stranger").rename(folder.parent / "stranger")
    sign_again(folder, key)
    (folder.parent / "stranger").rename(folder / "stranger")
    assert "describes another stranger than SHA256SUMS" in wrong(look(folder, key))["manifest"]


def test_a_second_signature_is_one_too_many(folder: Path, key: Path, tmp_path: Path) -> None:
    # Each costs time to check, and a stranger's beside the maker's says nothing.
    first = json.loads((folder / layout.PROVENANCE).read_bytes())["signatures"]
    change_statement(folder, layout.PROVENANCE, key, lambda it: None)
    change(folder, layout.PROVENANCE, lambda it: it["signatures"].append({**first[0], "keyid": "SHA256:other"}))
    sign_again(folder, key)
    assert "has 2 signatures instead of one" in wrong(look(folder, key))["provenance"]
