# SPDX-License-Identifier: Apache-2.0
"""Real guests in a real QEMU: those that must pass, and those that must not."""

import json
import re
import time
from pathlib import Path

import pytest

from minguest import paths
from minguest.boottest import runner, verdict
from minguest.bundle import cpio
from minguest.model import Launch
from minguest.util.archive import gzip_bytes
from minguest.util.errors import GuestError, ToolError
from minguest.vm import kvm, qemu, report
from minguest.vm.launch import Options
from tests import ROOT, guests
from tests.integration.conftest import SERIES, Doit

INIT = "init"


@pytest.mark.parametrize("machine", ["q35", "pc"])
@pytest.mark.parametrize("cpus", [1, 4, 8])
def test_boot_test_passes(built: paths.Layout, doit: Doit, cpus: int, machine: str) -> None:
    result = doit("boot-test", "--cpus", str(cpus), "--machine", machine, f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert "PASS" in result.stdout
    found = json.loads((built.boot_test / "verdict.json").read_bytes())
    checks = {check["name"]: check for check in found["verdict"]["checks"]}
    assert checks["CPUs"] == {
        "name": "CPUs", "requested": str(cpus), "qemu": str(cpus), "guest": str(cpus), "ok": True, "why": "",
    }  # fmt: skip
    assert all(check["ok"] for check in checks.values())
    assert b"Linux version" in (built.boot_test / "console.log").read_bytes()
    assert json.loads((built.boot_test / "report.json").read_bytes())["complete"] is True
    assert f"-smp {cpus}," in (built.boot_test / "qemu.sh").read_text()
    # Only what the next one may remove.
    assert {path.name for path in built.boot_test.iterdir()} <= set(runner.OUTPUT)


@pytest.mark.parametrize("gpu", ["virtio-gpu-pci", "bochs-display,secondary-vga"])
def test_other_cards_pass_too(built: paths.Layout, doit: Doit, gpu: str) -> None:
    result = doit("boot-test", "--gpu", gpu, "--memory", "512M", f"kernel={SERIES}")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("BARs placed") == len(gpu.split(","))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cpus", "0"], "a guest has at least one CPU"),
        (["--cpus", "65"], "at most 64 CPUs (CONFIG_NR_CPUS)"),
        (["--gpu", "secondary-vgaa"], "did you mean secondary-vga"),
        (["--gpu", "0000:7f:1f.7"], "this host has no such PCI device"),
        (["--memory", "much"], "is not a size"),
        (["--timeout", "1"], "it hung: no whole report, 1 s are over"),
    ],
)
def test_boot_test_fails_and_says_why(built: paths.Layout, doit: Doit, options: list[str], message: str) -> None:
    result = doit("boot-test", *options, f"kernel={SERIES}")
    assert result.returncode != 0
    assert message in result.stdout
    assert "Traceback" not in result.stdout


# ── guests that are wrong on purpose, without another kernel ──


class Bench:
    """Boots variants of the bundle, and judges them."""

    def __init__(self, at: paths.Layout, folder: Path) -> None:
        self.at = at
        self.folder = folder

    def boot(
        self, *cmdline: str, initrd: Path | None = None, drop: tuple[str, ...] = (), timeout: float = 60
    ) -> tuple[verdict.Verdict, qemu.Run]:
        image = initrd or self.at.bundle / "initrd.img"
        spec, argv = guests.command(self.at.bundle, Launch(cmdline=cmdline), image, self.folder, SERIES)
        argv = [each for each in argv if not any(part in each for part in drop)]
        result = qemu.boot(argv, self.folder, timeout)
        return verdict.judge(spec, result, report.parse(result.report)), result

    def initrd(self, script_or_program: bytes) -> Path:
        path = self.folder / "other.img"
        entries = [cpio.Entry(INIT, 0o100755, script_or_program)] if script_or_program else []
        path.write_bytes(gzip_bytes(cpio.archive(cpio.merge(entries))))
        return path


@pytest.fixture
def bench(built: paths.Layout, tmp_path: Path) -> Bench:
    return Bench(built, tmp_path)


def test_a_capped_cpu_count_fails(bench: Bench) -> None:
    found, _ = bench.boot("nr_cpus=2")
    assert (found.result, found.reason) == ("failed", "CPUs: 2 of 4; CPUs at most: 2 of 64")


def test_seabios_in_place_of_ovmf_fails(bench: Bench) -> None:
    # Without its two pflash drives QEMU uses SeaBIOS.
    found, _ = bench.boot(drop=("if=pflash", "-drive"))
    assert found.result == "failed"
    assert "firmware: the guest reports bios, not UEFI" in found.reason


def test_less_memory_fails(bench: Bench) -> None:
    found, _ = bench.boot("mem=512M")
    assert found.result == "failed"
    assert found.reason.startswith("memory: ")


