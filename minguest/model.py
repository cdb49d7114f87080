# SPDX-License-Identifier: Apache-2.0
"""The facts that stages pass to each other. Immutable; the shapes of the TOML files are here too.

A struct that is read from TOML forbids unknown keys; `settings` turns the message of msgspec into an error that
names the file, the key and the nearest known key.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Machine = Literal["q35", "pc"]
Accel = Literal["auto", "kvm", "tcg"]
Console = Literal["full", "quiet"]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detached OpenPGP signature over the uncompressed content of a download, as kernel.org makes them."""

    urls: tuple[str, ...]
    keys: tuple[str, ...]
    """Files in configs/keys/, ASCII-armoured; a good signature by any of them is accepted."""


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One download of configs/sources.toml."""

    version: str
    urls: tuple[str, ...]
    sha256: str
    licence: str
    """SPDX expression."""
    size: int | None = None
    """Bytes; None if it was not measured: then only the hash is checked."""
    signature: Signature | None = None


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the source that a package was built from."""

    urls: tuple[str, ...]
    sha256: str


class Package(Source, frozen=True, forbid_unknown_fields=True):
    """A Debian package: overlays take files from it, or `doit modules` the source of modules."""

    source: tuple[Part, ...] = ()
    """Its complete source, and that of what is linked into it: for the people who get the program."""
    deb: str = ""
    """Debian's name of it; empty: the name of its table."""
    make: tuple[str, ...] = ()
    """Variables for make, if it has the source of modules: NAME=VALUE; `{devel}` is the folder of kernel-devel."""
    restricted: bool = False
    """Its licence sets conditions for passing it on: `doit release` takes it only if the user names it."""


class Firmware(Source, frozen=True, forbid_unknown_fields=True):
    """A firmware: Debian's package, or with `debian` edk2's source, which is built."""

    debian: Part | None = None
    """Debian's changes to the source, debian.tar.xz, which has its patches; None: a package that is unpacked."""


class Sources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/sources.toml: kernels by series, firmware and Debian packages by name."""

    kernel: Mapping[str, Source]
    firmware: Mapping[str, Firmware]
    package: Mapping[str, Package] = {}


class OwnFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mode and the owner of a file or a symbolic link in an overlay's folder."""

    path: str
    mode: str = ""
    """Octal, as a string; empty: 0755 if the file is executable, else 0644."""
    owner: str = "0:0"
    """`UID:GID`, two numbers."""


class OwnFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder; it need not be in the overlay's folder."""

    path: str
    mode: str = "0755"
    owner: str = "0:0"


class DeviceNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device node."""

    path: str
    type: Literal["char", "block"]
    major: int
    minor: int
    mode: str = "0600"
    owner: str = "0:0"


class Links(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Symbolic links in one folder, all to the same target, which need not exist."""

    target: str
    names: tuple[str, ...]
    folder: str = "/"


class PackageFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a Debian package."""

    name: str
    """In the package: `/usr/bin/busybox`."""
    path: str
    """In the initrd."""
    mode: str = "0644"
    owner: str = "0:0"


class FromPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files from one Debian package."""

    source: str
    """A `[package.NAME]` of configs/sources.toml."""
    file: tuple[PackageFile, ...]


class Overlay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """overlay.toml in an overlay's folder: what a folder in a checkout cannot say. Each key is a list of tables."""

    file: tuple[OwnFile, ...] = ()
    folder: tuple[OwnFolder, ...] = ()
    node: tuple[DeviceNode, ...] = ()
    link: tuple[Links, ...] = ()
    package: tuple[FromPackage, ...] = ()


class Devel(msgspec.Struct, frozen=True):
    """Which kernel a kernel-devel belongs to: kernel-devel.json in it and beside it, and in the manifest."""

    format: int
    """It rises when other files are in the archive, or packed differently."""
    release: str
    """As uname(2) reports it in the guest."""
    vermagic: str
    """The kernel refuses a module with another one."""
    build_id: str
    """Of vmlinux, in hex; the guest has it in /sys/kernel/notes."""
    symvers: str
    """SHA-256 of Module.symvers."""
    config: str
    """SHA-256 of .config. Without MODVERSIONS only this tells two kernels of one release apart."""
    compiler: str
    """The first line of `gcc --version`."""


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One NUMA node."""

    memory: str
    """A size such as `512M`; the sum over all nodes is the launch's memory."""
    cpus: str = ""
    """A list such as `0-3,8`, of CPUs up to max_cpus. CPUs that no node names belong to the first node."""
    distances: tuple[int, ...] = ()
    """To every node in order, including this one (10); empty: QEMU's default, 20."""
    gpus: tuple[int, ...] = ()
    """The launch's gpus on this node, counted from 0; only q35 has buses per node."""


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A virtio-blk disk: from `file` or from `rbd`."""

    file: str = ""
    format: Literal["raw", "qcow2"] = "raw"
    rbd: str = ""
    """`POOL/IMAGE` in a Ceph cluster."""
    monitors: tuple[str, ...] = ()
    """Ceph's monitors, each `HOST` or `HOST:PORT`, an IPv6 address in brackets; empty: those of its configuration."""
    conf: str = ""
    """Ceph's configuration file; empty: the default path of librados."""
    user: str = ""
    """Ceph's user, without `client.`; empty: `admin`."""
    key_file: str = ""
    """A file with only that user's key, as `ceph auth get-key` prints it; no other user may read it."""
    read_only: bool = False
    serial: str = ""
    """The guest finds the disk as /dev/disk/by-id/virtio-SERIAL."""


