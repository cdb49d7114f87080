# SPDX-License-Identifier: Apache-2.0
"""Settles a launch and the user's options into a Spec; what QEMU could not start is refused before QEMU starts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from minguest import model, settings
from minguest.model import Accel, Console, Launch, Machine
from minguest.util import pci, units
from minguest.util.errors import ToolError, UserError
from minguest.vm import bar_window, bar_window_text, cards, disks, emulator
from minguest.vm.cards import Gpu
from minguest.vm.report import cpu_list

# The accelerators; `auto` becomes one of them.
ACCELS: tuple[Accel, ...] = ("kvm", "tcg")
# Memory is plugged in as DIMMs of whole blocks: 128 MiB is Linux' smallest on x86-64 (MIN_MEMORY_BLOCK_SIZE).
DIMM = 128 << 20
# QEMU: ACPI_MAX_RAM_SLOTS, include/hw/acpi/acpi.h.
SLOTS_MAX = 256
# Parameters that a kernel of a series always gets. 4.12's KASLR may unpack the kernel over the memory map that the EFI
# stub left in the loader's memory; later kernels use only free memory (process_efi_entries, boot/compressed/kaslr.c).
SERIES_OPTIONS = {"4.12": ("nokaslr",)}


class Node(msgspec.Struct, frozen=True):
    """A NUMA node: CPUs by number, memory in bytes, distances to all nodes."""

    cpus: tuple[int, ...]
    memory: int
    distances: tuple[int, ...]


class Spec(msgspec.Struct, frozen=True):
    """A launch with everything settled. Memory in bytes, timeout in seconds."""

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
    """Bytes, counting what can be plugged in; 0: nothing can."""
    slots: int = 0
    numa: tuple[Node, ...] = ()
    hide_kvm: bool = True
    clock: str = "host"
    hugepages: str = ""
    lock_memory: bool = False
    disks: tuple[model.Disk, ...] = ()
    root: model.Root | None = None
    drivers: model.Drivers | None = None
    plug_cpus: int = 0
    """CPUs after some were plugged in while the guest runs; 0: none is plugged in."""
    unplug_cpus: int = 0
    """CPUs after some of those were unplugged again; 0: none is unplugged."""
    plug_memory: int = 0
    """Bytes of memory after some was plugged in while the guest runs; 0: none is plugged in."""
    power_button: bool = False
    """The guest waits for its power button, and does not power off by itself."""
    series_options: tuple[str, ...] = ()
    """Kernel parameters that the series needs."""
    driver: str = ""
    """The driver that each card must have in the guest; empty: it is not checked."""
    console: Console = "full"
    """`quiet`: the kernel prints warnings and worse, and initd sends its log after the report."""
    window: int = 0
    """MiB of the 64-bit window for BARs, as X-PciMmio64Mb; 0: OVMF decides."""

    @property
    def last_cpus(self) -> int:
        """How many CPUs the guest has in the end."""
        return self.unplug_cpus or max(self.cpus, self.plug_cpus)


class Options(msgspec.Struct, frozen=True):
    """The user's options of boot-test; an empty one leaves the guest's launch as it is."""

    cpus: str = ""
    memory: str = ""
    gpu: str = ""
    driver: str = ""
    machine: str = ""
    accel: str = ""
    timeout: str = ""
    plug_cpus: str = ""
    unplug_cpus: str = ""
    plug_memory: str = ""
    console: str = ""
    power_button: bool = False


def settle(
    launch: Launch,
    options: Options,
    nr_cpus: int,
    models: Sequence[str],
    sysfs: Path,
    series: str = "",
    *,
    here: bool = True,
) -> Spec:
    """Apply the user's options to a launch; UserError for what QEMU could not start.

    `nr_cpus` is what the bundle's kernel was built for and `series` its series; `models` are this QEMU's display
    devices; `sysfs` is /sys. For a launch that is not started `here`, cards and disks need not exist or be free.
    """
    cpus = settings.integer(options.cpus, "--cpus") if options.cpus else launch.cpus
    settings.check_cpus(cpus, "--cpus")
    if cpus > nr_cpus:
        raise UserError(
            f"--cpus {cpus}: the bundle's kernel was built for at most {nr_cpus} CPUs (CONFIG_NR_CPUS)",
            "raise launch.max_cpus and NR_CPUS in the guest's file (options.NR_CPUS = …), and build again",
        )
    names = tuple(filter(None, options.gpu.split(","))) if options.gpu else launch.gpus
    gpus: tuple[Gpu, ...] = ()
    if names != ("none",):
        gpus = tuple(cards.one_gpu(f"gpu{n}", name, models, sysfs, here) for n, name in enumerate(names))
    taken = [place for gpu in gpus if gpu.host for place in (gpu.host, *gpu.functions)]
    if twice := [place for place in taken if taken.count(place) > 1]:
        raise UserError(
            f"--gpu {','.join(names)}: {twice[0]} is named twice",
            "all functions of a card go with it: name the first one, once",
        )
    memory = settings.size(options.memory or launch.memory, "--memory")
    most, plugged = _room(launch, memory, options.plug_memory)
    max_cpus = max(cpus, launch.max_cpus)
    plug_cpus = settings.integer(options.plug_cpus, "--plug-cpus") if options.plug_cpus else 0
    if plug_cpus and not cpus < plug_cpus <= max_cpus:
        raise UserError(
            f"--plug-cpus {plug_cpus}: the guest starts with {cpus} CPUs and can have {max_cpus}",
            "give the number of CPUs in the end; launch.max_cpus is the limit",
        )
    unplug_cpus = settings.integer(options.unplug_cpus, "--unplug-cpus") if options.unplug_cpus else 0
    if unplug_cpus and not cpus <= unplug_cpus < plug_cpus:
        raise UserError(
            f"--unplug-cpus {unplug_cpus}: only CPUs that were plugged in can be unplugged: of {plug_cpus or cpus}, "
            f"at least {cpus} are left",
            "for example --cpus 2 --plug-cpus 8 --unplug-cpus 4",
        )
    if options.driver and not gpus:
        raise UserError(f"--driver {options.driver}: the launch has no card", "--gpu with the card, or no --driver")
    timeout = settings.integer(options.timeout, "--timeout") if options.timeout else launch.timeout
    if timeout <= 0:
        raise UserError(f"--timeout {timeout}: must be a positive number of seconds")
    return Spec(
        machine=one_of("--machine", options.machine, Machine) if options.machine else launch.machine,
        accel=one_of("--accel", options.accel, Accel) if options.accel else launch.accel,
        cpu=launch.cpu,
        cpus=cpus,
        max_cpus=max_cpus,
        memory=memory,
        gpus=_near(gpus, launch.numa, one_of("--machine", options.machine or launch.machine, Machine)),
        cmdline=launch.cmdline,
        timeout=timeout,
        max_memory=most,
        slots=launch.slots if most else 0,
        numa=_nodes(launch.numa, max_cpus, memory),
        hide_kvm=launch.hide_kvm,
        clock=launch.clock,
        hugepages=launch.hugepages,
        lock_memory=launch.lock_memory,
        disks=(
            *(disks.settle(f"launch.disks[{n}]", disk, here) for n, disk in enumerate(launch.disks)),
            *([disks.DRIVERS] if launch.drivers else []),
        ),
        root=launch.root,
        drivers=launch.drivers,
        plug_cpus=plug_cpus,
        unplug_cpus=unplug_cpus,
        plug_memory=plugged,
        power_button=options.power_button,
        series_options=SERIES_OPTIONS.get(series, ()),
        # The launch's driver is for its own cards.
        driver=options.driver or ("" if options.gpu else launch.driver),
        console=one_of("--console", options.console, Console) if options.console else launch.console,
        window=settings.size(launch.window, "launch.window") >> 20 if launch.window else 0,
    )


def with_room(spec: Spec, sysfs: Path, cpuinfo: str) -> tuple[Spec, bar_window.Plan | None]:
    """A q35 launch with room for its cards' BARs: it sets X-PciMmio64Mb where OVMF's own window is too small, and
    widens an emulated CPU. What the launch itself sets stays. Also returns the plan, if there is a card to plan for.
    """
    large = [gpu.name for gpu in spec.gpus if gpu.bar or gpu.host]
    if spec.machine != "q35" or not large:
        return spec, None
    found = cards.named(large, sysfs)
    others = [gpu.functions for gpu in spec.gpus if gpu.bar or gpu.host]
    found = [_whole(card, functions, sysfs) for card, functions in zip(found, others, strict=True)]

    def planned(model: str) -> bar_window.Plan:
        bits, vendor = bar_window.cpu(model, spec.accel, cpuinfo)
        return bar_window.plan(found, spec.memory, bits, max_memory=spec.max_memory, slots=spec.slots, vendor=vendor)

    plan = planned(cpu(spec))
    if spec.window:
        return spec, plan
    bits = plan.alone_bits or plan.phys_bits
    if not plan.fits and spec.accel == "tcg" and bits and "phys-bits=" not in spec.cpu:
        spec = msgspec.structs.replace(spec, cpu=f"{spec.cpu},phys-bits={bits}")
        plan = planned(spec.cpu)
    window = plan.window.size >> 20 if plan.fits and plan.fw_cfg else 0
    return msgspec.structs.replace(spec, window=window), plan


def _whole(card: cards.Card, functions: Sequence[str], sysfs: Path) -> cards.Card:
    """A card with the BARs of its other functions, which are behind the same root port."""
    more = [bar for each in functions for bar in cards.bars_on_host(each, sysfs)]
    return msgspec.structs.replace(card, bars=(*card.bars, *more))


def _room(launch: Launch, memory: int, plug: str) -> tuple[int, int]:
    """Bytes that memory can grow to, and bytes that --plug-memory grows it to."""
    most = settings.size(launch.max_memory, "launch.max_memory") if launch.max_memory else 0
    plugged = settings.size(plug, "--plug-memory") if plug else 0
    if plugged and plugged <= memory:
        raise UserError(
            f"--plug-memory {plug}: the guest starts with {units.whole(memory)}, so nothing is left to plug in",
            "give the memory that the guest has in the end",
        )
    # A boot test that plugs memory in makes room for it.
    most = max(most, plugged)
    if most and most <= memory:
        raise UserError(
            f"memory {units.whole(memory)}, at most {units.whole(most)}: nothing can be plugged in",
            "max_memory counts all memory in the end: make it more than memory",
        )
    if most and not 1 <= launch.slots <= SLOTS_MAX:
        raise UserError(
            f"launch.slots = {launch.slots}: memory is plugged in as DIMMs, and a machine has 1 to {SLOTS_MAX} slots"
        )
    if plugged and (plugged - memory) % DIMM:
        more = units.whole(plugged - memory)
        raise UserError(f"--plug-memory {plug}: {more} is not a multiple of {units.whole(DIMM)}")
    return most, plugged


def _nodes(wanted: Sequence[model.Node], max_cpus: int, memory: int) -> tuple[Node, ...]:
    """The nodes by number, with CPUs that can be plugged in; UserError if they do not add up to the launch."""
    if not wanted:
        return ()
    sizes = [settings.size(node.memory, f"launch.numa[{n}].memory") for n, node in enumerate(wanted)]
    if sum(sizes) != memory:
        raise UserError(
            f"launch.numa: the nodes have {units.whole(sum(sizes))}, the launch has {units.whole(memory)}",
            "the nodes' memory must add up to launch.memory",
        )
    lists = []
    for n, node in enumerate(wanted):
        try:
            lists.append(cpu_list(node.cpus))
        except ValueError:
            message = f"launch.numa[{n}].cpus = {node.cpus!r} is not a list of CPUs"
            raise UserError(message, "for example 0-3,8") from None
    named = [cpu for each in lists for cpu in each]
    if wrong := sorted({cpu for cpu in named if named.count(cpu) > 1 or cpu >= max_cpus}):
        raise UserError(
            f"launch.numa: CPU {wrong[0]} is in two nodes, or is not one of the {max_cpus} that the guest can have",
            "CPUs are counted from 0; launch.max_cpus is the limit",
        )
    lists[0] += [cpu for cpu in range(max_cpus) if cpu not in named]
    far = [tuple(10 if a == b else 20 for b in range(len(wanted))) for a in range(len(wanted))]
    distances = [node.distances or far[n] for n, node in enumerate(wanted)]
    for n, row in enumerate(distances):
        if len(row) != len(wanted) or row[n] != 10 or not all(10 <= each <= 254 for each in row):
            raise UserError(
                f"launch.numa[{n}].distances = {list(row)}: give one for each node, 10 to itself, 10 to 254 to others"
            )
    return tuple(Node(tuple(sorted(c)), s, tuple(d)) for c, s, d in zip(lists, sizes, distances, strict=True))


def _near(gpus: Sequence[Gpu], nodes: Sequence[model.Node], machine: Machine) -> tuple[Gpu, ...]:
    """The cards with their nodes."""
    owners = {gpu: n for n, node in enumerate(nodes) for gpu in node.gpus}
    named = [gpu for node in nodes for gpu in node.gpus]
    if wrong := [gpu for gpu in named if named.count(gpu) > 1 or not 0 <= gpu < len(gpus)]:
        raise UserError(
            f"launch.numa: GPU {wrong[0]} is in two nodes, or is not one of the {len(gpus)} of this launch",
            "GPUs are counted from 0, in the order of launch.gpus",
        )
    if named and machine != "q35":
        raise UserError(f"launch.numa: machine {machine} has no bus near a node for gpus = {named}", 'machine = "q35"')
    return tuple(msgspec.structs.replace(gpu, node=owners.get(n)) for n, gpu in enumerate(gpus))


def window_line(spec: Spec, plan: bar_window.Plan) -> str:
    """What with_room planned, in one line."""
    need = f"64-bit window: {units.whole(plan.window_mib << 20)} are needed"
    if spec.window:
        return f"{need}, X-PciMmio64Mb makes OVMF open {units.whole(spec.window << 20)} (-cpu {cpu(spec)})"
    if plan.fits:
        return f"{need}, OVMF opens enough by itself"
    return f"{need}; {'; '.join(bar_window_text.warnings(plan))}"


def planned(launch: Launch) -> Spec:
    """A launch that is not started yet: its cards need not be on this machine. UserError for what QEMU could not
    start."""
    try:
        models: Sequence[str] = emulator.display_models()
    except ToolError:
        models = launch.gpus  # without QEMU its models are not known
    return settle(launch, Options(), launch.cpus, models, Path("/sys"), here=False)


def shipped(launch: Launch, series: str, sysfs: Path, cpuinfo: str) -> dict[Accel, Spec]:
    """A bundle's own launch, for KVM and for software emulation, as its run-guest has it.

    Cards on this machine are planned with its CPU (`cpuinfo`: /proc/cpuinfo). For cards elsewhere there is nothing to
    plan with. The plan for emulated cards is the same wherever the bundle is built: it takes the host's CPU to have 40
    bits. On a host with another width boot-test uses its own plan.
    """
    spec = settle(launch, Options(), launch.cpus, launch.gpus, sysfs, series, here=False)
    by_accel = {accel: msgspec.structs.replace(spec, accel=accel) for accel in ACCELS}
    if absent(spec, sysfs):
        return by_accel
    info = cpuinfo if any(gpu.host for gpu in spec.gpus) else ""
    return {accel: with_room(each, sysfs, info)[0] for accel, each in by_accel.items()}


def absent(spec: Spec, sysfs: Path) -> list[str]:
    """Addresses of cards that this machine does not have."""
    return [gpu.host for gpu in spec.gpus if gpu.host and not pci.function(sysfs, gpu.host).is_dir()]


def one_of(where: str, value: str, choices: Any) -> Any:
    """A value that must be one of a Literal's."""
    known = get_args(choices)
    if value not in known:
        raise UserError(f"{where} {value}: not known", f"one of {', '.join(known)}")
    return value


def cpu(spec: Spec) -> str:
    """QEMU's CPU model and its flags for this accelerator."""
    name, comma_, flags = spec.cpu.partition(",")
    if spec.accel != "kvm":
        # Emulated MWAIT does not wait: a CPU that idles in it takes a core of the host's. OVMF leaves all CPUs but the
        # first in it until the kernel starts them. 16 CPUs on 2 cores boot in 0.55 of the CPU time without it.
        return f"{spec.cpu},-monitor" if name == "max" and "monitor" not in flags else spec.cpu
    return ("host" if name == "max" else name) + comma_ + flags + (",kvm=off" if spec.hide_kvm else "")
