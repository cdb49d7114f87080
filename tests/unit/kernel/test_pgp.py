# SPDX-License-Identifier: Apache-2.0
"""Signatures as kernel.org makes them, checked by the real gpgv with throwaway keys.

tests/data/signature/ was made with gpg in a temporary home: `signer` signed tiny.tar (not tiny.tar.xz), `other` did
not, and `late` signed it too with a key that expired in 2020.
"""

import gzip
import lzma
import os
import threading
from pathlib import Path

import pytest

from minguest.kernel import pgp
from minguest.util.errors import ToolError, UserError
from tests import ROOT

DATA = ROOT / "tests/data/signature"
SIGNED = (DATA / "tiny.tar.sign").read_bytes()
FINGERPRINT = "B048441603F47044AE4CD880B65865C5E77CDE4B"


def test_a_good_signature_names_who_made_it() -> None:
    who = pgp.verify_tarball(DATA / "tiny.tar.xz", SIGNED, [DATA / "other.asc", DATA / "signer.asc"])
    assert who == f"Test Signer <signer@example.org>, key {FINGERPRINT}"


def test_the_signature_is_over_the_uncompressed_tar(tmp_path: Path) -> None:
    again = tmp_path / "tiny.tar.gz"
    again.write_bytes(gzip.compress(lzma.decompress((DATA / "tiny.tar.xz").read_bytes())))
    assert FINGERPRINT in pgp.verify_tarball(again, SIGNED, [DATA / "signer.asc"])


def test_a_changed_tarball_is_refused(tmp_path: Path) -> None:
    content = lzma.decompress((DATA / "tiny.tar.xz").read_bytes()).replace(b"VERSION = 0", b"VERSION = 1")
    changed = tmp_path / "changed.tar.xz"
    changed.write_bytes(lzma.compress(content))
    with pytest.raises(ToolError, match=r"(?s)changed\.tar\.xz: does not match.*Test Signer.*signer\.asc.*remedy: "):
        pgp.verify_tarball(changed, SIGNED, [DATA / "signer.asc"])


def test_another_ones_signature_is_refused() -> None:
    with pytest.raises(ToolError, match=r"not among the trusted ones \(B65865C5E77CDE4B\).*other\.asc"):
        pgp.verify_tarball(DATA / "tiny.tar.xz", SIGNED, [DATA / "other.asc"])


def test_an_expired_key_is_refused() -> None:
    late = (DATA / "late.sign").read_bytes()
    with pytest.raises(ToolError, match=r"Late Signer.*expired"):
        pgp.verify_tarball(DATA / "tiny.tar.xz", late, [DATA / "late.asc"])


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("junk", [b"", b"<html>not found</html>"])
def test_what_is_no_signature_is_refused_and_nothing_hangs(tmp_path: Path, junk: bytes) -> None:
    # More than a pipe holds: gpgv ends without reading it, and the thread that writes must end too.
    big = tmp_path / "big.tar"
    big.write_bytes(bytes(1 << 20))
    before = set(threading.enumerate())
    with pytest.raises(ToolError, match=r"could not be checked"):
        pgp.verify_tarball(big, junk, [DATA / "signer.asc"])
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # run()'s timer is cancelled and ends a moment later
        assert not thread.is_alive()


def test_a_cut_tarball_is_called_cut_not_forged(tmp_path: Path) -> None:
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes((DATA / "tiny.tar.xz").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.tar\.xz: cut short"):
        pgp.verify_tarball(cut, SIGNED, [DATA / "signer.asc"])


def test_without_gpgv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert not pgp.available()
    with pytest.raises(ToolError, match="gpgv: no such program"):
        pgp.verify_tarball(DATA / "tiny.tar.xz", SIGNED, [DATA / "signer.asc"])


@pytest.mark.parametrize(("name", "length"), [("gregkh", 2252), ("torvalds", 1197)])
def test_the_keys_of_this_project_are_whole(name: str, length: int) -> None:
    binary = pgp.dearmour(ROOT / f"configs/keys/{name}.asc")
    # RFC 4880, 4.2: the first packet is a public key (tag 6, old format, two bytes of length).
    assert (binary[0], len(binary)) == (0x99, length)


def test_several_keys_in_one_file_and_headers_and_no_checksum(tmp_path: Path) -> None:
    one, other = ((DATA / name).read_text() for name in ("signer.asc", "other.asc"))
    lines = one.splitlines()
    assert lines[-2].startswith("=")
    bare = "\r\n".join([lines[0], "Comment: by hand", "Version: 1", *lines[1:-2], lines[-1]])
    both = tmp_path / "both.asc"
    both.write_bytes(f"text before\n{bare}\n\n{other}".encode())
    assert pgp.dearmour(both) == pgp.dearmour(DATA / "signer.asc") + pgp.dearmour(DATA / "other.asc")


def test_a_damaged_key_is_reported(tmp_path: Path) -> None:
    text = (DATA / "signer.asc").read_text()
    line = text.splitlines()[3]
    damaged = tmp_path / "damaged.asc"
    damaged.write_text(text.replace(line, line[:9] + ("A" if line[9] != "A" else "B") + line[10:]))
    with pytest.raises(UserError, match=r"damaged\.asc: damaged: its checksum"):
        pgp.dearmour(damaged)
    damaged.write_text("<html>")
    with pytest.raises(UserError, match="no PGP PUBLIC KEY BLOCK"):
        pgp.dearmour(damaged)
    with pytest.raises(UserError, match="No such file"):
        pgp.dearmour(tmp_path / "none.asc")
