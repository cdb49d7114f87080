# SPDX-License-Identifier: Apache-2.0
"""OpenStack Swift with its S3 interface, whole, in one process on loopback: `python swift_server.py FOLDER`.

Its account, container and object servers with one disk (FOLDER) and one replica, and the proxy server that speaks
S3; keys `test:tester` and `testing`. The proxy's port is the one line on standard output; the program ends when its
standard input does. Swift's own functional tests put it together the same way.
"""

# Swift lives in eventlet, which must be first to patch sockets and threads.
import eventlet  # type: ignore[import-untyped]

eventlet.monkey_patch()

import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import eventlet.hubs  # type: ignore[import-untyped] # noqa: E402
import eventlet.wsgi  # type: ignore[import-untyped] # noqa: E402
from swift.common import utils  # type: ignore[import-untyped] # noqa: E402


def _no_sync(fd: object) -> None:
    """What it keeps need not outlive a power cut."""


os.fsync = os.fdatasync = _no_sync

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = tests
[storage-policy:0]
name = one
default = yes
"""
BACKEND_CONF = """\
[DEFAULT]
devices = {folder}/devices
swift_dir = {folder}
mount_check = false
fallocate_reserve = 0
[app:main]
use = egg:swift#{name}
"""
PROXY_CONF = """\
[DEFAULT]
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors gatekeeper s3api tempauth proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:s3api]
use = egg:swift#s3api
allow_multipart_uploads = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


class _Cache:
    """In memcached's place, as far as the proxy server uses it: without one it asks for each bucket at each request."""

    def __init__(self) -> None:
        self.kept: dict[str, object] = {}

    def get(self, key: str, **_: object) -> object:
        return self.kept.get(key)

    def set(self, key: str, value: object, **_: object) -> None:
        self.kept[key] = value

    def delete(self, key: str, **_: object) -> None:
        self.kept.pop(key, None)


def _caching(app: Callable[..., Any]) -> Callable[..., Any]:
    cache = _Cache()

    def caching(environ: dict[str, Any], start: object) -> object:
        environ["swift.cache"] = cache
        return app(environ, start)

    return caching


def main(folder: Path) -> None:
    """Start it and serve until standard input ends."""
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(SWIFT_CONF)
    # /etc/swift is written into Swift; it is read by the imports that follow.
    utils.SWIFT_CONF_FILE = str(folder / "swift.conf")
    from swift.common.http_protocol import SwiftHttpProtocol  # type: ignore[import-untyped]
    from swift.common.storage_policy import reload_storage_policies  # type: ignore[import-untyped]
    from swift.common.wsgi import loadapp  # type: ignore[import-untyped]

    reload_storage_policies()
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in ("account", "container", "object", "proxy")}
    for name, listening in sockets.items():
        # Else `100 Continue` and the answer after it may be 40 ms apart. Connections inherit it.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if name != "proxy":
            _ring(folder / f"{name}.ring.gz", listening)
        conf = folder / f"{name}.conf"
        conf.write_text((PROXY_CONF if name == "proxy" else BACKEND_CONF).format(folder=folder, name=name))
    for name, listening in sockets.items():
        app = loadapp(str(folder / f"{name}.conf"), global_conf={"log_name": name})
        # Header names as Swift writes them: boto3 wants `ETag`, not `Etag`.
        eventlet.spawn(
            eventlet.wsgi.server,
            listening,
            _caching(app),
            utils.NullLogger(),
            protocol=SwiftHttpProtocol,
            capitalize_response_headers=False,
        )
    print(sockets["proxy"].getsockname()[1], flush=True)
    eventlet.hubs.trampoline(sys.stdin.fileno(), read=True)
    os._exit(0)


def _ring(path: Path, listening: socket.socket) -> None:
    """One device, one replica, at the server's port."""
    from swift.common.ring import RingBuilder  # type: ignore[import-untyped]

    address, port = listening.getsockname()
    device = {"id": 0, "region": 1, "zone": 1, "weight": 1, "device": "disk", "ip": address, "port": port}
    builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
    builder.add_dev({**device, "replication_ip": address, "replication_port": port})
    builder.rebalance()
    builder.get_ring().save(str(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
