# SPDX-License-Identifier: Apache-2.0
"""Publishes a release to a bucket of an S3-compatible store.

Below `s3://bucket/prefix`:

    NAME/VERSION/FILE           the release's files, unchanged
    NAME/VERSION/SHA256SUMS     written after all of them: without it, a reader sees no release
    NAME/latest.json            {"version": VERSION}: the newest version that is not a pre-release
    NAME/index.json             every version that has its SHA256SUMS

The two pointers are made from a listing, so if a run is killed before them, the next run of any version completes
them. A store has no transactions: publish one version of a name from one place at a time.

Interface: Amazon S3, API version 2006-03-01 (ListObjectsV2, HeadObject, GetObject, PutObject, DeleteObject). boto3
finds keys, endpoint and region itself; this project reads none of them.
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

# Seconds until a connection must be open, and of silence on an open one.
CONNECT_S = 10
SILENCE_S = 60
# Keys in one answer of a listing: the most that S3 gives.
PAGE = 1000
# How often boto3 sends one request; its pauses begin with 0.05 s, or 1 s when throttled, and double.
ATTEMPTS = 8
# What the key must be allowed to do; the last permission only removes files that another failed run left.
PERMISSIONS = "s3:ListBucket on the bucket; s3:GetObject, s3:PutObject and s3:DeleteObject below the prefix"
KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or another source that boto3 reads"
AGAIN = "run the same command again; files that are already there are not sent again"
# Error codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")


class Place(msgspec.Struct, frozen=True):
    """A bucket, and the prefix of all keys, which ends with a slash or is empty."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


class File(msgspec.Struct, frozen=True):
    """One object to be written; `key` is below the place's prefix."""

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
        raise UserError(f"{text!r} is not a place in an S3 store", "write s3://BUCKET or s3://BUCKET/PREFIX")
    return Place(found[1], f"{found[2][1:]}/" if found[2] else "")


def publish(
    release: layout.Release, place: Place, say: Callable[[str], None], endpoint: str | None = None
) -> layout.Published:
    """Send the missing files, SHA256SUMS last, then the two pointers, which count as files here.

    `endpoint` is the store's URL, if it must not come from boto3's settings. UserError: the version is published with
    other content, no such bucket, keys that are missing or lack a permission. ToolError: the store did not answer.
    """
    name, version = release.facts.name, release.facts.version
    where = f"{place}{name}/{version}"
    with errors(place):
        store = Bucket(client(endpoint), place, say)
        files = _files(release)
        there = store.sizes(f"{name}/{version}/")
        if _published(store, release, where):
            say(f"{where}: already published with this content")
        else:
            # A failed run of other files may have left some; an old signature would be beside new sums.
            for key in sorted(there.keys() - {file.key for file in files}):
                say(f"{place}{key}: removed: another run left it")
                store.remove(key)
        for file in files:
            store.put(file, there.get(file.key))
        sums = re.compile(rf"{re.escape(name)}/({layout.VERSION.pattern})/{layout.SUMS}")
        # A listing may be late, so this version is added by name.
        whole = {version} | {found[1] for key in store.sizes(f"{name}/") if (found := sums.fullmatch(key))}
        for file in _pointers(name, sorted(whole, key=versions.order)):
            store.put(file, file.size)
    return layout.Published(where, store.sent, store.sent_bytes, store.kept)


