# SPDX-License-Identifier: Apache-2.0
"""From a launch to QEMU's argv: pure, one option and its value a line, the reason beside what is not obvious."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from minguest import model, settings
from minguest.model import Accel, Launch, Machine
from minguest.util import run, units
from minguest.util.errors import ToolError, UserError
from minguest.vm import bar_window, cards, disks
from minguest.vm.disks import comma
from minguest.vm.report import cpu_list

QEMU = "qemu-system-x86_64"
# Accelerators that a launch is settled for; `auto` becomes one of them.
ACCELS: tuple[Accel, ...] = ("kvm", "tcg")
# How QEMU finds the bundle from the folder that it is started in: by a link, so that no path of the machine is in its
# words, and no comma, which it would take for the end of a value.
LINK = "bundle"
# A person is at the console, Ctrl-a x ends QEMU, and QEMU ends with its guest. signal=off: Ctrl-C is the guest's.
ATTENDED = ("-chardev", "stdio,id=console,signal=off,mux=on")
# A program asks over QMP, and an ended guest stays, to be asked.
WATCHED = (
    "-chardev", "stdio,id=console,signal=off",
    "-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off",
    "-mon", "chardev=qmp,mode=control",
    "-no-shutdown",
)  # fmt: skip
# Domain, bus, slot and function, as lspci -D prints them.
BDF = re.compile(r"(?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.IGNORECASE)
# The guest's serial ports: the console is for people, the report for this program. Not the second port: OVMF draws
# its screens on the first two. Not the third: it would share its interrupt with the first.
CONSOLE, REPORT = "ttyS0", "/dev/ttyS3"
REPORT_INDEX = 3
# Memory is plugged in by DIMMs of whole blocks: 128 MiB is Linux' smallest on x86-64 (MIN_MEMORY_BLOCK_SIZE).
DIMM = 128 << 20
# QEMU: ACPI_MAX_RAM_SLOTS, include/hw/acpi/acpi.h.
SLOTS_MAX = 256
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
    functions: tuple[str, ...] = ()
    """PCI addresses of the card's other functions, its sound for one, that go along with it."""
    card: cards.Card | None = None
    """What the host's sysfs says of it."""
    node: int | None = None
    """The NUMA node that it is near; None: none in particular."""

    def __str__(self) -> str:
        return self.model or (f"BAR {units.whole(self.bar)}" if self.bar else f"vfio-pci {self.host}")


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
    line_words: tuple[str, ...] = ()
    """Words for the kernel that its line wants."""
    window: int = 0
    """MiB of the 64-bit window for BARs that OVMF is told to open; 0: it decides itself."""

    @property
    def last_cpus(self) -> int:
        """How many CPUs there are in the end."""
        return self.unplug_cpus or max(self.cpus, self.plug_cpus)


