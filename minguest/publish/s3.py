# SPDX-License-Identifier: Apache-2.0
"""Publishing a release to a bucket of an S3-compatible store.

Below `s3://bucket/prefix`:

    NAME/VERSION/FILE           the release's files, as they are
    NAME/VERSION/SHA256SUMS     written after all of them: where it is missing, there is no release for a reader
    NAME/latest.json            {"version": VERSION}: the newest version that is no pre-release
    NAME/index.json             every version whose SHA256SUMS is there

The two pointers are made from a listing, so a run that was killed before them is fixed by the next one, of any
version. A store has no transactions: publish one version of a name from one place at a time.

Interface: Amazon S3, API version 2006-03-01 (ListObjectsV2, HeadObject, GetObject, PutObject, DeleteObject). Keys,
endpoint and region are found by boto3 itself; this project reads none of them.
"""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from minguest.publish import versions
from minguest.release import layout
from minguest.util.errors import MinguestError, ToolError, UserError

# Seconds to a connection, and of silence on an open one.
CONNECT_S = 10
SILENCE_S = 60
# Keys in one answer of a listing: the most that S3 gives.
PAGE = 1000
# Times that boto3 sends one request; its pauses begin with 0.05 s, or 1 s where it shall slow down, and double.
ATTEMPTS = 8
# What the key must be allowed to do; the last one only clears up after a run that failed with other files.
PERMISSIONS = "s3:ListBucket on the bucket; s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix"
KEYS = "give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or whatever else boto3 knows"
AGAIN = "run the same command again; what is there already is not sent again"
# Error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")


class Place(msgspec.Struct, frozen=True):
    """A bucket and, with a slash at its end or empty, what all keys begin with."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class _File(msgspec.Struct, frozen=True):
    """One object as it shall be; `key` is below the place's prefix."""

    key: str
    sha256: str
    size: int
    media_type: str
    content: Path | bytes
    cache: str = ""


def parse(text: str) -> Place:
    """`s3://bucket` or `s3://bucket/prefix`; UserError for anything else."""
    found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)/?", text)
    if not found:
        raise UserError(f"{text!r} is no place in an S3 store", "write s3://BUCKET or s3://BUCKET/PREFIX")
    return Place(found[1], f"{found[2][1:]}/" if found[2] else "")


def publish(
    release: layout.Release, place: Place, say: Callable[[str], None], endpoint: str | None = None
) -> layout.Published:
    """Send what is not there yet, SHA256SUMS last, then the two pointers, which count as files here.

    `endpoint` is the store's URL where boto3's own settings shall not say it. UserError: the version is there with
    other content, no such bucket, keys that are missing or may not do this. ToolError: the store did not answer.
    """
    name, version = release.facts.name, release.facts.version
    where = f"{place}{name}/{version}"
    with _errors(place):
        store = _Store(_client(endpoint), place, say)
        files = _files(release)
        there = store.sizes(f"{name}/{version}/")
        if _published(store, release, where):
            say(f"{where}: is published already with this content")
        else:
            # A run that failed with other files may have left some; an old signature would lie beside new sums.
            for key in sorted(there.keys() - {file.key for file in files}):
                say(f"{place}{key}: is left of another run; removed")
                store.remove(key)
        for file in files:
            store.put(file, there.get(file.key))
        sums = re.compile(rf"{re.escape(name)}/({layout.VERSION.pattern})/{layout.SUMS}")
        # A listing may be late, so this version is added by name.
        whole = {version} | {found[1] for key in store.sizes(f"{name}/") if (found := sums.fullmatch(key))}
        for file in _pointers(name, sorted(whole, key=versions.order)):
            store.put(file, file.size)
    return layout.Published(where, store.sent, store.sent_bytes, store.kept)