class Bucket:
    """A bucket below a prefix, and counts of what was sent to it."""

    def __init__(self, client: Any, place: Place, say: Callable[[str], None]) -> None:
        self._client = client
        self._place = place
        self._say = say
        self.sent = 0
        self.sent_bytes = 0
        self.kept = 0

    def sizes(self, below: str) -> dict[str, int]:
        """Keys that begin with `below`, without the place's prefix, and their sizes in bytes."""
        paginator = self._client.get_paginator("list_objects_v2")
        where = {"Bucket": self._place.bucket, "Prefix": self._place.prefix + below}
        skipped = len(self._place.prefix)
        for _ in range(ATTEMPTS):
            pages = list(paginator.paginate(**where, PaginationConfig={"PageSize": PAGE}))
            # An answer that was cut in its header looks to boto3 like an empty listing; a complete one has this key.
            if all("IsTruncated" in page for page in pages):
                return {each["Key"][skipped:]: each["Size"] for page in pages for each in page.get("Contents", ())}
        raise ToolError(f"{self._place}{below}: the store's listing is cut short, {ATTEMPTS} times", AGAIN)

    def digest(self, key: str) -> str | None:
        """SHA-256 of an object, in hex, or None if there is no such object."""
        import botocore.exceptions  # type: ignore[import-untyped] # noqa: PLC0415

        try:
            head = self._client.head_object(**self._at(key), ChecksumMode="ENABLED")
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
        checksum = head.get("ChecksumSHA256", "")
        if len(checksum) == 44:  # base64; longer, with `-2` at its end, for a sum over the sums of two parts
            return base64.b64decode(checksum).hex()
        # A store that checks the sum without keeping it returns the metadata that `put` wrote.
        kept = str(head.get("Metadata", {}).get("sha256", ""))
        if len(kept) == 64:
            return kept
        return hashlib.sha256(self._client.get_object(**self._at(key))["Body"].read()).hexdigest()

    def put(self, file: File, size: int | None) -> None:
        """Write an object unless it is already right; `size` is its size in a listing, None if it is not there."""
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

    def get(self, key: str, target: Path) -> bool:
        """Write an object's bytes to a file; False if there is no such object. Nothing is checked."""
        import botocore.exceptions  # noqa: PLC0415

        try:
            body = self._client.get_object(**self._at(key))["Body"]
        except botocore.exceptions.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        with target.open("wb") as file:
            for chunk in body.iter_chunks(1 << 20):
                file.write(chunk)
        return True

    def remove(self, key: str) -> None:
        """Delete an object, if it is there."""
        self._client.delete_object(**self._at(key))

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._place.bucket, "Key": self._place.prefix + key}


def _files(release: layout.Release) -> list[File]:
    """The release's files in the order of upload: the signature and then the sums are the last."""
    home = f"{release.facts.name}/{release.facts.version}/"
    return [
        File(home + item.name, item.sha256, item.size, item.media_type, release.folder / item.name)
        for item in sorted(release.items, key=lambda item: (item.name == layout.SUMS, item.name == layout.SIGNATURE))
    ]


def _published(store: "Bucket", release: layout.Release, where: str) -> bool:
    """Whether the version is already published; UserError if its sums or their signature differ."""
    home = f"{release.facts.name}/{release.facts.version}/"
    # By name, because a listing may be late.
    if store.digest(home + layout.SUMS) is None:
        return False
    for item in (release.item(layout.SUMS), release.item(layout.SIGNATURE)):
        if item and store.digest(home + item.name) not in (None, item.sha256):
            raise UserError(
                f"{where}: {release.facts.version} is already published with other content ({item.name} differs)",
                "make a new version: a published one never changes",
            )
    return True


def _pointers(name: str, whole: list[str]) -> list[File]:
    """latest.json and index.json for the complete versions."""
    index = versions.index(name, whole)
    contents = {versions.LATEST: versions.Latest(index.latest), versions.INDEX: index}
    files = []
    for file, content in contents.items():
        text = msgspec.json.encode(content) + b"\n"
        digest = hashlib.sha256(text).hexdigest()
        files.append(File(f"{name}/{file}", digest, len(text), "application/json", text, "no-cache"))
    return files


def client(endpoint: str | None) -> Any:
    try:
        import boto3  # type: ignore[import-untyped] # noqa: PLC0415
        from botocore.config import Config  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError as error:
        raise UserError("s3:// needs boto3, which is not installed", "pip install 'minguest[s3]'") from error
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=SILENCE_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        user_agent_extra="minguest",
        # This puts the body's SHA-256 into the signature too, so that a store without checksums checks it.
        s3={"payload_signing_enabled": True},
    )
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@contextmanager
def errors(place: Place) -> Iterator[None]:
    """Turn boto3's errors into this project's. Neither contains a key."""
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

    why = " ".join(str(error).split())
    if isinstance(error, exceptions.ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            return UserError(f"{place}: there is no bucket {place.bucket!r}", "create it, or name another one")
        if code in BAD_KEYS or status == 401:
            return UserError(f"{place}: the store does not accept these keys: {why}", KEYS)
        if status == 403:
            return UserError(f"{place}: the store refuses: {why}", f"give the keys these permissions: {PERMISSIONS}")
        return ToolError(f"{place}: {why}", AGAIN)
    if isinstance(
        error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError | exceptions.ProfileNotFound
    ):
        return UserError(f"{place}: {why}", KEYS)
    if isinstance(error, exceptions.BotoCoreError):
        return ToolError(f"{place}: {why}", AGAIN)
    if isinstance(error, ValueError) and "endpoint" in why:
        return UserError(
            f"{place}: {why}", "set AWS_ENDPOINT_URL to a URL with its scheme, such as https://s3.example.org"
        )
    return None
