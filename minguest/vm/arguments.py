# SPDX-License-Identifier: Apache-2.0
"""From a Spec to QEMU's argv: pure, one option and its value a line, the reason beside what is not obvious."""

import shlex
from collections.abc import Sequence

import msgspec

from minguest.util.errors import UserError
from minguest.vm import disks
from minguest.vm.cards import Gpu
from minguest.vm.disks import comma
from minguest.vm.emulator import QEMU
from minguest.vm.launch import Spec, cpu

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
# The guest's serial ports: the console is for people, the report for this program. Not the second port: OVMF draws
# its screens on the first two. Not the third: it would share its interrupt with the first.
CONSOLE, REPORT = "ttyS0", "/dev/ttyS3"
REPORT_INDEX = 3
# Seconds that initd waits for what is plugged in.
PLUG_SECONDS = 20


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


def rows(words: Sequence[str]) -> list[str]:
    """An option and its value a row, quoted for a POSIX shell; a program's name is a row too."""
    made: list[str] = []
    for word in words:
        if word.startswith("-") or not made:
            made.append(shlex.quote(word))  # it may be a value that the user wrote
        else:
            made[-1] += f" {shlex.quote(word)}"
    return made


def script(argv: Sequence[str]) -> str:
    """The command as a script, an option and its value a line, that runs the same guest again."""
    command = " \\\n  ".join(rows(argv))
    return f"""#!/bin/sh
# Console on this terminal, report in report.jsonl, QMP on qmp.sock.
cd "$(dirname "$0")" || exit
exec {command}
"""


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
    words += [*spec.series_options, *spec.cmdline]
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