class _Store:
    """A bucket below a prefix, and what was done there."""

    def __init__(self, client: Any, place: Place, say: Callable[[str], None]) -> None:
        self._client = client
        self._place = place
        self._say = say
        self.sent = 0
        self.sent_bytes = 0
        self.kept = 0

    def sizes(self, below: str) -> dict[str, int]:
        """Keys that begin so, without the place's prefix, and their sizes in bytes."""
        paginator = self._client.get_paginator("list_objects_v2")
        where = {"Bucket": self._place.bucket, "Prefix": self._place.prefix + below}
        skipped = len(self._place.prefix)
        for _ in range(ATTEMPTS):
            pages = list(paginator.paginate(**where, PaginationConfig={"PageSize": PAGE}))
            # An answer that was cut in its header looks to boto3 like an empty listing; a whole one has this.
            if all("IsTruncated" in page for page in pages):
                return {each["Key"][skipped:]: each["Size"] for page in pages for each in page.get("Contents", ())}
        raise ToolError(f"{self._place}{below}: the store's listing is cut short, {ATTEMPTS} times", AGAIN)

    def digest(self, key: str) -> str | None:
        """SHA-256 of an object, in hex, or None where there is no such object."""
        import botocore.exceptions  # type: ignore[import-untyped] # noqa: PLC0415

        try:
            head = self._client.head_object(**self._at(key), ChecksumMode="ENABLED")
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        checksum = head.get("ChecksumSHA256", "")
        if len(checksum) == 44:  # base64; longer with `-2` at its end, a sum of two parts' sums
            return base64.b64decode(checksum).hex()
        # A store that checks the sum but does not keep it gives back what `put` wrote.
        kept = str(head.get("Metadata", {}).get("sha256", ""))
        if len(kept) == 64:
            return kept
        return hashlib.sha256(self._client.get_object(**self._at(key))["Body"].read()).hexdigest()

    def put(self, file: _File, size: int | None) -> None:
        """Make an object what it shall be; `size` is that of what a listing has, None where it has nothing."""
        if size == file.size and self.digest(file.key) == file.sha256:
            self.kept += 1
            return
        more = {"CacheControl": file.cache} if file.cache else {}
        with io.BytesIO(file.content) if isinstance(file.content, bytes) else file.content.open("rb") as body:
            self._client.put_object(
                **self._at(file.key),
                **more,
                Body=body,
                ContentType=file.media_type,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(file.sha256)).decode(),
                Metadata={"sha256": file.sha256},
            )
        self.sent += 1
        self.sent_bytes += file.size
        self._say(f"{self._place}{file.key}: {file.size} bytes")

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._client.delete_object(**self._at(key))

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + key}


def _files(release: layout.Release) -> list[_File]:
    """The release's files in the order of their going: the signature and then the sums are the last."""
    home = f"{release.facts.name}/{release.facts.version}/"
    return [
        _File(home + item.name, item.sha256, item.size, item.media_type, release.folder / item.name)
        for item in sorted(release.items, key=lambda item: (item.name == layout.SUMS, item.name == layout.SIGNATURE))
    ]


def _published(store: "_Store", release: layout.Release, where: str) -> bool:
    """Whether the version is there already; UserError where its sums or their signature are others."""
    home = f"{release.facts.name}/{release.facts.version}/"
    # Asked for by name: a listing may be late.
    if store.digest(home + layout.SUMS) is None:
        return False
    for item in (release.item(layout.SUMS), release.item(layout.SIGNATURE)):
        if item and store.digest(home + item.name) not in (None, item.sha256):
            raise UserError(
                f"{where}: {release.facts.version} is published already with other content ({item.name} is another"
                " one); a published version never changes: make a new version"
            )
    return True


def _pointers(name: str, whole: list[str]) -> list[_File]:
    """latest.json and index.json of the versions that are whole."""
    index = versions.index(name, whole)
    contents = {versions.LATEST: versions.Latest(index.latest), versions.INDEX: index}
    files = []
    for file, content in contents.items():
        text = msgspec.json.encode(content) + b"\n"
        digest = hashlib.sha256(text).hexdigest()
        files.append(_File(f"{name}/{file}", digest, len(text), "application/json", text, "no-cache"))
    return files


def _client(endpoint: str | None) -> Any:
    try:
        import boto3  # type: ignore[import-untyped] # noqa: PLC0415
        from botocore.config import Config  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        raise UserError("a place of s3:// needs boto3, which is not there", "pip install 'minguest[s3]'") from error
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        user_agent_extra="minguest",
        # The body's SHA-256 is then in the signature too, which a store must check that knows no checksums yet.
        s3={"payload_signing_enabled": True},
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def _errors(place: Place) -> Iterator[None]:
    """Turn boto3's errors into this project's. Neither has a key in its words."""
    try:
        yield
    except MinguestError:
        raise
    except Exception as error:
        explained = _explained(error, place)
        if explained is None:
            raise
        raise explained from error


def _explained(error: Exception, place: Place) -> MinguestError | None:
    from botocore import exceptions  # noqa: PLC0415

    said = " ".join(str(error).split())
    if isinstance(error, exceptions.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return UserError(f"{place}: there is no bucket {place.bucket!r}", "make it, or name another one")
        if code in BAD_KEYS or status == 401:
            return UserError(f"{place}: the store does not know these keys: {said}", KEYS)
        if status == 403:
            return UserError(f"{place}: the store refuses: {said}", f"the keys need {PERMISSIONS}")
        return ToolError(f"{place}: {said}", AGAIN)
    if isinstance(
        error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.ProfileNotFound
    ):
        return UserError(f"{place}: {said}", KEYS)
    if isinstance(error, exceptions.BotoCoreError):
        return ToolError(f"{place}: {said}", AGAIN)
    if isinstance(error, ValueError) and "endpoint" in said:
        return UserError(f"{place}: {said}", "AWS_ENDPOINT_URL is a URL with its scheme, as https://s3.example.org")
    return None
