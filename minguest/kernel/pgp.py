# SPDX-License-Identifier: Apache-2.0
"""OpenPGP signatures as kernel.org makes them: detached, over the *uncompressed* tar.

https://www.kernel.org/signature.html: the tar is signed before it is compressed, so one `.tar.sign` serves .gz and
.xz. gpgv checks it: it uses no trust database and no key server, only the keys that are passed to it.
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
    """Check a detached signature over the tar in `tarball` and return its signer: name and fingerprint.

    `keys` are ASCII-armoured files; a good signature by any of them is accepted. Nothing is unpacked.
    Raises ToolError when gpgv is missing or the signature is bad, expired or by another key; UserError when the
    tarball is damaged or a key file holds no key.
    """
    with scratch.folder("gpgv") as folder:
        keyring = folder / "keyring.gpg"
        keyring.write_bytes(b"".join(dearmour(key) for key in keys))
        detached = folder / "signature"
        detached.write_bytes(signature)
        # --homedir: not the user's, which may have a trustedkeys.kbx. --status-fd: output for programs.
        argv: list[str | Path] = ["gpgv", "--homedir", folder, "--status-fd", "1", "--keyring", keyring, detached, "-"]
        status, output = _feed(tarball, argv)
    statuses = [line.split(" ") for line in output.splitlines() if line.startswith("[GNUPG:] ")]
    good = [fields for fields in statuses if fields[1] == "GOODSIG"]
    valid = [fields for fields in statuses if fields[1] == "VALIDSIG"]
    if status == 0 and good and valid:
        # GOODSIG <key id> <name>; VALIDSIG <fingerprint of the key, or subkey> … <fingerprint of the primary key>
        return f"{' '.join(good[0][3:])}, key {valid[0][-1]}"
    raise ToolError(
        f"{tarball}: {_complaint(statuses)}; trusted keys: {', '.join(key.name for key in keys) or 'none'}"
        + "".join(f"\n  | {line}" for line in output.splitlines() if not line.startswith("[GNUPG:] ")),
        "do not build it. Remove the file and download it again; if the error stays, the mirror or the signature is "
        "wrong: compare with https://www.kernel.org/signature.html",
    )


def dearmour(key: Path) -> bytes:
    """The binary key in an ASCII-armoured file (RFC 4880 section 6, RFC 9580 section 6), as gpgv reads it.

    Raises UserError when there is none or it is damaged. RFC 9580 makes the checksum optional and says that readers
    must not reject a key for it; a given one is checked here, because these files come with the project.
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
            raise UserError(f"{key}: damaged: its checksum does not match", "restore it from the project's repository")
        content += binary
    return content


def _crc24(data: bytes) -> int:
    """The checksum of ASCII armour: RFC 4880, section 6.1."""
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
            pass  # the program has ended; its output says why
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


def _complaint(statuses: Sequence[Sequence[str]]) -> str:
    """What is wrong, from gpgv's status lines (doc/DETAILS in GnuPG)."""
    for fields in statuses:
        match fields[1]:
            case "BADSIG":
                return (
                    f"does not match the signature by {' '.join(fields[3:])}: one of the two was changed or is of "
                    "another file"
                )
            case "NO_PUBKEY":
                return f"is signed by a key that is not among the trusted ones ({fields[2]})"
            case "EXPSIG" | "EXPKEYSIG" | "REVKEYSIG":
                return f"its signature or the key of {' '.join(fields[3:])} has expired or was revoked ({fields[1]})"
    return "its signature could not be checked: it is not a signature, or of a kind that gpgv does not know"
