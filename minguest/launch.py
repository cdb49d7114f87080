# SPDX-License-Identifier: Apache-2.0
"""From a launch to QEMU's argv: pure, one option and its value a line, the reason beside what is not obvious."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from minguest import model, run, settings
from minguest.errors import ToolError, UserError
from minguest.model import Accel, Launch, Machine
from minguest.report import cpu_list

QEMU = "qemu-system-x86_64"
# Domain, bus, slot and function, as lspci -D prints them.
BDF = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.IGNORECASE)
# The guest's serial ports: the console is for people, the report for this program. Not the second port: OVMF draws
# its screens on the first two. Not the third: it would share its interrupt with the first.
CONSOLE, REPORT = "ttyS0", "/dev/ttyS3"
REPORT_INDEX = 3
# Memory is plugged in by DIMMs of whole blocks: 128 MiB is Linux' smallest on x86-64 (MIN_MEMORY_BLOCK_SIZE).
DIMM = 128 << 20
# What a line's kernel is always told. 4.12's KASLR may unpack the kernel over the memory map that the EFI stub left
# in the loader's memory; later kernels take none but free memory (process_efi_entries, boot/compressed/kaslr.c).
LINE_WORDS = {"4.12": ("nokaslr",)}
# Seconds that initd waits for what is plugged in.
PLUG_SECONDS = 20


class Gpu(msgspec.Struct, frozen=True):
    """A card of the guest: an emulated `model`, or the `host`'s PCI address for vfio-pci."""

    id: str
    word: str
    """As the launch names it."""
    model: str | None = None
    host: str | None = None
    bar: int = 0
    """Bytes of the BAR of a card that is nothing but one: QEMU's pci-testdev."""

    def __str__(self) -> str:
        return self.model or (f"BAR {short(self.bar)}" if self.bar else f"vfio-pci {self.host}")


class Node(msgspec.Struct, frozen=True):
    """A NUMA node: CPUs by number, memory in bytes, distances to all nodes."""

    cpus: tuple[int, ...]
    memory: int
    distances: tuple[int, ...]


class Spec(msgspec.Struct, frozen=True):
    """A launch with every word settled. Memory in bytes, timeout in seconds."""

    machine: Machine
    accel: Accel
    cpu: str
    cpus: int
    max_cpus: int
    memory: int
    gpus: tuple[Gpu, ...]
    cmdline: tuple[str, ...]
    timeout: float
    max_memory: int = 0
    """Bytes with what can be plugged in; 0: nothing can."""
    slots: int = 0
    numa: tuple[Node, ...] = ()
    plug_cpus: int = 0
    """CPUs that are there in the end, some of them plugged in while the guest runs; 0: none is."""
    plug_memory: int = 0
    """Bytes of memory that are there in the end, likewise."""
    line_words: tuple[str, ...] = ()
    """Words for the kernel that its line wants."""


class Words(msgspec.Struct, frozen=True):
    """What the user typed after boot-test; an empty word leaves the guest's launch as it is."""

    cpus: str = ""
    memory: str = ""
    gpu: str = ""
    machine: str = ""
    accel: str = ""
    timeout: str = ""
    plug_cpus: str = ""
    plug_memory: str = ""


