# SPDX-License-Identifier: Apache-2.0
"""Signatures of `ssh-keygen -Y`: by a key that its owner already has, from a file, an agent or a token.

Chosen over minisign and cosign because users have the tool and the keys: OpenSSH 8.2 (2020) and later, on every
distribution, macOS and Windows; the same keys and the same file of trusted signers sign and verify commits of git.
The format: PROTOCOL.sshsig of OpenSSH. Trusted keys: ssh-keygen(1), ALLOWED SIGNERS.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from minguest.util import scratch
from minguest.util.errors import UserError, printable
from minguest.util.run import run

# A signature is valid for one purpose: one that git or a mail program made over the same bytes is refused here.
NAMESPACE = "minguest"
# Seconds: a hardware key waits for a touch.
DEADLINE_S = 60
BEGIN, END = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----\n"
WIDTH = 70
MAGIC = b"SSHSIG"
# The name of the one key that the user gave; ssh-keygen requires a name for each key.
GIVEN = "the-key-that-was-given"
# ssh-keygen's message if no line of the file matches.
UNKNOWN = "No principal matched."
# Most bytes that are read from a file of public keys.
KEY_MAX = 64 << 10
KEY_KIND = re.compile(r"(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+")


class Signature(msgspec.Struct, frozen=True):
    """The claims of a signature about itself; none is verified."""

    fingerprint: str
    """`SHA256:…` of the public key, as ssh-keygen -l prints it."""
    kind: str
    """The key's type, such as ssh-ed25519."""
    namespace: str


def sign(data: bytes, key: Path) -> bytes:
    """An armoured signature over `data`.

    `key` is a private key, or a public one whose private half an ssh-agent has. It never asks for a passphrase: use
    the agent. Raises UserError when the key is not a key or cannot be used.
    """
    check_key(key)
    with scratch.folder("sign") as folder:
        message = folder / "message"
        message.write_bytes(data)
        status, output = run(
            ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", key, message],
            # No window that asks for a passphrase: the session may be unattended.
            env={"SSH_ASKPASS_REQUIRE": "never"},
            deadline=DEADLINE_S,
            check=False,
        )
        result = message.with_name("message.sig")
        if status or not result.exists():
            raise UserError(
                f"key={key}: ssh-keygen cannot sign with it: {' '.join(output.split())}",
                "name a private key without a passphrase; or ssh-add the key and name its .pub file",
            )
        return result.read_bytes()


def check_key(key: Path) -> None:
    """UserError unless `key` is a file that could be a key; the key itself is never an argument."""
    try:
        there = key.is_file()
    except OSError:  # a name that is too long
        there = False
    if not there:
        # Do not show a key that was pasted instead of its file name.
        shown = "a key's own text" if "-----" in str(key) else str(key)
        raise UserError(f"key={shown}: no such file", "name a private key with key=FILE, or a .pub of one in ssh-agent")


def parse(armoured: bytes, where: str) -> Signature:
    """Read a signature; UserError unless it is exactly as ssh-keygen writes one.

    ssh-keygen itself is more tolerant (blanks in base64, text after the end); here one changed byte is an error.
    """
    try:
        blob = base64.b64decode(b"".join(_body(armoured).split(b"\n")), validate=True)
        if armour(blob) != armoured:
            raise ValueError("not as ssh-keygen writes it")
        if blob[:6] != MAGIC or struct.unpack_from(">I", blob, 6) != (1,):
            raise ValueError("not version 1 of SSHSIG")
        public, namespace, _reserved, _hash, _signature = _strings(blob[10:], 5)
        kind = _strings(public, 1, more=True)[0]
        return Signature(
            "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("="),
            kind.decode("ascii"),
            namespace.decode("utf-8"),
        )
    except (ValueError, struct.error, binascii.Error) as error:
        raise UserError(f"{where}: not an SSH signature, or a damaged one: {error}") from error


def armour(blob: bytes) -> bytes:
    """The text form of a signature's bytes."""
    text = base64.b64encode(blob)
    return BEGIN + b"".join(text[at : at + WIDTH] + b"\n" for at in range(0, len(text), WIDTH)) + END


def blob(armoured: bytes) -> bytes:
    """The bytes of a signature that `parse` accepts."""
    return base64.b64decode(_body(armoured))


def _body(armoured: bytes) -> bytes:
    if not armoured.startswith(BEGIN) or not armoured.endswith(END):
        raise ValueError("no SSH SIGNATURE armour")
    return armoured[len(BEGIN) : -len(END)]


def _strings(data: bytes, count: int, *, more: bool = False) -> list[bytes]:
    """SSH strings: a length of 4 bytes, big-endian, and as many bytes (RFC 4251, 5)."""
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from(">I", data)
        if len(data) < 4 + length:
            raise ValueError("cut short")
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    if data and not more:
        raise ValueError("bytes after its end")
    return found