def test_no_init_is_a_panic_and_lost(bench: Bench) -> None:
    found, result = bench.boot(initrd=bench.initrd(b""))
    assert found.result == "lost"
    assert "the kernel panicked" in found.reason
    assert result.wall < 60
    assert any("Kernel panic" in line.text for line in found.telling)
    assert found.tail


def test_an_init_that_ends_is_a_panic_and_lost(bench: Bench) -> None:
    # Not a program that the kernel can run: exec fails, and there is no PID 1.
    found, _ = bench.boot(initrd=bench.initrd(b"no program"))
    assert found.result == "lost"
    assert "the kernel panicked" in found.reason


def test_a_guest_that_powers_off_too_early_is_lost(bench: Bench) -> None:
    found, _ = bench.boot("initd.report=/dev/nowhere")
    assert found.result == "lost"
    assert re.fullmatch(
        r"it powered off before its report was whole; initd could not write its report \(.*\)", found.reason
    )


def test_a_guest_that_never_ends_is_ended(bench: Bench) -> None:
    start = time.monotonic()
    found, _ = bench.boot("initd.then=wait")
    assert found.result == "failed"
    assert found.reason.startswith("power-off: ")
    assert time.monotonic() - start < 60


def test_a_guest_that_reboots_is_not_a_pass(bench: Bench) -> None:
    found, _ = bench.boot("initd.then=reboot")
    assert found.result == "failed"
    assert "reset" in found.reason


def test_a_guest_that_never_speaks_is_lost(bench: Bench) -> None:
    found, result = bench.boot(drop=("-kernel", "bzImage", "-initrd", "initrd.img", "-append", "console="), timeout=30)
    assert found.result == "lost"
    assert "initd never spoke" in found.reason
    # The firmware has no shell to wait in.
    assert result.ending == "power-off" and b"ovmf-minimal: the kernel could not be started" in result.console


def test_qemu_that_dies_at_once_is_named(bench: Bench) -> None:
    with pytest.raises(ToolError, match=r"(?s)QEMU ended before the guest ran: exit status 1.*machine type"):
        qemu.boot(["qemu-system-x86_64", "-machine", "no-such-machine"], bench.folder, 10)


def test_qemu_that_is_missing_is_named(bench: Bench) -> None:
    with pytest.raises(ToolError, match="qemu-system-none: no such program"):
        qemu.boot(["qemu-system-none"], bench.folder, 10)


def test_what_auto_says_about_kvm_is_true(built: paths.Layout, tmp_path: Path) -> None:
    """Whatever this machine's KVM can do: a guest that requests it passes if auto uses it, and only then."""
    bench = runner.Bench("it", built.bundle, tmp_path / "boot-test", tmp_path / "kvm.json", built.pits)
    said: list[str] = []
    runner.run(bench, Options(cpus="1"), Launch(), said.append)
    takes = json.loads((bench.folder / "verdict.json").read_bytes())["spec"]["accel"] == "kvm"
    assert takes or "software emulation (/dev/kvm " in said[0]
    opens = not kvm.closed()
    if bench.kvm.exists():
        assert json.loads(bench.kvm.read_bytes())[1] == takes
    else:
        assert not opens
    try:
        runner.run(bench, Options(cpus="1", accel="kvm"), Launch(), said.append)
    except (ToolError, GuestError) as error:
        assert not takes, error
        assert not opens or "kvm-unusable" in f"{error}{said[-1]}"
    else:
        assert takes


# ── the pit that this project exists for ──


def test_efi_off_is_stopped_by_the_contract(built: paths.Layout, doit: Doit) -> None:
    result = doit("build", "guest=tests/data/guests/efi-off.toml")
    assert result.returncode != 0
    assert "CONFIG_EFI  " in result.stdout
    assert "A valid RSDP was not found" in result.stdout
    assert "contract=ignore" in result.stdout
    assert "nothing was compiled" in result.stdout
    assert "── kernel" not in result.stdout
    assert "Traceback" not in result.stdout


def test_efi_off_built_in_spite_of_the_contract_has_one_cpu_and_ends(built: paths.Layout, doit: Doit) -> None:
    variables = ["guest=tests/data/guests/efi-off.toml", "contract=ignore"]
    result = doit("build", *variables)
    assert result.returncode == 0, result.stdout
    start = time.monotonic()
    result = doit("boot-test", *variables)
    assert time.monotonic() - start < 120
    assert result.returncode != 0
    assert "CPUs: 1 of 4" in result.stdout
    assert "A valid RSDP was not found" in result.stdout
    found = json.loads((ROOT / f"out/efi-off-{SERIES}/boot-test/verdict.json").read_bytes())
    assert found["verdict"]["result"] == "failed"
    assert found["verdict"]["ending"] == "no power-off"
    assert found["pits"] == ["efi-off"]
    assert "fix:   CONFIG_EFI=y" in result.stdout
