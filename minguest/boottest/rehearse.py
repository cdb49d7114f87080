# SPDX-License-Identifier: Apache-2.0
"""The rehearsal: a real VFIO passthrough of emulated cards, on a machine with no GPU, no IOMMU and no KVM of its own.

QEMU emulates a host with an IOMMU, AMD's virtualization and cards; its root is this machine's own, read-only. The host
runs this project's host-bind, host-check, boot-test and host-unbind, as a host with real cards would, and the guest
runs under the host's KVM. `argv` and `script` are pure.
"""

import os
import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from minguest import settings
from minguest.boottest import runner, steps, verdict
from minguest.boottest.records import REHEARSAL_SCHEMA, Options, Rehearsal
from minguest.bundle import manifests
from minguest.model import Launch
from minguest.util import files, pci, templates
from minguest.util.errors import GuestFailed, GuestLost, UserError
from minguest.vm import arguments, bar_window, cards, emulator, launch, qemu, scripts
from minguest.vm.launch import Spec

# A card's second function, as a GPU's sound: it has a driver in host and guest, writes to the guest's memory and raises
# interrupts. iommu_platform: its DMA goes through the IOMMU, which a virtio device's otherwise does not.
SECOND = "virtio-rng-pci"
# Its registers (QEMU, hw/virtio/virtio-pci.c: VIRTIO_PCI_MODERN_MEM_BAR).
SECOND_BAR = cards.Bar(4, 16 << 10, 64, True)
# Bytes that the host has beyond its guest's memory.
HOST_MEMORY = 1 << 30
# Physical address bits of the host's CPU, at least.
BITS = 40
# npt: the CPU walks the guest's page tables, so KVM need not shadow them. -erms: the host clears each page that it pins
# for its guest with stores of 8 bytes, not of one: 5 of 64 s.
FLAGS = "+svm,+npt,-erms,-fsrm"
# VT-d's second-level tables with four levels (QEMU: 39 or 48): BARs lie higher than 39 bits reach, and are mapped for a
# card's DMA too.
IOMMU_BITS = 48
# caching-mode: mappings are reported to VFIO in the host. intremap: VFIO refuses without it.
IOMMU = f"intel-iommu,intremap=on,caching-mode=on,aw-bits={IOMMU_BITS}"
# The host's console is its serial port: no framebuffer of the firmware's holds the BAR of a card (see the fault
# framebuffer of hostfaults.py).
NO_CONSOLE = "video=efifb:off"
# Not /sys: this machine's cards may have the addresses of the emulated host's cards.
NO_SYSFS = Path("/nonexistent")
# The host's time is counted in instructions, each of 8 ns (2**3), not taken from the machine's clock. The thread of
# QEMU's CPU then runs the timers itself (accel/tcg/tcg-accel-ops-icount.c). Else another thread raises their
# interrupts, and both write the CPU's interrupt_request: do_vmexit (target/i386/tcg/sysemu/svm_helper.c, QEMU 7.2)
# clears a bit of it with no lock, and an interrupt that comes just then can be lost. A host that loses its timer's
# interrupt gets no other one, and hangs. And if the clock runs while QEMU waits for a CPU, the host on a loaded machine
# has little time for anything but those interrupts.
ICOUNT = "shift=3,sleep=on"
# How often a rehearsal is tried if its time runs out; the later tries have twice the time.
TRIES = 3
# The guest's share of the time.
GUEST_TIME = 0.8
# What the host runs, in its share.
SCRIPT = "rehearse"

# The options of a rehearsal.
OPTIONS = {
    "gpu": "the emulated cards, with commas: models, or bar:SIZE; the default is secondary-vga",
    "driver": "the driver that each card must have in the guest; the default is launch.driver, for cards of the launch",
    "cpus": "how many CPUs the guest has; the default is 1",
    "memory": "how much memory the guest has; the default is 256M",
    "timeout": "seconds after which a try counts as lost, the later tries have twice as many; the default is 300",
}


