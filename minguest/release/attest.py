# SPDX-License-Identifier: Apache-2.0
"""Attestations: in-toto statements in DSSE envelopes, signed in the same way as SHA256SUMS.

Formats: https://github.com/in-toto/attestation, spec/v1 (Statement); https://github.com/secure-systems-lab/dsse
(envelope.md, protocol.md). The signature is over DSSE's pre-authentication encoding; `sig` is the bytes of an SSH
signature (sshsig), `keyid` the key's fingerprint.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from minguest.release import sshsig
from minguest.util import strictjson
from minguest.util.errors import UserError

# _SLOW: securesystemslib loads every installed cloud library, boto3 among them, which takes 0.2 s. A build with nothing
# to do must not wait for that, so it is imported where it is used.
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"


class Statement(msgspec.Struct, frozen=True):
    """The content of an attestation, and the files that it is about."""

    subjects: dict[str, str]
    """SHA-256 by file name."""
    kind: str
    """The predicate's type, a URI."""
    predicate: dict[str, Any]


def seal(statement: Statement, sign: Callable[[bytes], bytes] | None) -> bytes:
    """The envelope as a file. `sign` makes an armoured SSH signature; None leaves the envelope unsigned."""
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - see _SLOW
    from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # noqa: PLC0415

    payload = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha}} for name, sha in sorted(statement.subjects.items())],
        "predicateType": statement.kind,
        "predicate": statement.predicate,
    }
    envelope = Envelope(msgspec.json.encode(payload), PAYLOAD_TYPE, {})
    if sign is not None:
        armoured = sign(envelope.pae())
        keyid = sshsig.parse(armoured, "the new signature").fingerprint
        envelope.signatures[keyid] = Signature(keyid, sshsig.blob(armoured).hex())
    return json.dumps(envelope.to_dict(), indent=1).encode() + b"\n"


def unseal(content: bytes, where: str, verify: Callable[[bytes, bytes, str], str] | None) -> Statement:
    """The statement of an envelope; UserError: damaged, ambiguous, of another type, or not signed as `verify` requires.

    `verify(data, armoured, where)` raises for a bad signature; None requires no signature.
    """
    from securesystemslib.dsse import Envelope  # noqa: PLC0415 - see _SLOW
    from securesystemslib.exceptions import Error as SecureSystemsError  # noqa: PLC0415

    try:
        envelope = Envelope.from_dict(strictjson.loads(content))
        if envelope.payload_type != PAYLOAD_TYPE:
            raise ValueError(f"payload of type {envelope.payload_type!r}, not {PAYLOAD_TYPE!r}")
        payload = strictjson.loads(envelope.payload)
        if payload["_type"] != STATEMENT:
            raise ValueError(f"statement of type {payload['_type']!r}, not {STATEMENT!r}")
        subjects = {each["name"]: each["digest"]["sha256"] for each in payload["subject"]}
        if len(subjects) != len(payload["subject"]):
            raise ValueError("a subject is named twice")
        statement = Statement(
            subjects,
            payload["predicateType"],
            payload["predicate"],
        )
        signatures = [sshsig.armour(bytes.fromhex(each.signature)) for each in envelope.signatures.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SecureSystemsError) as error:
        raise UserError(f"{where}: not an attestation, or a damaged one: {error!r}") from error
    if verify is not None:
        if len(signatures) != 1:
            raise UserError(f"{where}: has {len(signatures)} signatures instead of one")
        verify(envelope.pae(), signatures[0], where)
    return statement


def same(listed: Mapping[str, str], files: Mapping[str, str]) -> list[str]:
    """The names of files whose hashes differ in two lists."""
    return sorted(name for name in listed.keys() | files.keys() if listed.get(name) != files.get(name))