Filesystem = Literal["ext4", "xfs", "btrfs", "squashfs", "erofs"]


class Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The root disk that the guest goes on to from its initrd."""

    disk: str = "/dev/vda"
    """As initd.root= has it: `/dev/NAME`, `LABEL=`, `UUID=`, `PARTUUID=`, `PARTLABEL=`, `SERIAL=`, `9p:TAG`,
    `virtiofs:TAG`."""
    filesystem: Filesystem = "ext4"
    """The kernel must have it built in."""
    init: str = "/sbin/init"
    """The program in the root that becomes PID 1."""
    read_only: bool = False
    onfail: Literal["poweroff", "reboot", "shell", "halt", "wait"] = "poweroff"
    """What the guest does without its root."""
    seconds: int = 30
    """How long the guest waits for the disk."""


class Drivers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is on the guest's disk of drivers: modules out of the tree, and the firmware of their cards."""

    modules: tuple[str, ...]
    """Names of what `doit modules name=NAME` built."""
    overlays: tuple[str, ...] = ()
    """Names in overlays/, or paths from the project's root, as a guest's own: firmware is in their lib/firmware."""
    load: tuple[str, ...] = ()
    """Modules that initd loads in any case; the others are loaded by a device's MODALIAS."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options for QEMU. Sizes are strings with a unit (`2G`), as in TOML."""

    machine: Machine = "q35"
    cpu: str = "max"
    """QEMU's CPU model; under KVM `max` is the host's CPU."""
    hide_kvm: bool = True
    """Under KVM: hide its CPUID leaf; drivers of consumer cards refuse to work if they see it."""
    clock: Literal["host", "vm"] = "host"
    """What the guest's real-time clock follows: the host's clock, or guest time, which stops when the guest does."""
    cpus: int = 4
    max_cpus: int = 64
    """Most CPUs after hot-adding; the kernel's NR_CPUS must be at least this."""
    memory: str = "1G"
    max_memory: str = ""
    """Memory including hot-plugged DIMMs; empty: no hot-plug."""
    slots: int = 4
    """Slots for DIMMs, if max_memory is set."""
    numa: tuple[Node, ...] = ()
    hugepages: Literal["", "2M", "1G"] = ""
    """The size of the host pages for all memory; empty: ordinary pages."""
    lock_memory: bool = False
    """Lock all memory, so that it is not swapped out; a passed-through card locks it in any case."""
    disks: tuple[Disk, ...] = ()
    gpus: tuple[str, ...] = ("secondary-vga",)
    """Emulated display-class device models, `bar:SIZE` for a card with one large BAR and nothing else, or PCI
    addresses of the host's cards for vfio-pci."""
    driver: str = ""
    """The driver that each of these cards must have in the guest; empty: it is not checked."""
    window: str = ""
    """The size of the 64-bit window for BARs, passed to OVMF; empty: as large as the cards need."""
    cmdline: tuple[str, ...] = ()
    """Kernel options in addition to those that boot-test adds."""
    console: Console = "full"
    """What the kernel prints on the console: everything; or warnings and worse, and its log comes after the report."""
    accel: Accel = "auto"
    root: Root | None = None
    """The guest's own [root]: it is written at the top of the guest's file."""
    drivers: Drivers | None = None
    """The guest's own [drivers], likewise."""
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
    """Values that override the fragments', by option name without CONFIG_."""
    overlays: tuple[str, ...] = ()
    """Names in overlays/, or paths from the project's root, in any order: none wins over another."""
    modules: tuple[str, ...] = ()
    """Names of what `doit modules name=NAME` built, for the initrd."""
    module_key: str = ""
    """A PEM file with a private key and its certificate, or its path from the project's root: modules are signed with
    it, and the kernel checks them by it. Empty: modules are not signed."""
    firmware: str = "ovmf-minimal"
    root: Root | None = None
    """Where the guest goes on to after its report; None: it has no root, and powers off."""
    drivers: Drivers | None = None
    """A disk of drivers, which is in the bundle; None: modules and firmware are in the initrd, or in the root."""
    launch: Launch = Launch()


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which kernel is built, and why: kept in out/ until the user changes it."""

    wanted: tuple[str, ...]
    """The guest's list, or the one series that the user requested."""
    series: str
    version: str
    reason: str
    source: str | None = None
    """The user's own tree or tarball; None: the pinned download."""
    fixed: bool = False
    """The user chose it (kernel=, source=)."""
