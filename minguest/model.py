# SPDX-License-Identifier: Apache-2.0
"""The facts that stages hand to each other. Immutable; the shapes of the TOML files are here too.

A struct that is read from TOML forbids unknown keys; `settings` turns what msgspec says into an error that
names the file, the key and the nearest known key.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Machine = Literal["q35", "pc"]
Accel = Literal["auto", "kvm", "tcg"]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detached OpenPGP signature over the uncompressed content of a download, as kernel.org makes them."""

    urls: tuple[str, ...]
    keys: tuple[str, ...]
    """Files in configs/keys/, ASCII-armoured; a good signature by any of them will do."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One download of configs/sources.toml."""

    version: str
    urls: tuple[str, ...]
    sha256: str
    licence: str
    """SPDX expression."""
    size: int | None = None
    """Bytes; left out only where nobody has measured it, the hash decides then alone."""
    signature: Signature | None = None


class Sources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/sources.toml: kernels by series, firmware by name."""

    kernel: Mapping[str, Source]
    firmware: Mapping[str, Source]


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One NUMA node."""

    memory: str
    """A size such as `512M`; those of all nodes come to the launch's memory."""
    cpus: str = ""
    """A list such as `0-3,8`, of all up to max_cpus. CPUs that no node names are the first one's."""
    distances: tuple[int, ...] = ()
    """To every node in their order, this one's own (10) included; left out, QEMU's own: 20."""
    gpus: tuple[int, ...] = ()
    """Which of the launch's gpus are this node's, counted from 0; q35 alone has buses of a node."""


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A virtio-blk disk: of `file`, or of `rbd`."""

    file: str = ""
    format: Literal["raw", "qcow2"] = "raw"
    rbd: str = ""
    """`POOL/IMAGE` of a Ceph cluster."""
    monitors: tuple[str, ...] = ()
    """Ceph's monitors, each `HOST` or `HOST:PORT`, an IPv6 address in brackets; else those of its configuration."""
    conf: str = ""
    """Ceph's configuration, else librados' own place for it."""
    user: str = ""
    """Ceph's user, without `client.`; else `admin`."""
    key_file: str = ""
    """A file with that user's key alone, as `ceph auth get-key` prints it, that nobody else can read."""
    read_only: bool = False
    serial: str = ""
    """What the guest finds it by: /dev/disk/by-id/virtio-SERIAL."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What QEMU is told. Sizes are strings with a unit (`2G`), as in TOML."""

    machine: Machine = "q35"
    cpu: str = "max"
    """QEMU's CPU model; under KVM `max` is the host's own."""
    hide_kvm: bool = True
    """Under KVM: leave out the CPUID leaf that tells of it; drivers of consumer cards refuse to work where it is."""
    clock: Literal["host", "vm"] = "host"
    """What the guest's real-time clock follows: the host's, or the guest's own time, which stands while it does."""
    cpus: int = 4
    max_cpus: int = 64
    """CPUs that can be there after hot-adding; the kernel's NR_CPUS must reach it."""
    memory: str = "1G"
    max_memory: str = ""
    """With what can be plugged in; empty: nothing can."""
    slots: int = 4
    """Places for DIMMs, where there is a max_memory."""
    numa: tuple[Node, ...] = ()
    hugepages: Literal["", "2M", "1G"] = ""
    """The size of the host's pages that all of the memory is made of; empty: ordinary ones."""
    lock_memory: bool = False
    """Keep all of it from being swapped out; a passed-through card locks it in any case."""
    disks: tuple[Disk, ...] = ()
    gpus: tuple[str, ...] = ("secondary-vga",)
    """Emulated display-class device models, `bar:SIZE` for a card with one large BAR and nothing else, or PCI
    addresses of the host's cards for vfio-pci."""
    window: str = ""
    """The 64-bit window for BARs that OVMF is told to open; empty: as large as the cards need."""
    cmdline: tuple[str, ...] = ()
    """Words for the kernel beside those that boot-test adds."""
    accel: Accel = "auto"
    timeout: int = 120
    """Seconds from QEMU's start after which the guest counts as lost."""


class Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/guest.toml or configs/guests/*.toml."""

    name: str
    kernel: tuple[str, ...]
    """Series in the order of preference."""
    fragments: tuple[str, ...] = ("*",)
    """Globs over the names in configs/kernel/ (`20-efi`, `*`), or paths of fragments from the project's root."""
    options: Mapping[str, str | int | bool] = {}
    """Values that win over the fragments', by option name without CONFIG_."""
    overlays: tuple[str, ...] = ()
    """Names in overlays/, or paths from the project's root; a later one wins."""
    firmware: str = "ovmf"
    launch: Launch = Launch()


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kernel is built, and why: kept in out/ until the user changes it."""

    wanted: tuple[str, ...]
    """The guest's list, or the one series that the user insisted on."""
    series: str
    version: str
    reason: str
    source: str | None = None
    """The user's own tree or tarball; None is the pinned download."""
    fixed: bool = False
    """The user said so (kernel=, source=)."""