class Words(msgspec.Struct, frozen=True):
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
    words: Words,
    nr_cpus: int,
    models: Sequence[str],
    sysfs: Path,
    line: str = "",
    *,
    here: bool = True,
) -> Spec:
    """Apply the user's words to a launch; UserError for what cannot be.

    `nr_cpus` is what the bundle's kernel was built for and `line` its line, `models` what this QEMU has, `sysfs` is
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
        gpus = tuple(one_gpu(f"gpu{n}", name, models, sysfs, here) for n, name in enumerate(names))
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
        line_words=LINE_WORDS.get(line, ()),
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
    return f"{need}, OVMF opens enough by itself" if made.fits else f"{need}; {'; '.join(made.warnings)}"


def planned(launch: Launch) -> Spec:
    """A launch that nobody starts yet: its cards need not be on this machine. UserError for what cannot be."""
    try:
        models: Sequence[str] = display_models()
    except ToolError:
        models = launch.gpus  # without QEMU nobody knows which there are
    return settle(launch, Words(), launch.cpus, models, Path("/sys"), here=False)


def shipped(launch: Launch, line: str, sysfs: Path, cpuinfo: str) -> dict[Accel, Spec]:
    """A bundle's own launch, for KVM and for software emulation, as its run-guest has it.

    Cards that are on this machine are planned with its CPU (`cpuinfo`: /proc/cpuinfo). For others there is nothing to
    plan with. Emulated ones come out the same wherever the bundle is built: the host's CPU counts as one of 40 bits.
    Where a host's has others and its plan is another, boot-test takes that.
    """
    spec = settle(launch, Words(), launch.cpus, launch.gpus, sysfs, line, here=False)
    by_accel = {accel: msgspec.structs.replace(spec, accel=accel) for accel in ACCELS}
    if absent(spec, sysfs):
        return by_accel
    info = cpuinfo if any(gpu.host for gpu in spec.gpus) else ""
    return {accel: with_room(each, sysfs, info)[0] for accel, each in by_accel.items()}


def absent(spec: Spec, sysfs: Path) -> list[str]:
    """Addresses of the cards that this machine does not have."""
    return [gpu.host for gpu in spec.gpus if gpu.host and not (sysfs / "bus/pci/devices" / gpu.host).is_dir()]


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


def one_gpu(name: str, word: str, models: Sequence[str], sysfs: Path, here: bool = True) -> Gpu:
    """A card by its word; UserError for one that this QEMU has not, or this host, unless it need not be `here`."""
    if BDF.fullmatch(word):
        host = _bound(word.lower(), sysfs, here)
        others = sorted(path.name for path in (sysfs / "bus/pci/devices").glob(f"{host.rpartition('.')[0]}.*"))
        # A virtual function (SR-IOV) is a card of its own: it has no others, and is no other's.
        virtual = [each for each in (host, *others) if (sysfs / "bus/pci/devices" / each / "physfn").exists()]
        others = [] if host in virtual else [each for each in others if each != host and each not in virtual]
        functions = tuple(_bound(each, sysfs, here) for each in others)
        there = here or (sysfs / "bus/pci/devices" / host).is_dir()
        return Gpu(name, word, host=host, functions=functions, card=cards.on_host(host, sysfs) if there else None)
    if word.startswith("bar:"):
        size = settings.size(word.removeprefix("bar:"), f"--gpu {word}")
        if size & (size - 1):
            raise UserError(f"--gpu {word}: a BAR's size is a power of two", "for example bar:64G")
        return Gpu(name, word, bar=size)
    if word in models:
        return Gpu(name, word, model=word)
    if ":" in word:
        raise UserError(f"--gpu {word}: not a PCI address", "write it as lspci -D prints it, for example 0000:01:00.0")
    near = difflib.get_close_matches(word, models, 1)
    raise UserError(
        f"--gpu {word}: this QEMU has no PCI display device of that name",
        f"did you mean {near[0]}?" if near else f"it has {', '.join(models)}; or give a card's address, 0000:01:00.0",
    )


def _bound(bdf: str, sysfs: Path, here: bool) -> str:
    """The full address of a card that, where it is started `here`, exists and is vfio-pci's."""
    bdf = bdf if bdf.count(":") == 2 else f"0000:{bdf}"
    if not here:
        return bdf
    device = sysfs / "bus/pci/devices" / bdf
    if not device.is_dir():
        raise UserError(f"--gpu {bdf}: this host has no such PCI device", "lspci -Dd ::0300/ff00 and ::0302 list cards")
    if (code := (device / "class").read_text().strip() if (device / "class").exists() else "").startswith("0x06"):
        raise UserError(f"--gpu {bdf}: is a bridge (class {code[2:]})", "name the card behind it: lspci -tv shows it")
    driver = (device / "driver").resolve().name if (device / "driver").exists() else "no driver"
    if driver != "vfio-pci":
        raise UserError(
            f"--gpu {bdf}: is bound to {driver}; a card can be passed through only while vfio-pci has it",
            f"doit host-bind gpu={bdf} shows how to give it, with its IOMMU group, to vfio-pci; yes=yes does it",
        )
    return bdf


class Group(msgspec.Struct, frozen=True):
    """Words for QEMU that belong together; none, where the launch does not ask for them."""

    why: str
    """A line for a person: what they are, and why they are there."""
    words: tuple[str, ...]


def argv(spec: Spec, *, watched: bool = True, **paths: str) -> list[str]:
    """QEMU's command. `spec.accel` must be settled (kvm or tcg).

    `paths` are those of `groups`, as QEMU shall see them; the report, QMP's socket and the variables are relative to
    the folder that it is started in. A `watched` guest is asked over QMP when it has ended; else a person is at the
    console.
    """
    words = [word for group in groups(spec, **paths) for word in group.words]
    return [QEMU, *words, *(WATCHED if watched else ATTENDED)]