class Site(msgspec.Struct, frozen=True):
    """Where a rehearsal is done."""

    name: str
    root: Path
    """The project's folder: the host's programs start there."""
    bundle: Path
    host: Path
    """The host's bundle."""
    folder: Path
    """Gets the host's console, each step's log and boot-test's files; its old content is removed."""
    record: Path
    templates: Path


def run(site: Site, options: Options, say: Callable[[str], None]) -> None:
    """Rehearse, and write the record. GuestFailed, GuestLost or ToolError for anything but a pass."""

    def waiting() -> None:
        say(f"waiting for another rehearsal of {site.name}")

    with files.lock(site.folder.with_name(f".{site.folder.name}.run"), waiting):
        record = tried(lambda before: _run(site, options, say, before), say)
    say(steps.table(record.checks))
    if record.result == "pass":
        say(f"PASS: the cards went to the guest and back, in {record.seconds:.0f} s")
        return
    kind = GuestFailed if record.result == "failed" else GuestLost
    wrong = "; ".join(f"{check.name}: {check.why}" for check in record.checks if check.why)
    raise kind(f"FAIL, {record.result}: {wrong}", f"read {site.folder}: console of the host, a log of each step")


def tried(attempt: Callable[[tuple[str, ...]], tuple[Rehearsal, str]], say: Callable[[str], None]) -> Rehearsal:
    """The first record that did not run out of time, or the last of TRIES.

    `attempt` gets the reasons why the tries before it were lost. It returns its record, and the reason to try again, if
    there is one.
    """
    before: tuple[str, ...] = ()
    while True:
        record, why = attempt(before)
        if not why:
            return record
        before += (why,)
        last = len(before) == TRIES
        say(why if last else f"{why}; trying once more, with more time")
        if last:
            return record


def out_of_time(
    ending: qemu.Ending, outcome: runner.Outcome | None, wall: float, used: float, load: float, cpus: int
) -> str:
    """Why the time of the host or the guest ran out; empty: it did not.

    `wall`: seconds that passed; `used`: seconds of CPU that QEMU had; `load`: the machine's, a mean of five minutes.
    """
    if ending == "deadline":
        who = "the host"
    elif outcome is not None and outcome.verdict.result == "lost" and outcome.verdict.ending == "deadline":
        who = "the guest"
    else:
        return ""
    facts = f"in {wall:.0f} s QEMU had {used:.0f} s of a CPU; load {load:.1f} on {cpus} CPUs"
    # A high load shows that it may have been slow, not that it did not hang.
    why = "this machine is too loaded, or it hangs" if load > cpus else "it hangs, or it is slow"
    return f"{who} was not done in its time: {why} ({facts})"