def check(data: bytes, armoured: bytes, where: str) -> None:
    """UserError unless a signature matches `data`, by any key: it shows that it is complete, not that it is trusted."""
    parse(armoured, where)
    with scratch.folder("verify") as folder:
        signature, message = folder / "signature", folder / "message"
        signature.write_bytes(armoured)
        message.write_bytes(data)
        with message.open("rb") as content:
            argv: list[str | Path] = ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", signature]
            status, output = run(argv, stdin=content, deadline=DEADLINE_S, check=False)
    if status:
        raise UserError(
            f"{where}: does not match the signed data: one of the two was changed ({' '.join(output.split())})"
        )


class Verifier(Protocol):
    """Who may sign."""

    def verify(self, data: bytes, armoured: bytes, where: str) -> str:
        """Who signed `data`. Raises UserError: damaged, by another key, or over other bytes."""


class Anyone:
    """Accepts any signer: the signature must only match."""

    def verify(self, data: bytes, armoured: bytes, where: str) -> str:
        """The key's fingerprint."""
        check(data, armoured, where)
        signature = parse(armoured, where)
        return f"{signature.kind} {signature.fingerprint}"


class Trusted:
    """Keys that may sign: an allowed_signers file, as ssh-keygen and git read it."""

    def __init__(self, path: Path, shown: str) -> None:
        self.path = path
        self.shown = shown

    def verify(self, data: bytes, armoured: bytes, where: str) -> str:
        """The trusted signer of `data`, by the name in the file."""
        claimed = parse(armoured, where)
        if claimed.namespace != NAMESPACE:
            raise UserError(f"{where}: was made for {claimed.namespace!r}, not for {NAMESPACE!r}")
        check(data, armoured, where)
        with scratch.folder("verify") as folder:
            signature, message = folder / "signature", folder / "message"
            signature.write_bytes(armoured)
            message.write_bytes(data)
            find: list[str | Path] = ["ssh-keygen", "-Y", "find-principals", "-s", signature, "-f", self.path]
            _, principals = run(find, deadline=DEADLINE_S, check=False, merge=False)
            refused = ""
            # A key may have several names there, and lines that have expired or are for another purpose.
            for principal in filter(None, principals.splitlines()):
                argv: list[str | Path] = ["ssh-keygen", "-Y", "verify", "-f", self.path]
                argv += ["-I", principal, "-n", NAMESPACE, "-s", signature]
                with message.open("rb") as content:
                    status, refused = run(argv, stdin=content, deadline=DEADLINE_S, check=False)
                if status == 0:
                    who = self.shown if principal == GIVEN else principal
                    return printable(f"{who} ({claimed.kind} {claimed.fingerprint})")
            _, output = run(find, deadline=DEADLINE_S, check=False)
        lines = [*output.splitlines(), *refused.splitlines()]
        complaint = "; ".join(line for line in lines if line not in (UNKNOWN, *principals.splitlines()))
        raise UserError(
            f"{where}: is by {claimed.kind} {claimed.fingerprint}, which is not trusted here ({self.shown})"
            + (f": {complaint}" if complaint else ""),
            "trust it only if its owner gave you this fingerprint: pass --key FILE.pub, or add a line to trusted-keys",
        )


@contextmanager
def trusting(key: Path | None, trusted: Path, *, unsigned: bool = False) -> Iterator[Trusted | None]:
    """The keys to trust: one public key's file, or a file of allowed signers; None if `unsigned` is accepted.

    UserError if neither can be read.
    """
    if unsigned:
        yield None
        return
    if key is None:
        if not trusted.is_file():
            raise UserError(
                f"no key to verify with: {trusted} does not exist",
                "pass one public key with --key FILE.pub; or write lines `NAME ssh-ed25519 AAAA…` into that file",
            )
        yield Trusted(trusted, str(trusted))
        return
    lines = _public_keys(key)
    with scratch.folder("trusted") as folder:
        path = folder / "trusted"
        path.write_text("".join(f"{GIVEN} {line}\n" for line in lines), encoding="utf-8")
        yield Trusted(path, str(key))


def _public_keys(path: Path) -> list[str]:
    """The keys of a .pub file without comments; UserError if there are none."""
    try:
        # Also a pipe, such as a shell's <(…).
        with path.open("rb") as file:
            content = file.read(KEY_MAX).decode("ascii", "replace")
    except OSError as error:
        raise UserError(f"--key {path}: {error.strerror}", "name the signer's .pub file") from error
    lines = [line.split() for line in content.splitlines()]
    found = [" ".join(fields[:2]) for fields in lines if len(fields) > 1 and KEY_KIND.fullmatch(fields[0])]
    if not found:
        raise UserError(f"--key {path}: no public key in OpenSSH's format", "name the signer's .pub file")
    return found
