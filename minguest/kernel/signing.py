# SPDX-License-Identifier: Apache-2.0
"""Signed modules: a key of the guest's own, of which the kernel gets the certificate and nothing else.

Left to itself, kbuild makes a key in the folder of the build, where no module can be signed with it later, and where
it makes two builds differ. So the key is the user's file. Only `sign` reads its private half: it is never in a store,
in kernel-devel or in a bundle.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from minguest.util import run
from minguest.util.errors import ToolError, UserError

# The certificate's name in the O= folder; the config has this name, and no path of the machine.
CERTIFICATE = "certs/module_key.pem"
# What the kernel needs to check signatures. 4.12 would take SHA-1.
OPTIONS: Mapping[str, str | int | bool] = {"MODULE_SIG": True, "MODULE_SIG_SHA256": True, "MODULE_SIG_KEY": CERTIFICATE}
HASH = "sha256"
MAKE = (
    "openssl req -new -x509 -newkey rsa:3072 -nodes -days 3650 -subj '/CN=modules/' -sha256 "
    "-addext 'basicConstraints=critical,CA:FALSE' -addext 'keyUsage=digitalSignature' "
    "-keyout {0} -out {0}; chmod 600 {0}"
)
# Behind a signed module, at the very end (include/linux/module_signature.h).
MARK = b"~Module signature appended~\n"
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----\n.*?\n-----END \1-----\n", re.DOTALL)


def certificate(key: Path, where: str) -> str:
    """The certificate in a PEM file that also has the private key; UserError, which names `where`, if it is none."""
    remedy = MAKE.format(key)
    try:
        mode, text = key.stat().st_mode, key.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}", f"make a key: {remedy}") from error
    parts = {match[1]: match[0] for match in _PEM.finditer(text)}
    if "CERTIFICATE" not in parts or not any(name.endswith("PRIVATE KEY") for name in parts):
        raise UserError(f"{where}: has not both a private key and its certificate, as PEM", f"make a key: {remedy}")
    if "ENCRYPTED PRIVATE KEY" in parts:
        raise UserError(f"{where}: its private key has a passphrase", "only a key without one can sign here")
    if mode & 0o077:
        raise UserError(f"{where}: others can read the private key", f"chmod 600 {key}")
    return parts["CERTIFICATE"]


def sign(module: Path, key: Path, devel: Path) -> None:
    """Append a signature to a module, with the program of an unpacked kernel-devel."""
    program = devel / "scripts/sign-file"
    if not program.is_file():
        raise ToolError("this kernel does not check signatures: kernel-devel has no scripts/sign-file")
    run.run([program, HASH, key, key, module], bare=True)
    if not signed(module):
        raise ToolError(f"{module}: scripts/sign-file did not sign it")


def signed(module: Path) -> bool:
    """Whether a module has a signature, of any key."""
    with module.open("rb") as file:
        file.seek(max(0, module.stat().st_size - len(MARK)))
        return file.read() == MARK