def settle(launch: Launch, words: Words, nr_cpus: int, models: Sequence[str], sysfs: Path, line: str = "") -> Spec:
    """Apply the user's words to a launch; UserError for what cannot be.

    `nr_cpus` is what the bundle's kernel was built for and `line` its line, `models` what this QEMU has, `sysfs` is
    /sys.
    """
    cpus = settings.integer(words.cpus, "--cpus") if words.cpus else launch.cpus
    settings.check_cpus(cpus, "--cpus")
    if cpus > nr_cpus:
        raise UserError(
            f"--cpus {cpus}: the bundle's kernel was built for at most {nr_cpus} CPUs (CONFIG_NR_CPUS)",
            "raise launch.max_cpus and NR_CPUS in the guest's file (options.NR_CPUS = …), and build again",
        )
    names = tuple(filter(None, words.gpu.split(","))) if words.gpu else launch.gpus
    gpus = () if names == ("none",) else tuple(_gpu(f"gpu{n}", name, models, sysfs) for n, name in enumerate(names))
    memory = settings.size(words.memory or launch.memory, "--memory")
    most, plugged = _room(launch, memory, words.plug_memory)
    max_cpus = max(cpus, launch.max_cpus)
    plug_cpus = settings.integer(words.plug_cpus, "--plug-cpus") if words.plug_cpus else 0
    if plug_cpus and not cpus < plug_cpus <= max_cpus:
        raise UserError(
            f"--plug-cpus {plug_cpus}: the guest starts with {cpus} CPUs and can have {max_cpus}",
            "say how many there are to be in the end; launch.max_cpus is the limit",
        )
    timeout = settings.integer(words.timeout, "--timeout") if words.timeout else launch.timeout
    if timeout <= 0:
        raise UserError(f"--timeout {timeout}: must be a positive number of seconds")
    return Spec(
        machine=one_of("--machine", words.machine, Machine) if words.machine else launch.machine,
        accel=one_of("--accel", words.accel, Accel) if words.accel else launch.accel,
        cpu=launch.cpu,
        cpus=cpus,
        max_cpus=max_cpus,
        memory=memory,
        gpus=gpus,
        cmdline=launch.cmdline,
        timeout=timeout,
        max_memory=most,
        slots=launch.slots if most else 0,
        numa=_nodes(launch.numa, cpus, memory),
        plug_cpus=plug_cpus,
        plug_memory=plugged,
        line_words=LINE_WORDS.get(line, ()),
    )


def _room(launch: Launch, memory: int, plug: str) -> tuple[int, int]:
    """Bytes that memory can grow to, and shall."""
    most = settings.size(launch.max_memory, "launch.max_memory") if launch.max_memory else 0
    plugged = settings.size(plug, "--plug-memory") if plug else 0
    # A boot test that plugs memory in makes the room for it.
    most = max(most, plugged)
    if most and most <= memory:
        raise UserError(
            f"memory {short(memory)}, at most {short(most)}: nothing can be plugged in",
            "max_memory counts the memory that is there in the end: make it more than memory",
        )
    if (plugged - memory) % DIMM if plugged else False:
        raise UserError(f"--plug-memory {plug}: {short(plugged - memory)} is no multiple of {short(DIMM)}")
    return most, plugged


def _nodes(wanted: Sequence[model.Node], cpus: int, memory: int) -> tuple[Node, ...]:
    """The nodes by number; UserError where they do not add up to the launch."""
    if not wanted:
        return ()
    sizes = [settings.size(node.memory, f"launch.numa[{n}].memory") for n, node in enumerate(wanted)]
    if sum(sizes) != memory:
        raise UserError(
            f"launch.numa: the nodes have {short(sum(sizes))}, the launch has {short(memory)}",
            "let the nodes' memory come to launch.memory",
        )
    lists = []
    for n, node in enumerate(wanted):
        try:
            lists.append(cpu_list(node.cpus))
        except ValueError:
            raise UserError(f"launch.numa[{n}].cpus = {node.cpus!r} is no list of CPUs", "for example 0-3,8") from None
    named = [cpu for each in lists for cpu in each]
    if wrong := sorted({cpu for cpu in named if named.count(cpu) > 1 or cpu >= cpus}):
        raise UserError(
            f"launch.numa: CPU {wrong[0]} is in two nodes, or is none of the {cpus} that the guest starts with"
        )
    lists[0] += [cpu for cpu in range(cpus) if cpu not in named]
    far = [tuple(10 if a == b else 20 for b in range(len(wanted))) for a in range(len(wanted))]
    distances = [node.distances or far[n] for n, node in enumerate(wanted)]
    for n, row in enumerate(distances):
        if len(row) != len(wanted) or row[n] != 10 or not all(10 <= each <= 254 for each in row):
            raise UserError(
                f"launch.numa[{n}].distances = {list(row)}: one a node is wanted, 10 to itself, 10 to 254 to others"
            )
    return tuple(Node(tuple(sorted(c)), s, tuple(d)) for c, s, d in zip(lists, sizes, distances, strict=True))


