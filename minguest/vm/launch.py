# SPDX-License-Identifier: Apache-2.0
"""A launch and the user's words, settled into a Spec; what cannot be is refused before QEMU starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from minguest import model, settings
from minguest.model import Accel, Launch, Machine
from minguest.util import pci, units
from minguest.util.errors import ToolError, UserError
from minguest.vm import bar_window, bar_window_text, cards, disks, emulator
from minguest.vm.cards import Gpu
from minguest.vm.report import cpu_list

# Accelerators that a launch is settled for; `auto` becomes one of them.
ACCELS: tuple[Accel, ...] = ("kvm", "tcg")
# Memory is plugged in by DIMMs of whole blocks: 128 MiB is Linux' smallest on x86-64 (MIN_MEMORY_BLOCK_SIZE).
DIMM = 128 << 20
# QEMU: ACPI_MAX_RAM_SLOTS, include/hw/acpi/acpi.h.
SLOTS_MAX = 256
# What a series's kernel is always told. 4.12's KASLR may unpack the kernel over the memory map that the EFI stub left
# in the loader's memory; later kernels take none but free memory (process_efi_entries, boot/compressed/kaslr.c).
SERIES_OPTIONS = {"4.12": ("nokaslr",)}


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
    hide_kvm: bool = True
    clock: str = "host"
    hugepages: str = ""
    lock_memory: bool = False
    disks: tuple[model.Disk, ...] = ()
    plug_cpus: int = 0
    """CPUs that are there in the end, some of them plugged in while the guest runs; 0: none is."""
    unplug_cpus: int = 0
    """CPUs that are left when some of those are taken out again; 0: none is."""
    plug_memory: int = 0
    """Bytes of memory that are there in the end, likewise."""
    power_button: bool = False
    """The guest waits for its power button in place of powering off by itself."""
    series_options: tuple[str, ...] = ()
    """Words for the kernel that its series wants."""
    window: int = 0
    """MiB of the 64-bit window for BARs that OVMF is told to open; 0: it decides itself."""

    @property
    def last_cpus(self) -> int:
        """How many CPUs there are in the end."""
        return self.unplug_cpus or max(self.cpus, self.plug_cpus)


class Options(msgspec.Struct, frozen=True):
    """What the user typed after boot-test; an empty word leaves the guest's launch as it is."""

    cpus: str = ""
    memory: str = ""
    gpu: str = ""
    machine: str = ""
    accel: str = ""
    timeout: str = ""
    plug_cpus: str = ""
    unplug_cpus: str = ""
    plug_memory: str = ""
    power_button: bool = False


def settle(
    launch: Launch,
    words: Options,
    nr_cpus: int,
    models: Sequence[str],
    sysfs: Path,
    series: str = "",
    *,
    here: bool = True,
) -> Spec:
    """Apply the user's words to a launch; UserError for what cannot be.

    `nr_cpus` is what the bundle's kernel was built for and `series` its series, `models` what this QEMU has, `sysfs` is
    /sys. Of a launch that is not started `here` cards and disks need not be there, nor be free.
    """
    cpus = settings.integer(words.cpus, "--cpus") if words.cpus else launch.cpus
    settings.check_cpus(cpus, "--cpus")
    if cpus > nr_cpus:
        raise UserError(
            f"--cpus {cpus}: the bundle's kernel was built for at most {nr_cpus} CPUs (CONFIG_NR_CPUS)",
            "raise launch.max_cpus and NR_CPUS in the guest's file (options.NR_CPUS = …), and build again",
        )
    names = tuple(filter(None, words.gpu.split(","))) if words.gpu else launch.gpus
    gpus: tuple[Gpu, ...] = ()
    if names != ("none",):
        gpus = tuple(cards.one_gpu(f"gpu{n}", name, models, sysfs, here) for n, name in enumerate(names))
    taken = [place for gpu in gpus if gpu.host for place in (gpu.host, *gpu.functions)]
    if twice := [place for place in taken if taken.count(place) > 1]:
        raise UserError(
            f"--gpu {','.join(names)}: {twice[0]} is there twice",
            "all functions of a card go along with it: name its first one, once",
        )
    memory = settings.size(words.memory or launch.memory, "--memory")
    most, plugged = _room(launch, memory, words.plug_memory)
    max_cpus = max(cpus, launch.max_cpus)
    plug_cpus = settings.integer(words.plug_cpus, "--plug-cpus") if words.plug_cpus else 0
    if plug_cpus and not cpus < plug_cpus <= max_cpus:
        raise UserError(
            f"--plug-cpus {plug_cpus}: the guest starts with {cpus} CPUs and can have {max_cpus}",
            "say how many there are to be in the end; launch.max_cpus is the limit",
        )
    unplug_cpus = settings.integer(words.unplug_cpus, "--unplug-cpus") if words.unplug_cpus else 0
    if unplug_cpus and not cpus <= unplug_cpus < plug_cpus:
        raise UserError(
            f"--unplug-cpus {unplug_cpus}: only what was plugged in is taken out again: of {plug_cpus or cpus} CPUs, "
            f"{cpus} at least are left",
            "for example --cpus 2 --plug-cpus 8 --unplug-cpus 4",
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
        gpus=_near(gpus, launch.numa, one_of("--machine", words.machine or launch.machine, Machine)),
        cmdline=launch.cmdline,
        timeout=timeout,
        max_memory=most,
        slots=launch.slots if most else 0,
        numa=_nodes(launch.numa, max_cpus, memory),
        hide_kvm=launch.hide_kvm,
        clock=launch.clock,
        hugepages=launch.hugepages,
        lock_memory=launch.lock_memory,
        disks=tuple(disks.settle(f"launch.disks[{n}]", disk, here) for n, disk in enumerate(launch.disks)),
        plug_cpus=plug_cpus,
        unplug_cpus=unplug_cpus,
        plug_memory=plugged,
        power_button=words.power_button,
        series_options=SERIES_OPTIONS.get(series, ()),
        window=settings.size(launch.window, "launch.window") >> 20 if launch.window else 0,
    )


