# SPDX-License-Identifier: Apache-2.0
"""TOML files and environment variables become facts here, and nowhere else."""

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from minguest.model import Drivers, Guest, Part, Root, Source, Sources
from minguest.util import units
from minguest.util.errors import UserError

T = TypeVar("T")

# initd's own limit of initd.root-seconds= (initd/options.c).
ROOT_SECONDS_MAX = 600
# Of ccache(1), and of distcc(1), which CCACHE_PREFIX=distcc has compile what ccache has not.
PASSED = ("CCACHE_DIR", "CCACHE_DISABLE", "CCACHE_MAXSIZE", "CCACHE_REMOTE_STORAGE", "CCACHE_REMOTE_ONLY",
          "CCACHE_RESHARE", "CCACHE_PREFIX", "DISTCC_HOSTS", "DISTCC_DIR")  # fmt: skip
# Former names of keys, and what they are called now.
RENAMED = {"mend": "fix", "dig": "inject", "sabotage": "fault", "line": "series", "lines": "series"}
# What other programs call a key, and what it is called here: QEMU, libvirt, Ceph, Proxmox.
ELSEWHERE = {
    **dict.fromkeys(("ram", "mem", "memory_size"), "memory"),
    **dict.fromkeys(("smp", "vcpu", "vcpus", "cores", "cpu_count"), "cpus"),
    **dict.fromkeys(("maxcpus", "max_vcpus"), "max_cpus"),
    **dict.fromkeys(("maxmem", "memory_max"), "max_memory"),
    **dict.fromkeys(("append", "args", "kernel_args", "kernel_cmdline", "bootargs"), "cmdline"),
    **dict.fromkeys(("disk", "drive", "drives", "blockdev", "volumes"), "disks"),
    **dict.fromkeys(("card", "cards", "hostdev", "hostdevs", "devices", "vga", "vfio"), "gpus"),
    **dict.fromkeys(("node", "nodes", "cells"), "numa"),
    **dict.fromkeys(("accelerator", "virt_type"), "accel"),
    **dict.fromkeys(("cpu_model", "cpu_type"), "cpu"),
    **dict.fromkeys(("mlock", "mem_lock", "locked"), "lock_memory"),
    **dict.fromkeys(("rtc",), "clock"),
    **dict.fromkeys(("deadline",), "timeout"),
    **dict.fromkeys(("secret", "key", "keyring", "keyfile", "key_secret", "password"), "key_file"),
    **dict.fromkeys(("monitor", "mon", "mons", "mon_host", "host", "hosts", "server", "servers"), "monitors"),
    **dict.fromkeys(("pool", "image", "ceph"), "rbd"),
    **dict.fromkeys(("path", "filename", "source", "dev"), "file"),
    **dict.fromkeys(("id", "username", "client"), "user"),
    **dict.fromkeys(("ceph_conf", "config", "config_file"), "conf"),
    **dict.fromkeys(("ro", "readonly"), "read_only"),
}


