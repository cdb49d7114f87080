# SPDX-License-Identifier: Apache-2.0
"""From a Spec to QEMU's argv. Pure. One option and its value a line, with the reason where it is not obvious."""

import shlex
from collections.abc import Sequence

import msgspec

from minguest.util.errors import UserError
from minguest.vm import disks
from minguest.vm.cards import Gpu
from minguest.vm.disks import comma
from minguest.vm.emulator import QEMU
from minguest.vm.launch import Spec, cpu

LINK = disks.LINK
# A person is at the console, Ctrl-a x ends QEMU, and QEMU ends with its guest. signal=off: Ctrl-C goes to the guest.
ATTENDED = ("-chardev", "stdio,id=console,signal=off,mux=on")
# A program watches over QMP. QEMU stays when the guest has ended, so that it can still be queried.
WATCHED = (
    "-chardev", "stdio,id=console,signal=off",
    "-chardev", "socket,id=qmp,path=qmp.sock,server=on,wait=off",
    "-mon", "chardev=qmp,mode=control",
    "-no-shutdown",
)  # fmt: skip
# The guest's serial ports: the console is for people, the report for this program. The report is not on the second
# port: OVMF draws its screens on the first two. Nor on the third, which would share its interrupt with the first.
CONSOLE, REPORT = "ttyS0", "/dev/ttyS3"
REPORT_INDEX = 3
# The frequency of the local APIC's timer: a tick is a nanosecond in QEMU (hw/intc/apic.c) and in KVM
# (APIC_BUS_CYCLE_NS_DEFAULT). The kernel measures it for 0.1 s, unless the CPU has a TSC deadline timer or, by a patch
# of ours, this parameter says it. Another kernel takes no notice.
LAPIC_KHZ = 1000000
# A quiet console: the kernel prints what is below level 5, so warnings and worse. `quiet` would drop warnings too, and
# silence the EFI stub. An oops and a panic print all of theirs at any level (the kernel's console_verbose). All that
# the kernel logged comes after the report.
QUIET = ("loglevel=5", "initd.report-log=kernel")
# Seconds that initd waits for CPUs and memory that are plugged in.
PLUG_SECONDS = 20


class Group(msgspec.Struct, frozen=True):
    """Options of QEMU that belong together; none if the launch does not need them."""

    why: str
    """A line for a person: what they are, and why they are there."""
    options: tuple[str, ...]
    """With their values, as arguments of argv."""


def argv(spec: Spec, *, watched: bool = True, **paths: str) -> list[str]:
    """QEMU's command. `spec.accel` must be settled (kvm or tcg).

    `paths` are those of `groups`, as QEMU sees them. The report, QMP's socket and the variables are relative to the
    folder that QEMU is started in. A `watched` guest is queried over QMP when it has ended; else a person is at the
    console.
    """
    options = [each for group in groups(spec, **paths) for each in group.options]
    return [QEMU, *options, *(WATCHED if watched else ATTENDED)]


def watching(attended: Sequence[str]) -> list[str]:
    """The same command for a program to watch; UserError if it is not a command from `argv` or run-guest."""
    if tuple(attended[-len(ATTENDED) :]) != ATTENDED:
        raise UserError(
            f"run-guest --show ends with {' '.join(attended[-2:])!r}, not with {' '.join(ATTENDED)!r}",
            "another minguest built the bundle, or it was changed: build it again, or use the minguest that built it",
        )
    return [*attended[: -len(ATTENDED)], *WATCHED]


def rows(arguments: Sequence[str]) -> list[str]:
    """An option and its value a row, quoted for a POSIX shell; a program's name is a row too."""
    quoted: list[str] = []
    for each in arguments:
        if each.startswith("-") or not quoted:
            quoted.append(shlex.quote(each))  # it may be a value that the user wrote
        else:
            quoted[-1] += f" {shlex.quote(each)}"
    return quoted


