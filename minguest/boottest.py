# SPDX-License-Identifier: Apache-2.0
"""boot-test: start a bundle in QEMU, bounded in time, and judge it."""

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from minguest import bundle, files, kconfig, launch, qemu, report, verdict
from minguest.errors import GuestFailed, GuestLost
from minguest.model import Accel, Launch
from minguest.paths import Layout

SYSFS = Path("/sys")
# Seconds that a guest gets to prove that KVM can run it; under KVM a boot takes one or two.
KVM_PROOF = 20.0


class Outcome(msgspec.Struct, frozen=True):
    """verdict.json: the verdict and what it was about."""

    bundle: dict[str, bundle.File]
    spec: launch.Spec
    qemu: str
    accel: str
    """Which accelerator was taken, and why."""
    argv: tuple[str, ...]
    verdict: verdict.Verdict


def run(at: Layout, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> None:
    """Boot the bundle and write console.log, report.json, verdict.json and qemu.sh beside it.

    Raises GuestFailed or GuestLost for anything but a pass. A second run waits for the first.
    """

    def waiting() -> None:
        say(f"waiting for another boot test of {at.name}")

    with files.lock(at.work / ".boot-test.run", waiting):
        judged = _boot(at, words, wanted, say)
    say(verdict.table(judged))
    if judged.result == "pass":
        say(f"PASS: {judged.reason}")
        return
    kind = GuestFailed if judged.result == "failed" else GuestLost
    raise kind(f"FAIL, {judged.result}: {judged.reason}", f"read {at.boot_test / 'console.log'}")


def _boot(at: Layout, words: launch.Words, wanted: Launch, say: Callable[[str], None]) -> verdict.Verdict:
    manifest = bundle.load(at.bundle)
    config = kconfig.parse_config((at.bundle / "kernel.config").read_text())
    nr_cpus = int(config.get("NR_CPUS", "1")) if config.get("SMP") == "y" else 1
    if manifest.config["problems"]:
        # contract=ignore: the guest is booted as it was meant, to see what comes of its wrong config.
        nr_cpus = max(nr_cpus, wanted.max_cpus)
    spec = launch.settle(wanted, words, nr_cpus, launch.display_models(), SYSFS)
    version = qemu.version()
    accel, why = _accelerator(at, spec, version, manifest)
    spec = msgspec.structs.replace(spec, accel=accel)
    folder = at.boot_test
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    say(f"{at.name}: linux {manifest.kernel['version']}, OVMF {manifest.firmware['version']}, {spec.machine}, {why}")
    result = qemu.boot(_argv(at, spec, folder), folder, spec.timeout)
    seen = report.parse(result.report)
    judged = verdict.judge(spec, result, seen, manifest.config["problems"])
    files.write(folder / "report.json", msgspec.json.format(msgspec.json.encode(seen)))
    outcome = Outcome(manifest.files, spec, version, why, result.argv, judged)
    files.write(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(outcome)))
    return judged


def _argv(at: Layout, spec: launch.Spec, folder: Path) -> list[str]:
    files.copy(at.bundle / "OVMF_VARS.fd", folder / "OVMF_VARS.fd")
    return launch.argv(
        spec,
        code=str(at.bundle / "OVMF_CODE.fd"),
        variables="OVMF_VARS.fd",
        kernel=str(at.bundle / "bzImage"),
        initrd=str(at.bundle / "initrd.img"),
    )


def _accelerator(at: Layout, spec: launch.Spec, version: str, manifest: bundle.Manifest) -> tuple[Accel, str]:
    """KVM or TCG, and why. A proof of KVM is kept until QEMU, the bundle's bytes or the host's kernel change."""
    if spec.accel != "auto":
        return spec.accel, f"{spec.accel} as asked"
    place = at.out / "kvm.json"
    key = msgspec.json.encode([version, platform.release(), manifest.files["bzImage"], manifest.files["OVMF_CODE.fd"]])
    try:
        kept, works, why = msgspec.json.decode(place.read_bytes(), type=tuple[str, bool, str])
    except (OSError, msgspec.DecodeError):
        kept = ""
    if kept != key.decode():
        probe = msgspec.structs.replace(spec, accel="kvm", gpus=(), cpus=1)
        folder = at.work / "kvm-proof"
        folder.mkdir(parents=True, exist_ok=True)
        works, why = qemu.kvm_works(_argv(at, probe, folder), folder, KVM_PROOF)
        files.write(place, msgspec.json.encode((key.decode(), works, why)))
    return ("kvm", f"kvm ({why})") if works else ("tcg", f"software emulation ({why})")