def decode(path: Path, kind: type[T]) -> T:
    """Read a TOML file as `kind`; UserError names the file, the key, and the nearest known key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.toml")], 1)
        raise UserError(f"{path}: no such file", f"did you mean {near[0]}?" if near else "") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {_explain(str(error), document, kind)}") from error


def guest_file(root: Path, name: str | None) -> Path:
    """The file of a guest that a command line names: FILE.toml, a name in configs/guests/; else the default one."""
    if name in (None, "default"):
        return root / "configs/guest.toml"
    path = Path(str(name)).expanduser()
    return path.absolute() if path.suffix == ".toml" else root / "configs/guests" / f"{name}.toml"


def guest(path: Path) -> Guest:
    """Read one guest and check what a schema cannot say."""
    found = decode(path, Guest)
    launch = found.launch
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*", found.name):
        raise UserError(f"{path}: name = {found.name!r} becomes a folder's name: use a-z, 0-9, '-', '_' and '.'")
    if not found.kernel:
        raise UserError(f"{path}: kernel = [] names no series", 'for example kernel = ["4.12", "6.12"]')
    check_cpus(launch.cpus, f"{path}: launch.cpus")
    if launch.max_cpus < launch.cpus:
        raise UserError(
            f"{path}: launch.max_cpus = {launch.max_cpus} is below launch.cpus = {launch.cpus}",
            "max_cpus counts the CPUs that are there after hot-adding: make it at least cpus",
        )
    size(launch.memory, f"{path}: launch.memory")
    if launch.timeout <= 0:
        raise UserError(f"{path}: launch.timeout = {launch.timeout} must be a positive number of seconds")
    if launch.root is not None:
        raise UserError(f"{path}: [launch.root]: a guest's root is [root], at the top of the file")
    if launch.drivers is not None:
        raise UserError(f"{path}: [launch.drivers]: a guest's drivers are [drivers], at the top of the file")
    if found.root is not None:
        _check_root(found.root, f"{path}: root")
    if found.drivers is not None:
        _check_drivers(found.drivers, f"{path}: drivers")
    settled = msgspec.structs.replace(launch, root=found.root, drivers=found.drivers)
    return msgspec.structs.replace(found, launch=settled)


def _check_drivers(drivers: Drivers, where: str) -> None:
    if not drivers.modules:
        raise UserError(f"{where}.modules = [] names no modules", "the name= of `doit modules`; or remove [drivers]")
    for name in drivers.load:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,55}", name):
            raise UserError(f"{where}.load: {name!r} is not a module's name", "for example nvidia-uvm")


def _check_root(root: Root, where: str) -> None:
    """A root that initd can look for; UserError for what it would only find out at boot."""
    if not re.fullmatch(r'/dev/[^\s"]+|(LABEL=|UUID=|PARTUUID=|PARTLABEL=|SERIAL=|9p:|virtiofs:)[^"]+', root.disk):
        raise UserError(
            f"{where}.disk = {root.disk!r}: not known",
            "write /dev/NAME, LABEL=, UUID=, PARTUUID=, PARTLABEL=, SERIAL=, 9p:TAG or virtiofs:TAG",
        )
    if not re.fullmatch(r'/[^\s"]*[^\s"/]', root.init):
        raise UserError(f"{where}.init = {root.init!r}: not the path of a program", "for example /sbin/init")
    if not 1 <= root.seconds <= ROOT_SECONDS_MAX:
        raise UserError(f"{where}.seconds = {root.seconds}: not from 1 to {ROOT_SECONDS_MAX}")


def sources(path: Path) -> Sources:
    """Read configs/sources.toml."""
    found = decode(path, Sources)
    named: list[tuple[str, Source | Part]] = [
        *found.kernel.items(),
        *found.firmware.items(),
        *found.package.items(),
        *((f"{name}: debian", each.debian) for name, each in found.firmware.items() if each.debian),
        *((f"{name}: source", part) for name, package in found.package.items() for part in package.source),
    ]
    for name, source in named:
        if not re.fullmatch(r"[0-9a-f]{64}", source.sha256):
            raise UserError(f"{path}: {name}: sha256 = {source.sha256!r} is not 64 lower-case hex digits")
        if not source.urls:
            raise UserError(f"{path}: {name}: urls is empty")
    return found


def check_cpus(cpus: int, where: str) -> None:
    """A number of CPUs that QEMU can make at all."""
    if cpus < 1:
        raise UserError(f"{where} = {cpus}: a guest has at least one CPU")


def integer(text: str, where: str) -> int:
    """A whole number that the user typed."""
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{where} = {text!r} is not a whole number") from None


def size(text: str, where: str) -> int:
    """Bytes of `512M`, `2G`, `1.5G`; UserError names `where`."""
    count = units.read(text)
    if not count or count % units.MIB:
        raise UserError(f"{where} = {text!r} is not a size in whole MiB", "write for example 512M or 2G")
    return count


def cache_folder() -> Path:
    """Where downloads live: $MINGUEST_CACHE, else the user's cache folder (XDG base directories)."""
    if own := os.environ.get("MINGUEST_CACHE"):
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "minguest"


def store_folder() -> Path:
    """Where trees, kernels and compiled objects live: $MINGUEST_STORE, else the cache folder.

    UserError where make could not build there: it takes blanks, colons and quotes in a path for its own.
    """
    own = os.environ.get("MINGUEST_STORE")
    folder = Path(own).absolute() if own else cache_folder()
    if strange := re.search(r"[^\w/.,+@=-]", str(folder)):
        raise UserError(
            f"{folder}: make cannot build in a folder with {strange[0]!r} in its path",
            "MINGUEST_STORE=/another/folder is where kernels are built",
        )
    return folder


