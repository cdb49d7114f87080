# SPDX-License-Identifier: Apache-2.0
"""A release holds, or verify says what does not: one changed byte, one paper that tells another story."""

import base64
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minguest import cli, files, released, sshsig, verify
from tests import workshop

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


def look(folder: Path, key: Path | None, **words: Any) -> verify.Report:
    public = key.with_suffix(".pub") if key else None
    with sshsig.trusting(public, Path("nowhere"), unsigned=key is None) as trusted:
        return verify.verify(folder, trusted, **words)


def wrong(report: verify.Report) -> dict[str, str]:
    assert not report.holds
    return {row.what: row.detail for row in report.rows if row.result == "WRONG"}


def sign_again(folder: Path, key: Path) -> None:
    """Sums and their signature, as a trusted signer would make them of files that do not agree."""
    names = [path.name for path in folder.iterdir() if path.name not in (released.SUMS, released.SIGNATURE)]
    sums = released.render_sums({name: files.sha256(folder / name) for name in names}).encode()
    (folder / released.SUMS).write_bytes(sums)
    (folder / released.SIGNATURE).write_bytes(sshsig.sign(sums, key))


def change(folder: Path, name: str, spoil: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    content = json.loads((folder / name).read_bytes())
    spoil(content)
    (folder / name).write_text(json.dumps(content))


def change_statement(folder: Path, name: str, key: Path, spoil: Callable[[Any], None]) -> None:
    """Change a DSSE envelope's statement and sign it again by the trusted key."""
    envelope = json.loads((folder / name).read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    spoil(statement)
    payload = json.dumps(statement).encode()
    kind = envelope["payloadType"].encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)  # protocol.md of DSSE
    armoured = sshsig.sign(pae, key)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(sshsig.blob(armoured)).decode()
    (folder / name).write_text(json.dumps(envelope))


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
    assert ("other files", "not checked", "no part of the release: stranger") in [
        (row.what, row.result, row.detail) for row in report.rows
    ]


def test_another_key_is_not_trusted(made: Path, tmp_path: Path) -> None:
    found = wrong(look(made, workshop.key(tmp_path)))
    assert list(found) == ["signature"]
    assert "which is not trusted here" in found["signature"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("../outside", "is no file name that a release may have"),
        ("/etc/passwd", "is no file name that a release may have"),
        ("a/b", "is no file name that a release may have"),
        (".hidden", "is no file name that a release may have"),
    ],
)
def test_sums_that_name_files_elsewhere_are_refused(folder: Path, key: Path, name: str, what: str) -> None:
    sums = (folder / released.SUMS).read_text() + f"{'0' * 64}  {name}\n"
    (folder / released.SUMS).write_text(sums)
    (folder / released.SIGNATURE).write_bytes(sshsig.sign(sums.encode(), key))
    assert what in wrong(look(folder, key))["sums"]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ""])
def test_a_manifest_that_names_files_elsewhere_is_refused(folder: Path, key: Path, name: str) -> None:
    (folder.parent / "outside").write_text("")
    change(folder, released.MANIFEST, lambda it: it["files"].update({name: it["files"]["bzImage"]}))
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
    ("spoil", "told"),
    [
        (lambda bom: part(bom, "file:bzImage")["hashes"][0].update(content="0" * 64), "the files"),
        (lambda bom: bom["components"].remove(part(bom, "file:initrd.img")), "the files"),
        (lambda bom: part(bom, "linux").update(version="4.12.1"), "linux"),
        (lambda bom: part(bom, "linux")["externalReferences"][0]["hashes"][0].update(content="0" * 64), "source of"),
        (lambda bom: part(bom, "linux")["pedigree"]["patches"].pop(), "the patches"),
        (lambda bom: part(bom, "linux")["properties"].clear(), "the origin of linux"),
        (lambda bom: part(bom, "ovmf").update(version="2022.11"), "OVMF"),
        (lambda bom: part(bom, "ovmf").update(externalReferences=[]), "OVMF"),
        (lambda bom: part(bom, "initd")["hashes"][0].update(content="0" * 64), "initd"),
        (lambda bom: part(bom, "gcc").update(version="13"), "the tools"),
        (lambda bom: part(bom, "musl").pop("licenses"), "the licences"),
        (set_in("metadata", "component", "version", to="2.0"), "the release"),
        (set_in("specVersion", to="1.4"), "CycloneDX 1.6 is known here"),
        (lambda bom: bom.pop("components"), "not in the form"),
        (lambda bom: bom["components"].remove(part(bom, "gcc")), "not in the form"),
    ],
)  # fmt: skip
def test_an_sbom_that_tells_another_story_is_found(
    folder: Path, key: Path, spoil: Callable[[Any], None], told: str
) -> None:
    change(folder, released.SBOM, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["SBOM"]
    assert told in found["SBOM"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (set_in("subject", 0, "digest", "sha256", to="0" * 64), "is not about"),
        (lambda it: it["subject"].pop(), "is not about"),
        (set_in("predicateType", to="https://slsa.dev/provenance/v0.2"), "is a https://slsa.dev/provenance/v0.2"),
        (set_in("_type", to="https://in-toto.io/Statement/v0.1"), "statement of type"),
        (set_in("predicate", "buildDefinition", "resolvedDependencies", 0, "digest", "sha256", to="0" * 64), "its re"),
        (lambda it: it["predicate"]["buildDefinition"]["resolvedDependencies"].pop(1), "resolvedDep"),
        (set_in("predicate", "buildDefinition", "internalParameters", "tools", "gcc", to="14"), "internalParameters"),
        (set_in("predicate", "buildDefinition", "externalParameters", "guest", to={}), "externalParameters"),
        (set_in("predicate", "runDetails", "builder", "id", to="https://github.com/…"), "runDetails"),
        (set_in("predicate", to={}), "not in the form"),
    ],
)  # fmt: skip
def test_a_provenance_that_tells_another_story_is_found(
    folder: Path, key: Path, spoil: Callable[[Any], None], told: str
) -> None:
    change_statement(folder, released.PROVENANCE, key, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["provenance"]
    assert told in found["provenance"]


def check(statement: Any, name: str) -> Any:
    return next(each for each in statement["predicate"]["checks"] if each["name"] == name)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (set_in("subject", 0, "digest", "sha256", to="0" * 64), "is not about"),
        (lambda it: check(it, "boot-test-q35-8").update(result="PASS"), "PASS without a verdict"),
        (lambda it: check(it, "boot-test-pc-8").update(result="NOT RUN"), "but its verdict is another"),
        (lambda it: check(it, "boot-test-pc-8").update(files={}), "is not what"),
        (lambda it: check(it, "boot-test-pc-8")["files"].update({"boot-test-pc-8/report.json": "0" * 64}), "is not wh"),
        (lambda it: it["predicate"]["checks"].remove(check(it, "boot-test-q35-4")), "is not what"),
        (lambda it: check(it, "boot-test-pc-8").update(result="MAYBE"), "Invalid enum value"),
        (set_in("predicate", "schema", to=2), "schema 2, this minguest knows 1"),
        (set_in("predicateType", to="other"), "is a other"),
    ],
)  # fmt: skip
def test_evidence_that_tells_another_story_is_found(
    folder: Path, key: Path, spoil: Callable[[Any], None], told: str
) -> None:
    change_statement(folder, released.EVIDENCE, key, spoil)
    sign_again(folder, key)
    found = wrong(look(folder, key))
    assert list(found) == ["evidence"]
    assert told in found["evidence"]