def _used() -> float:
    """Seconds of CPU of this program's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(site: Site, options: Options, say: Callable[[str], None], before: tuple[str, ...]) -> tuple[Rehearsal, str]:
    manifest, host = manifests.load(site.bundle), manifests.load(site.host)
    found = requested_cards(options)
    timeout = settings.integer(options.timeout, "--timeout")
    if timeout <= 0:
        raise UserError(f"--timeout {timeout}: must be a positive number of seconds")
    timeout *= 2 if before else 1
    spec = host_spec(found, settings.size(options.memory, "--memory"), timeout)
    runner.check_memory(spec, runner.MEMINFO.read_text())
    folder = site.folder
    # If this rehearsal is interrupted, an earlier record must not count as its own.
    site.record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "share").mkdir(parents=True)
    files.copy(site.host / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    addresses = [address(number) for number in range(len(found))]
    wanted = guest_launch(manifest.guest.launch, options, addresses, timeout)
    _with_cards(site, manifest, wanted, addresses)
    files.write(folder / "share" / SCRIPT, script(site.templates / "rehearse.j2", site.root, addresses))
    (folder / "share" / SCRIPT).chmod(0o755)
    say(f"{site.name}: linux {manifest.kernel.version} as the guest of linux {host.kernel.version}, which has")
    say("\n".join(f"  {place}: {card}, {SECOND}" for place, card in zip(addresses, found, strict=True)))
    if wanted.driver:
        say(f"  the driver of each in the guest: {wanted.driver}")
    elif manifest.guest.launch.driver:
        say(f"  launch.driver {manifest.guest.launch.driver} is not for these cards; it is not checked")
    shown_steps: list[steps.Step] = []

    def look() -> None:
        for step in steps.read(folder / "share")[len(shown_steps) :]:
            shown_steps.append(step)
            say(f"  {step.uptime:6.1f} s  {step.name}{'' if step.status == 0 else f': status {step.status}'}")

    used = _used()
    result = qemu.boot(argv(site.host, spec, found), folder, timeout, linger=timeout, look=look)
    used = _used() - used
    outcome, seen = steps.left(folder / "share")
    checks = steps.judge(folder / "share", result, found, wanted.driver, outcome, seen)
    if outcome is not None:
        say(verdict.table(outcome.verdict))
    late = out_of_time(result.ending, outcome, result.wall, used, os.getloadavg()[1], os.cpu_count() or 1)
    wrong = [check for check in checks if check.why]
    # A host that went through its steps and powered off is not lost, whatever the result.
    lost = result.ending != "power-off" or bool(checks[0].why)
    kind: Literal["pass", "failed", "lost"] = "pass" if not wrong else "lost" if lost else "failed"
    record = Rehearsal(
        schema=REHEARSAL_SCHEMA,
        bundle=manifest.files,
        host=host.files,
        options=options,
        qemu=emulator.version(),
        result=kind,
        checks=tuple(checks),
        outcome=outcome,
        seconds=result.wall,
        before=before,
    )
    files.write(site.record, msgspec.json.format(msgspec.json.encode(record)))
    return record, late


def guest_launch(own: Launch, options: Options, addresses: Sequence[str], timeout: int) -> Launch:
    """The guest's launch, with the host's cards in place of its own; UserError for a wrong option.

    Of its memory only the size is rehearsed. Its disks, its disk of drivers and its root are left out: the host does
    not have them. Its driver is for its own cards.
    """
    if options.driver and own.drivers:
        raise UserError(
            f"--driver {options.driver}: this guest has its drivers on a disk, which a rehearsal leaves out",
            "name them in modules = [...] of the guest's file: then they are in the initrd",
        )
    its_own = own.drivers is None and set(options.gpu.split(",")) <= set(own.gpus)
    cpus = settings.integer(options.cpus, "--cpus")
    settings.check_cpus(cpus, "--cpus")
    return msgspec.structs.replace(
        own,
        machine="q35",
        cpus=cpus,
        max_cpus=max(cpus, own.max_cpus),
        memory=options.memory,
        max_memory="",
        numa=(),
        hugepages="",
        disks=(),
        root=None,
        drivers=None,
        driver=options.driver or (own.driver if its_own else ""),
        gpus=tuple(addresses),
        accel="kvm",
        timeout=int(timeout * GUEST_TIME),
    )


def _with_cards(site: Site, manifest: manifests.Manifest, wanted: Launch, addresses: Sequence[str]) -> None:
    """Put a bundle into the share: the guest's own, but with this launch and its launch files."""
    specs = {}
    for accel, spec in launch.shipped(wanted, manifest.kernel.series, NO_SYSFS, "").items():
        gpus = [msgspec.structs.replace(gpu, functions=(second(gpu.host or ""),)) for gpu in spec.gpus]
        specs[accel] = msgspec.structs.replace(spec, gpus=tuple(gpus))
    about = scripts.About(site.name, manifest.kernel.version, manifest.firmware.version)
    launch_files = scripts.render(site.templates, about, wanted, specs)
    facts = msgspec.to_builtins(manifest)
    facts["guest"]["launch"] = msgspec.to_builtins(wanted)
    inputs = {name: fact for name, fact in facts.items() if name not in ("schema", "minguest", "files")}
    parts = {name: site.bundle / name for name in manifests.PARTS}
    manifests.write(site.folder / "share/bundle", parts, inputs, launch_files)