def watching(attended: Sequence[str]) -> list[str]:
    """The same command for a program to watch; UserError where it is none that `argv` or run-guest made."""
    if tuple(attended[-len(ATTENDED) :]) != ATTENDED:
        raise UserError(
            f"run-guest --show ends with {' '.join(attended[-2:])!r}, not with {' '.join(ATTENDED)!r}",
            "the bundle is of another minguest, or was changed: build it again, or take the minguest that made it",
        )
    return [*attended[: -len(ATTENDED)], *WATCHED]


def groups(
    spec: Spec,
    *,
    code: str = f"{LINK}/OVMF_CODE.fd",
    variables: str = "OVMF_VARS.fd",
    kernel: str = f"{LINK}/bzImage",
    initrd: str = f"{LINK}/initrd.img",
) -> list[Group]:
    """QEMU's words but for the console's end: for every spec the same groups in the same order."""
    memory = f"{spec.memory // 2**20}M"
    if spec.max_memory:
        memory += f",slots={spec.slots},maxmem={spec.max_memory // 2**20}M"
    machine = f"{spec.machine},accel={spec.accel}" + (",memory-backend=memory" if _one_backend(spec) else "")
    # OvmfPkg/Library/PlatformInitLib/MemDetect.c reads it.
    window = ("-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={spec.window}") if spec.window else ()
    return [
        Group(
            "Nothing but what is named here; no screen; a reset ends the run.",
            ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        ),
        Group("The machine and its CPU.", ("-machine", machine, "-cpu", cpu(spec))),
        Group(
            "CPUs and memory: those that are there, and at most with what is plugged in.",
            ("-smp", f"{spec.cpus},maxcpus={spec.max_cpus}", "-m", memory),
        ),
        Group("Where the memory comes from, and the NUMA nodes.", tuple(_memory_argv(spec))),
        Group(
            "Interrupts of the real-time clock that the guest missed are made up for.",
            ("-rtc", f"base=utc,clock={spec.clock},driftfix=slew"),
        ),
        Group(
            "KVM's timer: interrupts that the guest missed come late, not all at once.",
            ("-global", "kvm-pit.lost_tick_policy=delay") if spec.accel == "kvm" else (),
        ),
        Group(
            "OVMF as flash, not by -bios: code and variables are a pair, and the variables are written to.",
            (
                "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={comma(code)}",
                "-drive", f"if=pflash,unit=1,format=raw,file={comma(variables)}",
            ),
        ),
        Group("MiB of OVMF's window for 64-bit BARs: by itself it opens too small a one for these cards.", window),
        Group("The kernel and its initrd.", ("-kernel", kernel, "-initrd", initrd)),
        Group(
            "What the kernel is told.",
            ("-append", " ".join(cmdline(spec))),
        ),
        Group(
            "First serial port: the console. Fourth: the report alone, the kernel's messages would cut into it.",
            (
                "-serial", "chardev:console",
                "-chardev", "file,id=report,path=report.jsonl",
                "-device", f"isa-serial,chardev=report,index={REPORT_INDEX}",
            ),
        ),
        Group("Disks.", tuple(word for n, disk in enumerate(spec.disks) for word in disks.argv(disk, n))),
        Group("Cards.", tuple(_cards_argv(spec))),
    ]  # fmt: skip


def cmdline(spec: Spec) -> list[str]:
    """The kernel's words."""
    # Linux times the timer's interrupt against a busy loop, and where a host is slow it panics: "IO-APIC + timer
    # doesn't work!". By itself it leaves that out only where CPUID tells of KVM (arch/x86/kernel/kvm.c).
    then = "wait" if spec.power_button else "poweroff"
    words = ["no_timer_check", "console=" + CONSOLE, "panic=-1", f"initd.report={REPORT}", f"initd.then={then}"]
    words += [*spec.line_words, *spec.cmdline]
    if spec.plug_cpus or spec.plug_memory:
        words += [f"initd.wait-cpus={spec.plug_cpus}"] * bool(spec.plug_cpus)
        words += [f"initd.wait-cpus-left={spec.unplug_cpus}"] * bool(spec.unplug_cpus)
        words += [f"initd.wait-memory={spec.plug_memory}"] * bool(spec.plug_memory)
        words.append(f"initd.wait-seconds={PLUG_SECONDS}")
        if spec.accel == "tcg":
            # Linux measures each CPU that is plugged in against the timer, for seconds where a host is slow.
            words.insert(0, "lpj=2000000")
    return words


