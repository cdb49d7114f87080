# SPDX-License-Identifier: Apache-2.0
"""Credentials for a registry: read from the files that docker, podman and oras write at login."""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from minguest.util.errors import ToolError, UserError
from minguest.util.run import run

# Seconds for a credential helper, which may wait for a locked keyring.
HELPER_S = 60
# The name of Docker Hub in Docker's clients, and that of its entry in config.json.
HUB, HUB_LOGIN = "docker.io", "https://index.docker.io/v1/"


class Credentials(msgspec.Struct, frozen=True):
    """Credentials for a registry; empty for an anonymous user."""

    user: str = ""
    password: str = ""
    token: str = ""
    """An identity token: token servers give it for a password, and accept it instead of one."""
    origin: str = "no credentials"
    """Where they are from, or which files have none, for messages."""

    def __repr__(self) -> str:
        return f"Credentials({self.origin})"  # no secret in a traceback

    @property
    def basic(self) -> str | None:
        """The Authorization header for user and password (RFC 7617)."""
        return f"Basic {base64.b64encode(f'{self.user}:{self.password}'.encode()).decode()}" if self.user else None


class _Login(msgspec.Struct, frozen=True):
    """One of config.json's `auths`."""

    auth: str = ""
    identitytoken: str = ""


class _Logins(msgspec.Struct, frozen=True):
    """config.json of Docker, auth.json of podman (containers-auth.json(5)): the keys that matter here."""

    auths: dict[str, _Login] = {}
    credHelpers: dict[str, str] = {}
    credsStore: str = ""


class _Helped(msgspec.Struct, frozen=True):
    """What a credential helper prints (https://github.com/docker/docker-credential-helpers)."""

    Username: str
    Secret: str


def find(config_files: Sequence[Path], registry: str) -> Credentials:
    """The credentials for a registry (host[:port]) from the first file that has some; `docker login` writes them.

    In one file: `credHelpers`, then `auths`, then `credsStore`. A missing file and a failing helper are skipped.
    UserError for an unreadable file. Entries for parts of a registry (podman's `host/namespace`) are not used.
    """
    troubles = []
    for path in config_files:
        if not path.exists():
            continue
        try:
            logins = msgspec.json.decode(path.read_bytes(), type=_Logins)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a file of registry credentials: {error}") from error
        try:
            if (found := _login(logins, registry, path)) is not None:
                return found
        except ToolError as error:
            troubles.append(f"; {error.message.splitlines()[0]}")
    looked = ", ".join(map(str, config_files)) or "no file"
    return Credentials(origin=f"no credentials for {registry} in {looked}{''.join(troubles)}")


def _login(logins: _Logins, registry: str, path: Path) -> Credentials | None:
    """The credentials in one file for a registry; ToolError: its helper failed."""
    if helper := logins.credHelpers.get(registry):
        return _from_helper(helper, registry)
    for name, login in logins.auths.items():
        if _host(name) != registry or not (login.auth or login.identitytoken):
            continue
        try:
            user, _, password = base64.b64decode(login.auth, validate=True).decode().partition(":")
        except ValueError:
            raise UserError(
                f"{path}: auth of {name} is not Base64 of user:password", f"log in again: docker login {registry}"
            ) from None
        return Credentials(user, password, login.identitytoken, f"as {user or 'the owner of a token'}, {path}")
    return _from_helper(logins.credsStore, registry) if logins.credsStore else None


def _from_helper(helper: str, registry: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    with tempfile.TemporaryFile() as query:
        query.write((HUB_LOGIN if registry == HUB else registry).encode())
        query.seek(0)
        status, output = run([program, "get"], stdin=query, deadline=HELPER_S, check=False)
    if status != 0:
        return None  # among other reasons, because it knows nothing
    try:
        # Warnings may surround it.
        found = msgspec.json.decode(output[output.index("{") : output.rindex("}") + 1], type=_Helped)
    except ValueError:
        raise ToolError(f"{program}: its answer has no credentials") from None  # the answer may be secret
    if found.Username == "<token>":
        return Credentials(token=found.Secret, origin=f"as the owner of a token, {program}")
    return Credentials(found.Username, found.Secret, "", f"as {found.Username}, {program}")


def _host(name: str) -> str:
    """The registry of a key of `auths`: older keys are URLs."""
    if name == HUB_LOGIN:
        return HUB
    return urlsplit(name).netloc if "://" in name else name
