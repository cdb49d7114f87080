# SPDX-License-Identifier: Apache-2.0
"""What a registry is told of the user: read from the files that docker, podman and oras log in with."""

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from minguest.util.errors import ToolError, UserError
from minguest.util.run import run

# Seconds for a credential helper, which may ask a locked keyring.
HELPER_S = 60
# What Docker's own clients call Docker Hub, and the name of its entry in config.json.
HUB, HUB_LOGIN = "docker.io", "https://index.docker.io/v1/"


class Credentials(msgspec.Struct, frozen=True):
    """What a registry is told of the user; empty for nobody."""

    user: str = ""
    password: str = ""
    token: str = ""
    """An identity token: what token servers give for a password, and take in its place."""
    origin: str = "no credentials"
    """Where they are from, or where none were found, for messages."""

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
    """What the first of the files that has any says for a registry (host[:port]); `docker login` writes them.

    Of one file: `credHelpers`, then `auths`, then `credsStore`. A missing file and a helper that fails say nothing.
    UserError for a file that cannot be read; entries for parts of a registry (podman's `host/namespace`) are not.
    """
    troubles = []
    for path in config_files:
        if not path.exists():
            continue
        try:
            logins = msgspec.json.decode(path.read_bytes(), type=_Logins)
        except (OSError, msgspec.DecodeError) as error:
            raise UserError(f"{path}: no file of registry credentials: {error}") from error
        try:
            if (found := _login(logins, registry, path)) is not None:
                return found
        except ToolError as error:
            troubles.append(f"; {error.message.splitlines()[0]}")
    looked = ", ".join(map(str, config_files)) or "no file"
    return Credentials(origin=f"no credentials for {registry} in {looked}{''.join(troubles)}")


def _login(logins: _Logins, registry: str, path: Path) -> Credentials | None:
    """What one file says for a registry; ToolError: its helper failed."""
    if helper := logins.credHelpers.get(registry):
        return _ask_helper(helper, registry)
    for name, login in logins.auths.items():
        if _host(name) != registry or not (login.auth or login.identitytoken):
            continue
        try:
            user, _, password = base64.b64decode(login.auth, validate=True).decode().partition(":")
        except ValueError:
            raise UserError(
                f"{path}: auth of {name} is not Base64 of user:password", f"docker login {registry}"
            ) from None
        return Credentials(user, password, login.identitytoken, f"as {user or 'the owner of a token'}, {path}")
    return _ask_helper(logins.credsStore, registry) if logins.credsStore else None


def _ask_helper(helper: str, registry: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    with tempfile.TemporaryFile() as question:
        question.write((HUB_LOGIN if registry == HUB else registry).encode())
        question.seek(0)
        status, said = run([program, "get"], stdin=question, deadline=HELPER_S, check=False)
    if status != 0:
        return None  # so it says that it knows nothing, among other things
    try:
        # Warnings may stand around it.
        found = msgspec.json.decode(said[said.index("{") : said.rindex("}") + 1], type=_Helped)
    except (ValueError, msgspec.DecodeError):
        raise ToolError(f"{program}: answers no credentials") from None  # what it says may be secret
    if found.Username == "<token>":
        return Credentials(token=found.Secret, origin=f"as the owner of a token, {program}")
    return Credentials(found.Username, found.Secret, "", f"as {found.Username}, {program}")


def _host(name: str) -> str:
    """The registry that a key of `auths` is for: older ones are URLs."""
    if name == HUB_LOGIN:
        return HUB
    return urlsplit(name).netloc if "://" in name else name