def test_evidence_of_other_bytes_is_found(made: Path, folder: Path, key: Path, tmp_path: Path) -> None:
    # A signer who puts the evidence of another bundle beside this one, and signs all of it again.
    other = workshop.build(tmp_path / "other", "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\n")
    workshop.tested(other)
    workshop.make(other, key)
    for name in (released.EVIDENCE, released.EVIDENCE_FILES):
        shutil.copyfile(other.release / name, folder / name)
    sums = json.loads((made / released.MANIFEST).read_bytes())["files"]

    def about_this(statement: Any) -> None:
        for subject in statement["subject"]:
            if subject["name"] in sums:
                subject["digest"]["sha256"] = sums[subject["name"]]["sha256"]

    change_statement(folder, released.EVIDENCE, key, about_this)
    sign_again(folder, key)
    assert "is the test of other bytes" in wrong(look(folder, key))["evidence"]


@pytest.mark.parametrize("name", [released.PROVENANCE, released.EVIDENCE])
def test_an_attestation_by_another_key_or_by_nobody_is_found(
    folder: Path, key: Path, tmp_path: Path, name: str
) -> None:
    change_statement(folder, name, workshop.key(tmp_path), lambda it: None)
    sign_again(folder, key)
    assert "which is not trusted here" in "".join(wrong(look(folder, key)).values())
    change(folder, name, set_in("signatures", to=[]))
    sign_again(folder, key)
    assert "nobody signed it" in "".join(wrong(look(folder, key)).values())


@pytest.mark.parametrize("name", [released.PROVENANCE, released.EVIDENCE])
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
    ("name", "value", "told"),
    [("version", "2.0", "the release"), ("kernel", "4.12.1", "tells of"), ("signed", False, "says that the release is"),
     ("name", "other-4.12", "tells of"), ("schema", 2, "schema 2"), ("version", "a b", "cannot be")],
)  # fmt: skip
def test_facts_that_tell_another_story_are_found(folder: Path, key: Path, name: str, value: Any, told: str) -> None:
    change(folder, released.FACTS, set_in(name, to=value))
    sign_again(folder, key)
    assert told in " ".join(wrong(look(folder, key)).values())


# ── unsigned, and failed ──


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    at = workshop.build(tmp_path / "unsigned")
    workshop.tested(at)
    workshop.make(at, None)
    return at.release


def test_an_unsigned_release_holds_only_when_asked_by_name(unsigned: Path, key: Path) -> None:
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
    (folder / released.SIGNATURE).unlink()
    assert "says that the release is signed, which it is not" in wrong(look(folder, None))["manifest"]


def test_a_check_that_failed_spoils_the_whole_unless_accepted(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "failed")
    workshop.tested(at)
    workshop.tested(at, "pc", 1, "failed")
    workshop.make(at, key)
    assert wrong(look(at.release, key)) == {"results": "FAIL: boot-test-pc-1, says its own maker"}
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
    assert "nowhere: no such folder" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path), "--unsigned"]) == 1
    assert "does NOT hold" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verifi"])
    assert stopped.value.code == 2