def planned(launch: Launch) -> Spec:
    """A launch that nobody starts yet: its cards need not be on this machine. UserError for what cannot be."""
    there = msgspec.structs.replace(launch, gpus=tuple(name for name in launch.gpus if not BDF.fullmatch(name)))
    try:
        models: Sequence[str] = display_models()
    except ToolError:
        models = launch.gpus  # without QEMU nobody knows which there are
    spec = settle(there, Words(), launch.cpus, models, Path("/sys"))
    absent = tuple(Gpu(f"host{n}", name, host=name) for n, name in enumerate(launch.gpus) if BDF.fullmatch(name))
    return msgspec.structs.replace(spec, gpus=(*spec.gpus, *absent))


def one_of(where: str, word: str, choices: Any) -> Any:
    """A word that must be one of a Literal's."""
    known = get_args(choices)
    if word not in known:
        raise UserError(f"{where} {word}: not known", f"one of {', '.join(known)}")
    return word


def display_models(qemu: str = QEMU) -> list[str]:
    """PCI display devices that this QEMU can emulate, from its own help."""
    _, text = run.run([qemu, "-device", "help"])
    section = re.search(r"^Display devices:\n((?:.+\n?)*)", text, re.MULTILINE)
    return re.findall(r'^name "([^"]+)", bus PCI', section[1], re.MULTILINE) if section else []


def _gpu(name: str, word: str, models: Sequence[str], sysfs: Path) -> Gpu:
    if BDF.fullmatch(word):
        return Gpu(name, word, host=_bound(word.lower(), sysfs))
    if word in models:
        return Gpu(name, word, model=word)
    if word.startswith("bar:"):
        size = settings.size(word.removeprefix("bar:"), f"--gpu {word}")
        if size & (size - 1):
            raise UserError(f"--gpu {word}: a BAR's size is a power of two", "for example bar:64G")
        return Gpu(name, word, bar=size)
    if ":" in word:
        raise UserError(f"--gpu {word}: not a PCI address", "write it as lspci -D prints it, for example 0000:01:00.0")
    near = difflib.get_close_matches(word, models, 1)
    raise UserError(
        f"--gpu {word}: this QEMU has no PCI display device of that name",
        f"did you mean {near[0]}?" if near else f"it has {', '.join(models)}; or give a card's address, 0000:01:00.0",
    )


def _bound(bdf: str, sysfs: Path) -> str:
    """The full address of a card that exists and is vfio-pci's."""
    bdf = bdf if bdf.count(":") == 2 else f"0000:{bdf}"
    device = sysfs / "bus/pci/devices" / bdf
    if not device.is_dir():
        raise UserError(f"--gpu {bdf}: this host has no such PCI device", "lspci -Dd ::0300/ff00 and ::0302 list cards")
    driver = (device / "driver").resolve().name if (device / "driver").exists() else "no driver"
    if driver != "vfio-pci":
        raise UserError(
            f"--gpu {bdf}: is bound to {driver}; a card can be passed through only while vfio-pci has it",
            f"driverctl set-override {bdf} vfio-pci (for all functions of its IOMMU group)",
        )
    return bdf


