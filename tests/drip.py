# SPDX-License-Identifier: Apache-2.0
"""An HTTP server that sends what it is given, at its own pace."""

import contextlib
import socketserver
import threading
import time
from collections.abc import Callable, Iterator


class Server(socketserver.ThreadingTCPServer):
    """`routes` are tried in the order in which they were added; the first whose path begins the request's answers."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.routes: dict[str, Callable[[], Iterator[bytes]]] = {}
        self.seen: list[str] = []


class _Request(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client may go away
            head = b""
            while b"\r\n\r\n" not in head:
                more = self.request.recv(65536)
                if not more:
                    return
                head += more
            path = head.split(b" ", 2)[1].decode()
            self.server.seen.append(path)
            found = next((make for start, make in self.server.routes.items() if path.startswith(start)), None)
            for part in found() if found else [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"]:
                self.request.sendall(part)


def slowly(first: bytes, drop: bytes, seconds: float = 20) -> Callable[[], Iterator[bytes]]:
    """`first`, then `drop` ten times a second."""

    def make() -> Iterator[bytes]:
        yield first
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            yield drop
            time.sleep(0.1)

    return make


def at_once(status: str, *headers: str, body: bytes = b"", after: float = 0) -> Callable[[], Iterator[bytes]]:
    """A whole answer, after so many seconds."""

    def make() -> Iterator[bytes]:
        time.sleep(after)
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "Connection: close", "", ""]
        yield "\r\n".join(lines).encode("latin-1") + body

    return make


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Run one."""
    with Server() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()
