# SPDX-License-Identifier: Apache-2.0
"""A real registry for tests: Debian's docker-registry on a free loopback port.

Its package is fetched and not installed: installed, it would run as a service that listens on every network.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from minguest import settings
from minguest.model import Source
from minguest.util import archive, fetch

SOURCE = Source(
    version="2.8.2+ds1-1",
    urls=(
        "http://deb.debian.org/debian/pool/main/d/docker-registry/docker-registry_2.8.2+ds1-1_amd64.deb",
        "https://snapshot.debian.org/file/e56a894ce3aaf688756bd88fe282c3114e829ce9",
    ),
    sha256="a9bd06c0e006854608f8469b4371743f40604ad90975532bb3b7ceeb72fe2913",
    size=4954916,
    licence="Apache-2.0",
)
PROGRAM = "./usr/bin/docker-registry"
USER, PASSWORD = "publisher", "open sesame"
# bcrypt (the only kind that the registry takes) of PASSWORD, with the least cost.
HTPASSWD = f"{USER}:$2b$04$dscy5Va3QJj/o4QWPBWlnOsod305mOMYR3kfDV2QSHMOhVjyGgj4.\n"
CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}/storage}}}}
http: {{addr: {address}}}
"""
AUTH = "auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}\n"
START_S = 20


@contextlib.contextmanager
def registry(folder: Path, *, htpasswd: bool = False) -> Iterator[str]:
    """Run it with its files below `folder`; gives `127.0.0.1:PORT`. `htpasswd`: it wants USER and PASSWORD."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    package = fetch.fetch(SOURCE, "docker-registry", settings.cache_folder(), print)
    program = folder / "docker-registry"
    program.write_bytes(archive.deb_member(package, [PROGRAM])[PROGRAM])
    program.chmod(0o755)
    (folder / "htpasswd").write_text(HTPASSWD)
    config = folder / "config.yml"
    config.write_text((CONFIG + (AUTH if htpasswd else "")).format(folder=folder, address=address))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        _wait(process, address, folder / "log")
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    host, port = address.split(":")
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"docker-registry did not start: {log.read_text()}")