def argv(spec: Spec, *, code: str, variables: str, kernel: str, initrd: str, watched: bool = True) -> list[str]:
    """QEMU's command. Paths are strings as QEMU shall see them; the report, QMP's socket and the variables are
    relative to the folder that it is started in. `spec.accel` must be settled (kvm or tcg).

    A `watched` guest is asked over QMP when it has ended. Else a person is at the console (Ctrl-a x ends QEMU), and
    QEMU ends with its guest.
    """
    words = ["console=" + CONSOLE, "panic=-1", f"initd.report={REPORT}", "initd.then=poweroff", *spec.line_words]
    words += spec.cmdline
    if spec.accel == "tcg":
        # Linux times the timer's interrupt against a busy loop, and where a host is slow it panics: "IO-APIC + timer
        # doesn't work!". Under KVM it leaves that out by itself (arch/x86/kernel/kvm.c).
        words.insert(0, "no_timer_check")
    memory = f"{spec.memory // 2**20}M"
    if spec.max_memory:
        memory += f",slots={spec.slots},maxmem={spec.max_memory // 2**20}M"
    if spec.plug_cpus or spec.plug_memory:
        words += [f"initd.wait-cpus={spec.plug_cpus}"] * bool(spec.plug_cpus)
        words += [f"initd.wait-memory={spec.plug_memory}"] * bool(spec.plug_memory)
        words.append(f"initd.wait-seconds={PLUG_SECONDS}")
        if spec.accel == "tcg":
            # Linux measures each CPU that is plugged in against the timer, for seconds where a host is slow.
            words.insert(0, "lpj=2000000")
    command = [
        QEMU,
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-machine", f"{spec.machine},accel={spec.accel}",
        "-cpu", spec.cpu,
        "-smp", f"{spec.cpus},maxcpus={spec.max_cpus}",
        "-m", memory,
        # Flash, not -bios: the variables are writable, and code and variables are the pair that was built together.
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={comma(code)}",
        "-drive", f"if=pflash,unit=1,format=raw,file={comma(variables)}",
        "-kernel", kernel,
        "-initrd", initrd,
        "-append", " ".join(words),
        # First serial port: the console. signal=off, so that Ctrl-C in the guest does not end QEMU.
        "-chardev", f"stdio,id=console,signal=off{'' if watched else ',mux=on'}",
        "-serial", "chardev:console",
        # Fourth: the report alone. The kernel's printk cuts into lines on the console.
        "-chardev", "file,id=report,path=report.jsonl",
        "-device", f"isa-serial,chardev=report,index={REPORT_INDEX}",
        # A reset ends the run.
        "-no-reboot",
    ]  # fmt: skip
    if watched:
        command += [
            "-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            # An ended guest stays, to be asked.
            "-no-shutdown",
        ]  # fmt: skip
    command += _numa_argv(spec.numa)
    for number, gpu in enumerate(spec.gpus):
        command += _gpu_argv(spec, gpu, number)
    return command


def _numa_argv(nodes: Sequence[Node]) -> list[str]:
    command = []
    for n, node in enumerate(nodes):
        cpus = "".join(f",cpus={cpu}" for cpu in node.cpus)
        command += [
            "-object", f"memory-backend-ram,id=node{n}-memory,size={node.memory // 2**20}M",
            "-numa", f"node,nodeid={n},memdev=node{n}-memory{cpus}",
        ]  # fmt: skip
    for a, node in enumerate(nodes):
        for b, distance in enumerate(node.distances):
            if a != b:
                command += ["-numa", f"dist,src={a},dst={b},val={distance}"]
    return command


def _gpu_argv(spec: Spec, gpu: Gpu, number: int) -> list[str]:
    if gpu.model:
        return ["-device", f"{gpu.model},id={gpu.id}"]
    device = (
        f"pci-testdev,membar={gpu.bar // 2**20}M,id={gpu.id}" if gpu.bar else f"vfio-pci,host={gpu.host},id={gpu.id}"
    )
    if spec.machine == "pc":
        return ["-device", device]
    # A card is a PCI Express endpoint: behind a root port it has a link, and its driver finds its capabilities.
    return [
        "-device", f"pcie-root-port,id=port{number},bus=pcie.0,chassis={number + 1},slot={number + 1}",
        "-device", f"{device},bus=port{number}",
    ]  # fmt: skip


def short(count: int) -> str:
    """Bytes for a person, in the largest unit that they are whole in."""
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} bytes"


def comma(path: str) -> str:
    """A path inside of QEMU's option=value lists: a comma is doubled."""
    return path.replace(",", ",,")
