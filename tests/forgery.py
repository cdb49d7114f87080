# SPDX-License-Identifier: Apache-2.0
"""Releases that lie or do harm, signed as a trusted signer would sign them."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minguest.release import layout, sshsig
from minguest.util import files


def sign_again(folder: Path, key: Path, *, sized: bool = True) -> None:
    """Sums, sizes and their signature, as a trusted signer would make them of files that do not agree; without sizes,
    as an older minguest made them."""
    lists = (layout.SUMS, layout.SIGNATURE, layout.SIZES)
    names = [path.name for path in folder.iterdir() if path.name not in lists]
    if sized:
        sizes = {name: (folder / name).stat().st_size for name in names}
        (folder / layout.SIZES).write_text(layout.render_sizes(sizes))
        names.append(layout.SIZES)
    else:
        (folder / layout.SIZES).unlink(missing_ok=True)
    sums = layout.render_sums({name: files.sha256(folder / name) for name in names}).encode()
    (folder / layout.SUMS).write_bytes(sums)
    (folder / layout.SIGNATURE).write_bytes(sshsig.sign(sums, key))


def change(folder: Path, name: str, spoil: Callable[[Any], None]) -> None:
    """Change a JSON file."""
    content = json.loads((folder / name).read_bytes())
    spoil(content)
    (folder / name).write_text(json.dumps(content))


def change_statement(folder: Path, name: str, key: Path, spoil: Callable[[Any], None]) -> None:
    """Change a DSSE envelope's statement and sign it again by the trusted key."""
    envelope = json.loads((folder / name).read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    spoil(statement)
    payload = json.dumps(statement).encode()
    kind = envelope["payloadType"].encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)  # protocol.md of DSSE
    armoured = sshsig.sign(pae, key)
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(sshsig.blob(armoured)).decode()
    (folder / name).write_text(json.dumps(envelope))