def with_room(spec: Spec, sysfs: Path, cpuinfo: str) -> tuple[Spec, bar_window.Plan | None]:
    """A q35 launch with room for its cards' BARs: OVMF is told of a window where it would open too small a one, and
    an emulated CPU is widened. What the launch says itself stands. The plan, if there is a card to plan for.
    """
    large = [gpu.word for gpu in spec.gpus if gpu.bar or gpu.host]
    if spec.machine != "q35" or not large:
        return spec, None
    found = cards.of_words(large, sysfs)
    others = [gpu.functions for gpu in spec.gpus if gpu.bar or gpu.host]
    found = [_whole(card, functions, sysfs) for card, functions in zip(found, others, strict=True)]

    def planned(model: str) -> bar_window.Plan:
        bits, vendor = bar_window.cpu(model, spec.accel, cpuinfo)
        return bar_window.plan(found, spec.memory, bits, max_memory=spec.max_memory, slots=spec.slots, vendor=vendor)

    made = planned(cpu(spec))
    if spec.window:
        return spec, made
    bits = made.alone_bits or made.phys_bits
    if not made.fits and spec.accel == "tcg" and bits and "phys-bits=" not in spec.cpu:
        spec = msgspec.structs.replace(spec, cpu=f"{spec.cpu},phys-bits={bits}")
        made = planned(spec.cpu)
    told = made.window.size >> 20 if made.fits and made.fw_cfg else 0
    return msgspec.structs.replace(spec, window=told), made


def _whole(card: cards.Card, functions: Sequence[str], sysfs: Path) -> cards.Card:
    """A card with the BARs of its other functions, which are behind the same root port."""
    more = [bar for each in functions for bar in cards.bars_on_host(each, sysfs)]
    return msgspec.structs.replace(card, bars=(*card.bars, *more))


def _room(launch: Launch, memory: int, plug: str) -> tuple[int, int]:
    """Bytes that memory can grow to, and shall."""
    most = settings.size(launch.max_memory, "launch.max_memory") if launch.max_memory else 0
    plugged = settings.size(plug, "--plug-memory") if plug else 0
    if plugged and plugged <= memory:
        raise UserError(
            f"--plug-memory {plug}: the guest starts with {units.whole(memory)}, and nothing is left to plug in",
            "say how much there is to be in the end",
        )
    # A boot test that plugs memory in makes the room for it.
    most = max(most, plugged)
    if most and most <= memory:
        raise UserError(
            f"memory {units.whole(memory)}, at most {units.whole(most)}: nothing can be plugged in",
            "max_memory counts the memory that is there in the end: make it more than memory",
        )
    if most and not 1 <= launch.slots <= SLOTS_MAX:
        raise UserError(
            f"launch.slots = {launch.slots}: memory is plugged in by DIMMs, and a machine has 1 to {SLOTS_MAX} slots"
        )
    if plugged and (plugged - memory) % DIMM:
        raise UserError(f"--plug-memory {plug}: {units.whole(plugged - memory)} is no multiple of {units.whole(DIMM)}")
    return most, plugged


