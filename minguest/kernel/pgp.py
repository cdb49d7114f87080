# SPDX-License-Identifier: Apache-2.0
"""OpenPGP signatures as kernel.org makes them: detached, over the *uncompressed* tar.

https://www.kernel.org/signature.html: the tar is signed before it is compressed, so one `.tar.sign` does for .gz
and .xz. gpgv checks it: it has no trust database and no key server, only the keys that it is given.
"""

import base64
import binascii
import os
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from minguest.util import archive, scratch
from minguest.util.errors import MinguestError, ToolError, UserError
from minguest.util.run import run

# Seconds: 1.5 GB of Linux 6.12 take 10 s to decompress and hash on a small machine.
DEADLINE_S = 600

_ARMOUR = re.compile(
    r"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\n"
    r"(?:[^\n:]+: [^\n]*\n)*"  # headers such as `Comment: …`
    r"[ \t]*\n"
    r"(?P<body>[A-Za-z0-9+/=\s]+?)\n"
    r"(?:=(?P<checksum>[A-Za-z0-9+/]{4})\s*\n)?"
    r"-----END PGP PUBLIC KEY BLOCK-----",
    re.MULTILINE,
)


def available() -> bool:
    """Whether gpgv is on this machine (Debian: package gpgv)."""
    return shutil.which("gpgv") is not None


def verify_tarball(tarball: Path, signature: bytes, keys: Sequence[Path]) -> str:
    """Check a detached signature over the tar inside `tarball` and say who made it: name and fingerprint.

    `keys` are ASCII-armoured files; a good signature by any of them will do. Nothing is unpacked.
    Raises ToolError when there is no gpgv or the signature is bad, expired or by another key; UserError when the
    tarball is damaged or a key file is no key.
    """
    with scratch.folder("gpgv") as folder:
        keyring = folder / "keyring.gpg"
        keyring.write_bytes(b"".join(dearmour(key) for key in keys))
        detached = folder / "signature"
        detached.write_bytes(signature)
        # --homedir: not the user's, where a trustedkeys.kbx may be. --status-fd: words that are made for programs.
        argv: list[str | Path] = ["gpgv", "--homedir", folder, "--status-fd", "1", "--keyring", keyring, detached, "-"]
        status, output = _feed(tarball, argv)
    said = [line.split(" ") for line in output.splitlines() if line.startswith("[GNUPG:] ")]
    good = [words for words in said if words[1] == "GOODSIG"]
    valid = [words for words in said if words[1] == "VALIDSIG"]
    if status == 0 and good and valid:
        # GOODSIG <key id> <name>; VALIDSIG <fingerprint of the key, or subkey> … <fingerprint of the primary key>
        return f"{' '.join(good[0][3:])}, key {valid[0][-1]}"
    raise ToolError(
        f"{tarball}: {_complaint(said)}; keys that would do: {', '.join(key.name for key in keys) or 'none'}"
        + "".join(f"\n  | {line}" for line in output.splitlines() if not line.startswith("[GNUPG:] ")),
        "do not build it. Remove the file and take it again; if that gives the same, the mirror or the signature is "
        "wrong: compare with https://www.kernel.org/signature.html",
    )


def dearmour(key: Path) -> bytes:
    """The binary key in an ASCII-armoured file (RFC 4880 section 6, RFC 9580 section 6), which is what gpgv reads.

    Raises UserError when there is none or it is damaged. RFC 9580 makes the check sum optional and tells readers not
    to reject a key for it; it is checked here where it is given, as these files come with the project.
    """
    try:
        text = key.read_text(encoding="ascii", errors="replace")  # \r\n becomes \n
    except OSError as error:
        raise UserError(f"{key}: cannot be read: {error.strerror}") from error
    blocks = list(_ARMOUR.finditer(text))
    if not blocks:
        raise UserError(f"{key}: holds no PGP PUBLIC KEY BLOCK in ASCII armour", "export one with gpg --armor --export")
    content = b""
    for block in blocks:
        try:
            binary = base64.b64decode("".join(block["body"].split()), validate=True)
        except binascii.Error as error:
            raise UserError(f"{key}: damaged: {error}", "restore it from the project's repository") from error
        checksum = block["checksum"]
        if checksum is not None and base64.b64decode(checksum) != _crc24(binary).to_bytes(3):
            raise UserError(f"{key}: damaged: its check sum does not fit", "restore it from the project's repository")
        content += binary
    return content


def _crc24(data: bytes) -> int:
    """The check sum of ASCII armour: RFC 4880, section 6.1."""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc


def _feed(tarball: Path, argv: Sequence[str | Path]) -> tuple[int, str]:
    """Run a program with the decompressed tarball as its stdin."""
    errors: list[MinguestError] = []
    reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))

    def pour(sink: IO[bytes]) -> None:
        try:
            with sink, archive.decompressed(tarball) as stream:
                shutil.copyfileobj(stream, sink, archive.CHUNK)
        except BrokenPipeError:
            pass  # the program has ended before; what it said tells why
        except MinguestError as error:
            errors.append(error)

    thread = threading.Thread(target=pour, args=(writing,))
    thread.start()
    try:
        result = run(argv, stdin=reading, deadline=DEADLINE_S, check=False, bare=True)
    finally:
        reading.close()  # so that the thread ends when the program did not read to the end
        thread.join()
    if errors:
        raise errors[0]
    return result


def _complaint(said: Sequence[Sequence[str]]) -> str:
    """What is wrong, out of gpgv's status lines (doc/DETAILS in GnuPG)."""
    for words in said:
        match words[1]:
            case "BADSIG":
                return (
                    f"does not fit the signature by {' '.join(words[3:])}: one of the two was changed or is another's"
                )
            case "NO_PUBKEY":
                return f"is signed by a key that is not among the trusted ones ({words[2]})"
            case "EXPSIG" | "EXPKEYSIG" | "REVKEYSIG":
                return f"its signature or the key of {' '.join(words[3:])} has expired or was revoked ({words[1]})"
    return "its signature could not be checked: what is given as one is none, or gpgv does not know its kind"
