# SPDX-License-Identifier: Apache-2.0
"""An HTTP proxy in front of one server that answers as broken services and networks do."""

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import msgspec

HEADERS: Mapping[int, Mapping[str, str]] = {
    401: {"WWW-Authenticate": 'Basic realm="faults"'},
    429: {"Retry-After": "0"},
}


class Answer(msgspec.Struct, frozen=True):
    """What goes back, apart from lengths and the connection's headers."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


# An answer, or just its status, is given in the server's place. Else the connection ends: before the server has seen
# the request; after it did its work and before its answer; in the middle of its answer; with half of the request's
# body read, which the server has too.
Fault = int | Answer | Literal["no server", "no answer", "half an answer", "half a request"]


class Seen(msgspec.Struct, frozen=True):
    """One request; `sent` is what was read of its body."""

    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    sent: bytes


class Proxy(ThreadingHTTPServer):
    """`fault` is requested each request, by its number from 0 and with half of its body; `change` may alter the
    server's answer."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.behind = behind
        self.address = f"127.0.0.1:{self.server_port}"
        self.reset()

    def reset(self) -> None:
        """Forget what was seen, and have no faults."""
        self.seen: list[Seen] = []
        self.fault: Callable[[int, Seen], Fault | None] = lambda number, seen: None
        self.change: Callable[[Seen, Answer], Answer] = lambda seen, answer: answer

    def uploads(self) -> list[Seen]:
        """The requests that could bring something."""
        return [seen for seen in self.seen if seen.method in ("POST", "PUT", "PATCH")]


@contextlib.contextmanager
def proxy(behind: str) -> Iterator[Proxy]:
    """Run one in front of `host:port`."""
    with Proxy(behind) as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.behind, timeout=30)

    def finish(self) -> None:
        self.upstream.close()
        super().finish()

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        half = self.rfile.read(length // 2)
        headers = {name.lower(): value for name, value in self.headers.items()}
        number = len(self.server.seen)
        fault = self.server.fault(number, Seen(self.command, self.path, headers, half))
        body = half if fault == "half a request" else half + self.rfile.read(length - len(half))
        seen = Seen(self.command, self.path, headers, body)
        self.server.seen.append(seen)
        answer = None
        if isinstance(fault, int):
            answer = Answer(fault, HEADERS.get(fault, {}))
        elif isinstance(fault, Answer):
            answer = fault
        elif fault == "half a request":
            self._forward(body)
        elif fault != "no server":
            answer = self.server.change(seen, self._forward(body))
        if answer is None or fault == "no answer":
            self._cut()
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may go away
            self._reply(answer, half=fault == "half an answer")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _forward(self, body: bytes) -> Answer:
        """Ask the server; nobody waits for its answer to a part of a body."""
        # With the Host that the client used: the registry makes its URLs of it, and those must lead here.
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            self.upstream.putheader(name, value)
        self.upstream.endheaders(body)
        if len(body) < int(self.headers.get("Content-Length", 0)):
            self.upstream.close()
            return Answer(0)
        answer = self.upstream.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def _reply(self, answer: Answer, half: bool) -> None:
        headers = dict(answer.headers)
        if self.command != "HEAD":  # whose length is that of what it does not bring
            headers["Content-Length"] = str(len(answer.body))
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "", ""]).encode()
        if not half:
            self.wfile.write(head + answer.body)
            return
        self.close_connection = True
        if len(answer.body) > 1:
            self.wfile.write(head + answer.body[: len(answer.body) // 2])
        else:
            self.wfile.write(head[: len(head) // 2])

    def _cut(self) -> None:
        """Reset the connection."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