def _nodes(wanted: Sequence[model.Node], max_cpus: int, memory: int) -> tuple[Node, ...]:
    """The nodes by number, with CPUs that can be plugged in; UserError where they do not add up to the launch."""
    if not wanted:
        return ()
    sizes = [settings.size(node.memory, f"launch.numa[{n}].memory") for n, node in enumerate(wanted)]
    if sum(sizes) != memory:
        raise UserError(
            f"launch.numa: the nodes have {units.whole(sum(sizes))}, the launch has {units.whole(memory)}",
            "let the nodes' memory come to launch.memory",
        )
    lists = []
    for n, node in enumerate(wanted):
        try:
            lists.append(cpu_list(node.cpus))
        except ValueError:
            raise UserError(f"launch.numa[{n}].cpus = {node.cpus!r} is no list of CPUs", "for example 0-3,8") from None
    named = [cpu for each in lists for cpu in each]
    if wrong := sorted({cpu for cpu in named if named.count(cpu) > 1 or cpu >= max_cpus}):
        raise UserError(
            f"launch.numa: CPU {wrong[0]} is in two nodes, or is none of the {max_cpus} that the guest can have",
            "they are counted from 0; launch.max_cpus is the limit",
        )
    lists[0] += [cpu for cpu in range(max_cpus) if cpu not in named]
    far = [tuple(10 if a == b else 20 for b in range(len(wanted))) for a in range(len(wanted))]
    distances = [node.distances or far[n] for n, node in enumerate(wanted)]
    for n, row in enumerate(distances):
        if len(row) != len(wanted) or row[n] != 10 or not all(10 <= each <= 254 for each in row):
            raise UserError(
                f"launch.numa[{n}].distances = {list(row)}: one a node is wanted, 10 to itself, 10 to 254 to others"
            )
    return tuple(Node(tuple(sorted(c)), s, tuple(d)) for c, s, d in zip(lists, sizes, distances, strict=True))


def _near(gpus: Sequence[Gpu], nodes: Sequence[model.Node], machine: Machine) -> tuple[Gpu, ...]:
    """The cards with their nodes."""
    owners = {gpu: n for n, node in enumerate(nodes) for gpu in node.gpus}
    named = [gpu for node in nodes for gpu in node.gpus]
    if wrong := [gpu for gpu in named if named.count(gpu) > 1 or not 0 <= gpu < len(gpus)]:
        raise UserError(
            f"launch.numa: GPU {wrong[0]} is in two nodes, or is none of the {len(gpus)} of this launch",
            "they are counted from 0, in the order of launch.gpus",
        )
    if named and machine != "q35":
        raise UserError(f"launch.numa: machine {machine} has no buses of a node for gpus = {named}", 'machine = "q35"')
    return tuple(msgspec.structs.replace(gpu, node=owners.get(n)) for n, gpu in enumerate(gpus))


def room_told(spec: Spec, made: bar_window.Plan) -> str:
    """One line of what with_room came to."""
    need = f"64-bit window: {units.whole(made.window_mib << 20)} are needed"
    if spec.window:
        return f"{need}, OVMF is told to open {units.whole(spec.window << 20)} (-cpu {cpu(spec)})"
    if made.fits:
        return f"{need}, OVMF opens enough by itself"
    return f"{need}; {'; '.join(bar_window_text.warnings(made))}"


def planned(launch: Launch) -> Spec:
    """A launch that nobody starts yet: its cards need not be on this machine. UserError for what cannot be."""
    try:
        models: Sequence[str] = emulator.display_models()
    except ToolError:
        models = launch.gpus  # without QEMU nobody knows which there are
    return settle(launch, Options(), launch.cpus, models, Path("/sys"), here=False)


def shipped(launch: Launch, series: str, sysfs: Path, cpuinfo: str) -> dict[Accel, Spec]:
    """A bundle's own launch, for KVM and for software emulation, as its run-guest has it.

    Cards that are on this machine are planned with its CPU (`cpuinfo`: /proc/cpuinfo). For others there is nothing to
    plan with. Emulated ones come out the same wherever the bundle is built: the host's CPU counts as one of 40 bits.
    Where a host's has others and its plan is another, boot-test takes that.
    """
    spec = settle(launch, Options(), launch.cpus, launch.gpus, sysfs, series, here=False)
    by_accel = {accel: msgspec.structs.replace(spec, accel=accel) for accel in ACCELS}
    if absent(spec, sysfs):
        return by_accel
    info = cpuinfo if any(gpu.host for gpu in spec.gpus) else ""
    return {accel: with_room(each, sysfs, info)[0] for accel, each in by_accel.items()}


def absent(spec: Spec, sysfs: Path) -> list[str]:
    """Addresses of the cards that this machine does not have."""
    return [gpu.host for gpu in spec.gpus if gpu.host and not pci.function(sysfs, gpu.host).is_dir()]


def one_of(where: str, word: str, choices: Any) -> Any:
    """A word that must be one of a Literal's."""
    known = get_args(choices)
    if word not in known:
        raise UserError(f"{where} {word}: not known", f"one of {', '.join(known)}")
    return word


def cpu(spec: Spec) -> str:
    """QEMU's CPU model and its flags for this accelerator."""
    if spec.accel != "kvm":
        return spec.cpu
    name, comma_, flags = spec.cpu.partition(",")
    return ("host" if name == "max" else name) + comma_ + flags + (",kvm=off" if spec.hide_kvm else "")
