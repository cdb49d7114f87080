# SPDX-License-Identifier: Apache-2.0
"""Signatures by real keys and the real ssh-keygen, from a file and from an agent."""

import base64
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest.release import sshsig
from minguest.util.errors import UserError
from tests import workshop

DATA = b"what is signed\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An ssh-agent of this test's own."""
    said = subprocess.run(["ssh-agent", "-s", "-a", tmp_path / "agent"], capture_output=True, text=True, check=True)
    for name, value in re.findall(r"(SSH_\w+)=([^;]+);", said.stdout):
        monkeypatch.setenv(name, value)
    yield
    os.kill(int(os.environ["SSH_AGENT_PID"]), 15)


def test_a_signature_by_a_file_is_verified_by_its_public_half(key: Path) -> None:
    armoured = sshsig.sign(DATA, key)
    with sshsig.trusting(key.with_suffix(".pub"), Path("nowhere")) as trusted:
        assert trusted is not None
        assert trusted.verify(DATA, armoured, "it").startswith(f"{key}.pub (ssh-ed25519 SHA256:")
    sshsig.check(DATA, armoured, "it")


def test_ssh_keygen_itself_agrees(key: Path, tmp_path: Path) -> None:
    (tmp_path / "sig").write_bytes(sshsig.sign(DATA, key))
    (tmp_path / "trusted").write_text(f'me namespaces="minguest" {(key.with_suffix(".pub")).read_text()}')
    argv = ["ssh-keygen", "-Y", "verify", "-f", "trusted", "-I", "me", "-n", "minguest", "-s", "sig"]
    assert subprocess.run(argv, input=DATA, cwd=tmp_path, check=False).returncode == 0
    listed = subprocess.run(["ssh-keygen", "-lf", f"{key}.pub"], capture_output=True, text=True, check=True).stdout
    assert sshsig.parse((tmp_path / "sig").read_bytes(), "it").fingerprint == listed.split()[1]


def test_a_key_in_an_agent_signs_by_its_public_half(agent: None, tmp_path: Path) -> None:
    key = workshop.key(tmp_path)
    subprocess.run(["ssh-add", "-q", key], check=True)
    key.unlink()
    armoured = sshsig.sign(DATA, tmp_path / "key.pub")
    with sshsig.trusting(tmp_path / "key.pub", Path("nowhere")) as trusted:
        assert trusted is not None
        trusted.verify(DATA, armoured, "it")


def test_a_trusted_keys_file_names_who_it_was(key: Path, tmp_path: Path) -> None:
    (tmp_path / "trusted").write_text(f"# ours\nmaker@example.org {key.with_suffix('.pub').read_text()}")
    with sshsig.trusting(None, tmp_path / "trusted") as trusted:
        assert trusted is not None
        assert trusted.verify(DATA, sshsig.sign(DATA, key), "it").startswith("maker@example.org (ssh-ed25519")


def test_what_is_not_good_is_refused(key: Path, tmp_path: Path) -> None:
    other, armoured = workshop.key(tmp_path, "other"), sshsig.sign(DATA, key)
    (tmp_path / "late").write_text(f'me valid-before="20200101" {key.with_suffix(".pub").read_text()}')
    (tmp_path / "broken").write_text("me and you\n")
    for file, name, signature, data, why in [
        (other.with_suffix(".pub"), None, armoured, DATA, r"(?s)by ssh-ed25519 \S+, which is not trusted here.*--key"),
        (key.with_suffix(".pub"), None, armoured, b"other", "does not match the signed data"),
        (None, tmp_path / "late", armoured, DATA, "which is not trusted here .*expired"),
        (None, tmp_path / "broken", armoured, DATA, "which is not trusted here .*invalid key"),
    ]:  # fmt: skip
        with (
            sshsig.trusting(file, name or Path("nowhere")) as trusted,
            pytest.raises(UserError, match=why),
        ):
            assert trusted is not None
            trusted.verify(data, signature, "it")
    with pytest.raises(UserError, match="does not match"):
        sshsig.check(b"other", armoured, "it")


def test_a_signature_for_another_purpose_does_not_count(key: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", key, tmp_path / "data"], check=True)
    with (
        sshsig.trusting(key.with_suffix(".pub"), Path("nowhere")) as trusted,
        pytest.raises(UserError, match="was made for 'git', not for 'minguest'"),
    ):
        assert trusted is not None
        trusted.verify(DATA, (tmp_path / "data.sig").read_bytes(), "it")


def test_every_changed_byte_of_a_signature_is_found(key: Path) -> None:
    armoured = sshsig.sign(DATA, key)
    with sshsig.trusting(key.with_suffix(".pub"), Path("nowhere")) as trusted:
        assert trusted is not None
        for place in range(len(armoured)):
            # A blank for a line's end is what ssh-keygen would not mind.
            for new in {ord(" "), ord("\t"), ord("\n"), armoured[place] ^ 1} - {armoured[place]}:
                spoiled = armoured[:place] + bytes([new]) + armoured[place + 1 :]
                try:
                    sshsig.parse(spoiled, "it")
                except UserError:
                    continue  # found without asking ssh-keygen
                with pytest.raises(UserError):
                    trusted.verify(DATA, spoiled, "it")
    for spoiled in (armoured + b"\n", armoured[:-1], b"", b"\xff", armoured.replace(b"U", b"=", 1)):
        with pytest.raises(UserError, match="it: not an SSH signature, or a damaged one"):
            sshsig.parse(spoiled, "it")


def test_a_blob_with_more_in_it_is_refused(key: Path) -> None:
    blob = sshsig.blob(sshsig.sign(DATA, key))
    for spoiled in (blob + b"\0", blob[:-1], b"SSHSIG", b"XXXSIG" + blob[6:], blob[:9] + b"\x02" + blob[10:]):
        with pytest.raises(UserError, match="damaged"):
            sshsig.parse(sshsig.armour(spoiled), "it")
    assert sshsig.armour(blob) == sshsig.sign(DATA, key)
    assert base64.b64encode(blob)


def test_a_key_that_cannot_sign_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    locked = workshop.key(tmp_path, "locked", "a passphrase")
    alone = workshop.key(tmp_path, "alone")
    alone.unlink()
    (tmp_path / "none").write_text("no key\n")
    for file in (locked, tmp_path / "alone.pub", tmp_path / "none"):
        with pytest.raises(UserError, match=rf"(?s)key={file}: ssh-keygen cannot sign with it.*remedy: .*ssh-add"):
            sshsig.sign(DATA, file)
    for file in (tmp_path, tmp_path / "nowhere", Path("-----BEGIN OPENSSH PRIVATE KEY-----")):
        with pytest.raises(UserError, match=r"no such file.*\n.*key=FILE"):
            sshsig.sign(DATA, file)


def test_what_is_no_public_key_is_named(key: Path, tmp_path: Path) -> None:
    (tmp_path / "none.pub").write_text("no key\n")
    for file in (key, tmp_path / "none.pub", tmp_path / "nowhere.pub"):
        with pytest.raises(UserError, match=f"--key {file}: "), sshsig.trusting(file, Path("nowhere")):
            pass
    with (
        pytest.raises(UserError, match=r"(?s)nowhere does not exist.*--key FILE.pub"),
        sshsig.trusting(None, Path("nowhere")),
    ):
        pass
    with sshsig.trusting(None, Path("nowhere"), unsigned=True) as trusted:
        assert trusted is None