def node_buses(spec: Spec) -> dict[int, int]:
    """NUMA nodes with cards near them, and the first bus of each one's host bridge: each has an even share of all."""
    near = sorted({gpu.node for gpu in spec.gpus if gpu.node is not None})
    return {node: 256 * place // (len(near) + 1) for place, node in enumerate(near, 1)}


def _cards_argv(spec: Spec) -> list[str]:
    """A device with no bus of its own takes the first that fits, so the buses of nodes come last."""
    command: list[str] = []
    buses = node_buses(spec)
    for node in (None, *buses):
        if node is not None:
            command += ["-device", f"pxb-pcie,id=node{node}-bus,bus=pcie.0,bus_nr={buses[node]},numa_node={node}"]
        for number, gpu in enumerate(spec.gpus):
            if gpu.node == node:
                command += _gpu_argv(spec, gpu, number)
    return command


def cpu(spec: Spec) -> str:
    """QEMU's CPU model and its flags for this accelerator."""
    if spec.accel != "kvm":
        return spec.cpu
    name, comma_, flags = spec.cpu.partition(",")
    return ("host" if name == "max" else name) + comma_ + flags + (",kvm=off" if spec.hide_kvm else "")


def _one_backend(spec: Spec) -> bool:
    """Whether the memory is one object; of a guest with nodes each node is one."""
    return bool(spec.hugepages) and not spec.numa


def _backend(spec: Spec, name: str, size: int) -> list[str]:
    kind = "memory-backend-ram"
    if spec.hugepages:
        # Taken at once: a page that is missing later would kill the guest.
        kind = f"memory-backend-memfd,hugetlb=on,hugetlbsize={spec.hugepages},prealloc=on"
    return ["-object", f"{kind},id={name},size={size // 2**20}M"]


def _memory_argv(spec: Spec) -> list[str]:
    command = ["-overcommit", "mem-lock=on"] if spec.lock_memory else []
    if _one_backend(spec):
        command += _backend(spec, "memory", spec.memory)
    for n, node in enumerate(spec.numa):
        cpus = "".join(f",cpus={each}" for each in _ranges(node.cpus))
        command += _backend(spec, f"node{n}-memory", node.memory)
        command += ["-numa", f"node,nodeid={n},memdev=node{n}-memory{cpus}"]
    for a, node in enumerate(spec.numa):
        for b, distance in enumerate(node.distances):
            if a != b:
                command += ["-numa", f"dist,src={a},dst={b},val={distance}"]
    return command


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Sorted numbers as QEMU takes them: 0-3, 8."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True)]


def _gpu_argv(spec: Spec, gpu: Gpu, number: int) -> list[str]:
    if gpu.model and gpu.node is None:
        return ["-device", f"{gpu.model},id={gpu.id}"]
    if gpu.model:
        devices = [f"{gpu.model},id={gpu.id}"]
    elif gpu.bar:
        devices = [f"pci-testdev,membar={gpu.bar // 2**20}M,id={gpu.id}"]
    else:
        hosts = (gpu.host or "", *gpu.functions)
        ids = [gpu.id, *(f"{gpu.id}-{n}" for n in range(1, len(hosts)))]
        devices = [f"vfio-pci,host={host},id={name}" for host, name in zip(hosts, ids, strict=True)]
    port, command = "", []
    if spec.machine != "pc":
        # A card is a PCI Express endpoint: behind a root port it has a link, and its driver finds its capabilities.
        port = f",bus=port{number}"
        bus = "pcie.0" if gpu.node is None else f"node{gpu.node}-bus"
        command = ["-device", f"pcie-root-port,id=port{number},bus={bus},chassis={number + 1},slot={number + 1}"]
    if len(devices) == 1:
        return [*command, "-device", devices[0] + port]
    if spec.machine == "pc":
        # Functions of one device share a slot; the last ones of the bus are free.
        port = ""
    at = f"{0x1F - number:x}" if spec.machine == "pc" else "0"
    for n, device in enumerate(devices):
        first = ",multifunction=on" if n == 0 else ""
        command += ["-device", f"{device}{port},addr={at}.{n}{first}"]
    return command
