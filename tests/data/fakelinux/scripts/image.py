# SPDX-License-Identifier: Apache-2.0
"""Packs a kernel behind the boot header of Documentation/arch/x86/boot.rst."""

import gzip
import struct
import sys
from pathlib import Path

payload = gzip.compress(Path(sys.argv[1]).read_bytes(), mtime=0)
setup = bytearray(0x1000)
setup[0x1F1] = 7  # sectors of 512 bytes behind the first one
struct.pack_into("<H", setup, 0x1FE, 0xAA55)
setup[0x202:0x206] = b"HdrS"
struct.pack_into("<H", setup, 0x206, 0x20F)
struct.pack_into("<H", setup, 0x236, 1)  # xloadflags: a 64-bit entry
struct.pack_into("<II", setup, 0x248, 0, len(payload))
Path(sys.argv[2]).write_bytes(setup + payload)
