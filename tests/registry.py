# SPDX-License-Identifier: Apache-2.0
"""A real registry for tests: Debian's docker-registry on a free loopback port."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

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
    (folder / "htpasswd").write_text(HTPASSWD)
    config = folder / "config.yml"
    config.write_text((CONFIG + (AUTH if htpasswd else "")).format(folder=folder, address=address))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
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