def requested_cards(options: Options) -> list[cards.Gpu]:
    """The cards that the host gets; UserError for what it cannot have."""
    names = [name for name in options.gpu.split(",") if name]
    if not names or any(pci.is_address(name) for name in names):
        raise UserError(
            f"--gpu {options.gpu}: a rehearsal uses emulated cards",
            "for example --gpu secondary-vga,bar:1G; for a real card: doit boot-test --gpu 0000:01:00.0",
        )
    models = emulator.display_models()
    return [cards.one_gpu(f"card{number}", name, models, Path("/sys")) for number, name in enumerate(names)]


def address(number: int) -> str:
    """A card's address in the host and in the guest: each card is alone behind a root port of its own."""
    return f"0000:{number + 1:02x}:00.0"


def second(card: str) -> str:
    """The address of a card's second function."""
    return f"{card[:-1]}1"


def host_spec(found: Sequence[cards.Gpu], memory: int, timeout: float, console: str = NO_CONSOLE) -> Spec:
    """The launch of the host; the guest's `memory` in bytes. `console`: an option for its kernel, or empty."""
    large = [cards.one_bar(gpu.name) for gpu in found if gpu.bar]
    large = [msgspec.structs.replace(card, bars=(*card.bars, SECOND_BAR)) for card in large]
    bits = bar_window.plan(large, memory + HOST_MEMORY, BITS).alone_bits if large else BITS
    own = (console,) if console else ()
    root = ("initd.root=9p:root", "ro", "initd.share=share", f"initd.then=/run/share/{SCRIPT}")
    cmdline = ("intel_iommu=on", *own, *root)
    return Spec(
        machine="q35",
        accel="tcg",
        cpu=f"max,{FLAGS},phys-bits={max(bits or BITS, BITS)}",
        cpus=1,
        max_cpus=1,
        memory=memory + HOST_MEMORY,
        gpus=(),
        cmdline=cmdline,
        timeout=timeout,
    )


def argv(host: Path, spec: Spec, found: Sequence[cards.Gpu], iommu: str = IOMMU) -> list[str]:
    """QEMU's command for the host, from its bundle; relative paths start in the folder of the run.

    `iommu`: a QEMU device; empty: the host has none.
    """
    command = arguments.argv(
        spec,
        code=str(host / "OVMF_CODE.fd"),
        variables="OVMF_VARS.fd",
        kernel=str(host / "bzImage"),
        initrd=str(host / "initrd.img"),
    )
    # split: so that the IOMMU can remap interrupts. In one thread: with more, QEMU 7.2 aborts as soon as KVM runs in
    # the host (tcg_handle_interrupt: assertion failed: (qemu_mutex_iothread_locked())).
    command[command.index("-machine") + 1] = f"{spec.machine},kernel-irqchip=split"
    command += [
        "-accel", "tcg,thread=single",
        "-icount", ICOUNT,
        *(["-device", iommu] if iommu else []),
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", "local,id=share,path=share,security_model=none",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
    ]  # fmt: skip
    for number, gpu in enumerate(found):
        through = ",iommu_platform=on" if (gpu.model or "").startswith("virtio-") else ""
        device = f"pci-testdev,membar={gpu.bar >> 20}M" if gpu.bar else f"{gpu.model}{through}"
        command += [
            "-device", f"pcie-root-port,id=port{number},bus=pcie.0,chassis={number + 1},slot={number + 1}",
            "-device", f"{device},id={gpu.id},bus=port{number},addr=0.0,multifunction=on",
            "-device", f"{SECOND},bus=port{number},addr=0.1,iommu_platform=on,disable-legacy=on",
        ]  # fmt: skip
    return command


def script(template: Path, root: Path, addresses: Sequence[str]) -> str:
    """The script that the host runs."""
    return templates.render(
        template,
        root=shlex.quote(str(root)),
        python=shlex.quote(sys.executable),
        gpus=",".join(addresses),
        functions=" ".join(name for each in addresses for name in (each, second(each))),
    )