def trusted_keys() -> Path:
    """The user's file of keys that may sign a release: allowed signers, ssh-keygen(1)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base).absolute() / "minguest" / "trusted-keys"


def signing_key() -> Path | None:
    """The file of the key that signs releases, from $MINGUEST_SIGNING_KEY."""
    name = os.environ.get("MINGUEST_SIGNING_KEY")
    return Path(name).expanduser().absolute() if name else None


def registry_configs() -> list[Path]:
    """Where docker, oras and podman keep the credentials of registries, in the order in which they are read."""
    docker = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    podman, runtime = os.environ.get("REGISTRY_AUTH_FILE"), os.environ.get("XDG_RUNTIME_DIR")
    return [
        *([Path(podman)] if podman else []),
        docker,
        *([Path(runtime) / "containers" / "auth.json"] if runtime else []),
    ]


def github_token() -> str | None:
    """The token for GitHub's API, as its own programs read it."""
    return os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN")


def github_api() -> str:
    """The API's address: GitHub's own, or $GITHUB_API_URL as GitHub Actions and Enterprise set it."""
    return os.environ.get("GITHUB_API_URL", "https://api.github.com").rstrip("/")


def completing() -> bool:
    """Whether a shell wants to know how to complete the command line: argcomplete's variable."""
    return "_ARGCOMPLETE" in os.environ


def compiler_cache() -> dict[str, str]:
    """ccache's settings that the user has in the environment: where objects are kept, and what compiles those that are
    not (distcc)."""
    return {name: value for name in PASSED if (value := os.environ.get(name))}


def jobs() -> int:
    """How many jobs make gets: $MINGUEST_JOBS, else the CPUs that this process may use. UserError if it is no count."""
    if own := os.environ.get("MINGUEST_JOBS"):
        count = integer(own, "MINGUEST_JOBS")
        if count < 1:
            raise UserError(f"MINGUEST_JOBS = {count}: a build has at least one job")
        return count
    return len(os.sched_getaffinity(0))


def _explain(message: str, document: dict[str, Any], kind: type) -> str:
    """msgspec's message, with a key that will do where one is unknown."""
    unknown = re.search(r"unknown field `(.*?)`(?: - at `\$(.*?)`)?$", message)
    if not unknown:
        return re.sub(r"`\$\.?(.*?)`$", r"`\1`", message)
    key, where = unknown[1], (unknown[2] or "").lstrip(".")
    known = _fields_at(kind, where)
    full = f"{where}.{key}" if where else key
    if (new := RENAMED.get(key)) in known:
        return f"unknown key `{full}`; it is called `{new}` now"
    meant = ELSEWHERE.get(key.lower().replace("-", "_"))
    if meant in known:
        return f"unknown key `{full}`; nearest known key: `{meant}`"
    if (table := _tables(kind).get(key)) is not None:
        return f"unknown key `{full}`; it belongs {f'below [{table}]' if table else 'at the top of the file'}"
    near = difflib.get_close_matches(key, known, 1)
    return f"unknown key `{full}`" + (f"; nearest known key: `{near[0]}`" if near else f"; known: {', '.join(known)}")


def _tables(kind: Any, table: str = "") -> dict[str, str]:
    """Which table of a file each key is of; of several, the first."""
    hints = typing.get_type_hints(kind)
    found = dict.fromkeys(hints, table)
    for name, hint in hints.items():
        for inner in (hint, *typing.get_args(hint)):
            # Keys of a mapping are the user's own: what is below them has no one table.
            if hasattr(inner, "__struct_fields__") and typing.get_origin(hint) is not Mapping:
                found = {**_tables(inner, f"{table}.{name}".lstrip(".")), **found}
    return found


def _fields_at(kind: Any, where: str) -> list[str]:
    """Names of the fields of the struct at a msgspec path such as `launch` or `kernel[...].signature`."""
    for step in re.findall(r"\w+", re.sub(r"\[.*?\]", "", where)):
        kind = typing.get_type_hints(kind)[step]
        # The struct itself, or the one inside of Optional, a tuple or a mapping.
        kind = next((each for each in typing.get_args(kind) if hasattr(each, "__struct_fields__")), kind)
    return list(getattr(kind, "__struct_fields__", ()))
