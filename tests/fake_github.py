# SPDX-License-Identifier: Apache-2.0
"""GitHub's releases on loopback, as its REST API of 2022-11-28 is described.

Written from https://docs.github.com/en/rest/releases (releases, assets), .../using-the-rest-api (pagination, rate
limits) and the schemas `release` and `release-asset` of github/rest-api-description. What those do not say and users
report is here too: an upload that was cut leaves an asset in the state `starter`, whose name is taken; drafts of one
tag may be many; a file without content is refused.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPOSITORY = "/repos/octocat/guests/releases"
WRITER, READER = "github_pat_writer", "github_pat_reader"
# The part of a signed URL that is a secret.
SIGNATURE = "X-Amz-Signature=5ecret"


class GitHub(ThreadingHTTPServer):
    """One repository, octocat/guests; `digests` False is an older server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.address = f"127.0.0.1:{self.server_port}"
        self.releases: list[dict[str, Any]] = []
        self.contents: dict[int, bytes] = {}
        self.digests = True
        self.last_id = 0

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def public(self) -> list[dict[str, Any]]:
        """What everybody sees."""
        return [each for each in self.releases if not each["draft"]]

    def files(self, release: dict[str, Any]) -> dict[str, bytes]:
        """Names and contents of a release's assets; `starter` ones have none."""
        return {each["name"]: self.contents.get(each["id"], b"") for each in release["assets"]}

    def add(self, tag: str, draft: bool = False) -> dict[str, Any]:
        """Have a release, from wherever."""
        made = {
            "id": self.next_id(),
            "tag_name": tag,
            "target_commitish": "main",
            "name": tag,
            "body": "",
            "draft": draft,
            "prerelease": False,
            "latest": False,
            "assets": [],
        }
        self.releases.insert(0, made)
        return made

    def attach(self, release: dict[str, Any], name: str, content: bytes, kind: str, state: str = "uploaded") -> Any:
        """Have a file in a release."""
        asset: dict[str, Any] = {
            "id": self.next_id(),
            "name": name,
            "label": None,
            "content_type": kind,
            "state": state,
            "size": len(content),
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}" if self.digests and state == "uploaded" else None,
        }
        release["assets"].append(asset)
        self.contents[asset["id"]] = content
        return asset


@contextlib.contextmanager
def github() -> Iterator[GitHub]:
    """Run it."""
    with GitHub() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield made
        made.shutdown()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: GitHub

    def _any(self) -> None:
        self.close_connection = True
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        self.whole = len(self.body) == length
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if url.path.startswith("/storage/"):
            # Another host, really; the like of it refuse two kinds of authorization.
            self._reply(400 if token or url.query != SIGNATURE else 200, self.server.contents[int(url.path[9:])])
        elif self.headers.get("X-GitHub-Api-Version") != "2022-11-28" or not self.headers.get("User-Agent"):
            self._refuse(400, "the tests want a version and a user agent")
        elif token not in (WRITER, READER):
            self._refuse(401, "Bad credentials")
        elif not url.path.removeprefix("/uploads").startswith(REPOSITORY):
            self._refuse(404, "Not Found")
        elif token == READER and self.command != "GET":
            self._refuse(403, "Resource not accessible by personal access token")
        else:
            self._route(
                url.path.startswith("/uploads"), url.path.removeprefix("/uploads")[len(REPOSITORY) + 1 :], token
            )

    do_GET = do_POST = do_PATCH = do_DELETE = _any

    def _route(self, uploads: bool, path: str, token: str) -> None:
        parts = path.split("/") if path else []
        match self.command, parts:
            case "GET", []:
                self._list([self._shown(each) for each in self.server.releases if token == WRITER or not each["draft"]])
            case "POST", []:
                self._create(json.loads(self.body))
            case "PATCH", [number]:
                self._update(self._release(number), json.loads(self.body))
            case "GET", [number, "assets"]:
                self._list(self._release(number)["assets"])
            case "POST", [number, "assets"] if uploads:
                self._upload(self._release(number))
            case method, ["assets", number]:
                self._asset(method, int(number))
            case _:
                self._refuse(404, "Not Found")

    def _release(self, number: str) -> dict[str, Any]:
        return next(each for each in self.server.releases if each["id"] == int(number))

    def _create(self, wanted: dict[str, Any]) -> None:
        if any(each["tag_name"] == wanted["tag_name"] for each in self.server.public()):
            self._refuse(
                422, "Validation Failed", {"resource": "Release", "code": "already_exists", "field": "tag_name"}
            )
            return
        made = self.server.add(wanted["tag_name"])
        made.update(wanted)
        self._reply(201, self._shown(made))

    def _update(self, release: dict[str, Any], wanted: dict[str, Any]) -> None:
        latest = wanted.pop("make_latest", "true")
        assert latest in ("true", "false", "legacy") and not (wanted["prerelease"] and latest == "true")
        if latest == "true":
            for each in self.server.releases:
                each["latest"] = each is release
        release.update(wanted)
        self._reply(200, self._shown(release))

    def _upload(self, release: dict[str, Any]) -> None:
        name = self.query["name"]
        if any(each["name"] == name for each in release["assets"]):
            self._refuse(
                422, "Validation Failed", {"resource": "ReleaseAsset", "code": "already_exists", "field": "name"}
            )
        elif not self.whole:
            self.server.attach(release, name, b"", self.headers["Content-Type"], "starter")
        elif not self.body:
            self._refuse(400, "Bad Content-Length")
        else:
            self._reply(201, self.server.attach(release, name, self.body, self.headers["Content-Type"]))

    def _asset(self, method: str, number: int) -> None:
        for release in self.server.releases:
            for asset in release["assets"]:
                if asset["id"] == number:
                    if method == "DELETE":
                        release["assets"].remove(asset)
                        self._reply(204, b"")
                    elif self.headers["Accept"] == "application/octet-stream":
                        location = f"http://{self.headers['Host']}/storage/{number}?{SIGNATURE}"
                        self._reply(302, b"", {"Location": location})
                    else:
                        self._reply(200, asset)
                    return
        self._refuse(404, "Not Found")

    def _shown(self, release: dict[str, Any]) -> dict[str, Any]:
        host = f"http://{self.headers['Host']}"
        page = f"untagged-{release['id']:020x}" if release["draft"] else release["tag_name"]
        return {
            **{name: value for name, value in release.items() if name not in ("latest", "make_latest")},
            "url": f"{host}{REPOSITORY}/{release['id']}",
            "assets_url": f"{host}{REPOSITORY}/{release['id']}/assets",
            "upload_url": f"{host}/uploads{REPOSITORY}/{release['id']}/assets{{?name,label}}",
            "html_url": f"https://github.com/octocat/guests/releases/tag/{page}",
            "published_at": None if release["draft"] else "2026-11-22T13:00:00Z",
        }

    def _list(self, every: list[dict[str, Any]]) -> None:
        page, count = int(self.query.get("page", 1)), int(self.query.get("per_page", 30))
        assert count <= 100
        links = []
        if len(every) > page * count:
            links.append(f'<http://{self.headers["Host"]}/another/form/of/url?page={page + 1}>; rel="next"')
        if page > 1:
            links.append(f'<http://{self.headers["Host"]}/another/form/of/url?page=1>; rel="first"')
        self._reply(200, every[(page - 1) * count : page * count], {"Link": ", ".join(links)} if links else {})

    def _refuse(self, status: int, message: str, *errors: dict[str, str]) -> None:
        url = "https://docs.github.com/rest"
        self._reply(status, {"message": message, "documentation_url": url, "status": str(status), "errors": errors})

    def _reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