def script(argv: Sequence[str]) -> str:
    """A script that runs the same guest again: the command, an option and its value a line."""
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
    """QEMU's options, all but the host's end of the console: for every spec the same groups in the same order."""
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
            "CPUs and memory: what the guest starts with, and the most that plugging in can reach.",
            ("-smp", f"{spec.cpus},maxcpus={spec.max_cpus}", "-m", memory),
        ),
        Group("Where the memory comes from, and the NUMA nodes.", tuple(_memory_argv(spec))),
        Group(
            "The real-time clock: interrupts that the guest missed are delivered later.",
            ("-rtc", f"base=utc,clock={spec.clock},driftfix=slew"),
        ),
        Group(
            "KVM's timer: interrupts that the guest missed come late, and not all at once.",
            ("-global", "kvm-pit.lost_tick_policy=delay") if spec.accel == "kvm" else (),
        ),
        Group(
            "OVMF as flash, not by -bios: code and variables are a pair, and OVMF writes to the variables.",
            (
                "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={comma(code)}",
                "-drive", f"if=pflash,unit=1,format=raw,file={comma(variables)}",
            ),
        ),
        Group("MiB of OVMF's window for 64-bit BARs: its default is too small for these cards.", window),
        Group("The kernel and its initrd.", ("-kernel", kernel, "-initrd", initrd)),
        Group(
            "The kernel's command line.",
            ("-append", " ".join(cmdline(spec))),
        ),
        Group(
            "First serial port: the console. Fourth: the report alone, which the kernel's messages would cut into.",
            (
                "-serial", "chardev:console",
                "-chardev", "file,id=report,path=report.jsonl",
                "-device", f"isa-serial,chardev=report,index={REPORT_INDEX}",
            ),
        ),
        Group("Disks.", tuple(each for n, disk in enumerate(spec.disks) for each in disks.argv(disk, n))),
        Group("Cards.", tuple(_cards_argv(spec))),
    ]  # fmt: skip


def cmdline(spec: Spec) -> list[str]:
    """The kernel's parameters."""
    # Linux times the timer's interrupt against a busy loop. On a slow host that fails, and it panics: "IO-APIC + timer
    # doesn't work!". It skips the check by itself only where CPUID shows KVM (arch/x86/kernel/kvm.c).
    then = "init" if spec.root else after_report(spec)
    parameters = ["no_timer_check", f"lapic_timer_khz={LAPIC_KHZ}", "console=" + CONSOLE, "panic=-1"]
    parameters += [f"initd.report={REPORT}", f"initd.then={then}"]
    if root := spec.root:
        # The root is in the report, so that a boot test sees it; only then does its init start.
        parameters += [f'"initd.root={root.disk}"' if " " in root.disk else f"initd.root={root.disk}"]
        parameters += [f"initd.init={root.init}", f"initd.root-seconds={root.seconds}", f"initd.onfail={root.onfail}"]
        parameters += ["initd.report-after=root", "ro" if root.read_only else "rw"]
    if spec.drivers:
        parameters.append(f"initd.drivers=SERIAL={disks.DRIVERS.serial}")
        parameters += [f"initd.modules={','.join(spec.drivers.load)}"] * bool(spec.drivers.load)
    parameters += QUIET if spec.console == "quiet" else ()
    parameters += [*spec.series_options, *spec.cmdline]
    if spec.plug_cpus or spec.plug_memory:
        parameters += [f"initd.wait-cpus={spec.plug_cpus}"] * bool(spec.plug_cpus)
        parameters += [f"initd.wait-cpus-left={spec.unplug_cpus}"] * bool(spec.unplug_cpus)
        parameters += [f"initd.wait-memory={spec.plug_memory}"] * bool(spec.plug_memory)
        parameters.append(f"initd.wait-seconds={PLUG_SECONDS}")
        if spec.accel == "tcg":
            # Linux calibrates each CPU that is plugged in against the timer. On a slow host that takes seconds.
            parameters.insert(0, "lpj=2000000")
    return parameters


def after_report(spec: Spec) -> str:
    """What a guest does after its report in a boot test, as initd.then= has it."""
    return "wait" if spec.power_button else "poweroff"


def node_buses(spec: Spec) -> dict[int, int]:
    """NUMA nodes with cards near them, and the first bus of each node's host bridge. The bus numbers are shared out
    evenly."""
    near = sorted({gpu.node for gpu in spec.gpus if gpu.node is not None})
    return {node: 256 * place // (len(near) + 1) for place, node in enumerate(near, 1)}


def _cards_argv(spec: Spec) -> list[str]:
    """A device without bus= takes the first bus that fits, so the buses of nodes come last."""
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
    """Whether the memory is one object; with NUMA nodes each node has its own."""
    return bool(spec.hugepages) and not spec.numa


def _backend(spec: Spec, name: str, size: int) -> list[str]:
    kind = "memory-backend-ram"
    if spec.hugepages:
        # Allocated at the start: a page that is missing later would kill the guest.
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
    """Sorted numbers as QEMU wants them: 0-3, 8."""
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
        # Functions of one device share a slot; the last slots of the bus are free.
        port = ""
    at = f"{0x1F - number:x}" if spec.machine == "pc" else "0"
    for n, device in enumerate(devices):
        first = ",multifunction=on" if n == 0 else ""
        command += ["-device", f"{device}{port},addr={at}.{n}{first}"]
    return command
