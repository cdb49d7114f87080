# SPDX-License-Identifier: Apache-2.0
"""Drivers in a guest: our own for the emulated card, which must be bound to it, and ones that fail in every way.

The modules are those of tests/modules/, built against the bundle's kernel.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner, verdict
from minguest.diagnose import catalogue
from minguest.kernel import kbuild, source
from minguest.model import Launch
from minguest.util import run
from minguest.vm import launch, report
from tests import ROOT, guests

CARD = "minguest_card"
# A program that gives depmod's aliases their name, and has the kernel say of each PCI device that it was added. It ends
# when the driver has its card, or after ten seconds.
LATER = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

int main(void)
{
	char path[512], to[512];
	struct utsname kernel;
	struct dirent *entry;
	DIR *devices = opendir("/sys/bus/pci/devices");
	int fd, i;

	uname(&kernel);
	snprintf(path, sizeof(path), "/lib/modules/%s/aliases", kernel.release);
	snprintf(to, sizeof(to), "/lib/modules/%s/modules.alias", kernel.release);
	if (rename(path, to))
		return 2;
	while ((entry = readdir(devices))) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/uevent", entry->d_name);
		fd = open(path, O_WRONLY);
		if (fd >= 0 && write(fd, "add", 3) != 3)
			return 3;
		close(fd);
	}
	for (i = 0; i < 100; i++, usleep(100000))
		if (!access("/sys/bus/pci/drivers/minguest_card/0000:00:01.0", F_OK))
			return 0;
	return 1;
}
"""
# Seconds for a module to load. A loaded machine takes 0.2 for a good one.
DEADLINE = 4


def kernel_devel(at: paths.Layout, folder: Path) -> Path:
    """What modules are built against: the bundle's kernel-devel; without one, a build folder of the same kernel. That
    has no Module.symvers, so make only warns about the kernel's symbols."""
    archive = at.bundle / "kernel-devel.tar.zst"
    if archive.exists():
        run.run(["tar", "-xf", archive, "-C", folder])
        (found,) = folder.iterdir()
        return found
    tree = msgspec.json.decode(at.tree.read_bytes(), type=source.Prepared)
    shutil.copyfile(at.bundle / "kernel.config", folder / ".config")
    run.run(
        kbuild.make_argv(Path(tree.path), folder, 2, "modules_prepare"),
        env={"TMPDIR": str(folder)},
        log=folder.with_suffix(".log"),
        bare=True,
    )
    return folder


class Modules:
    """The modules of tests/modules/ for one kernel, and initrds with some of them."""

    def __init__(self, at: paths.Layout, folder: Path) -> None:
        self.at, self.folder = at, folder
        (folder / "devel").mkdir()
        devel = kernel_devel(at, folder / "devel")
        shutil.copytree(ROOT / "tests/modules", folder / "modules")
        for place in sorted((folder / "modules").iterdir()):
            # One of them wants a symbol that is nowhere: a warning is enough.
            argv = ["make", "-C", str(devel), f"M={place}", "KBUILD_MODPOST_WARN=1", "LOCALVERSION=", "modules"]
            run.run(argv, env={"TMPDIR": str(folder)}, log=folder / f"{place.name}.log", bare=True)
        self.built = {path.stem: path.read_bytes() for path in sorted((folder / "modules").glob("*/*.ko"))}
        self.initd = guests.compile_initd(folder / "initd")
        self.release = modinfo(self.built[CARD], "vermagic")[0].split()[0]

    def initrd(
        self,
        names: Sequence[str],
        target: Path,
        change: Callable[[bytes], bytes] = bytes,
        extra: Mapping[str, bytes] | None = None,
        aliases: str = "modules.alias",
        defines: Sequence[str] = (),
    ) -> None:
        """An initrd with these modules in an overlay, and the files of depmod; `change` damages each module, `defines`
        are for an initd of its own."""
        initd = guests.compile_initd(target.with_suffix(".initd"), defines) if defines else self.initd
        overlay = target.with_suffix(".overlay")
        place = overlay / "lib/modules" / self.release
        (place / "extra").mkdir(parents=True)
        for name in names:
            (place / f"extra/{name}.ko").write_bytes(change(self.built[name]))
        rows = {name: [f"extra/{each}.ko" for each in modinfo(self.built[name], "depends")[0].split(",") if each]
                for name in names}  # fmt: skip
        (place / "modules.dep").write_text(
            "".join(f"extra/{name}.ko: {' '.join(needed)}\n" for name, needed in rows.items())
        )
        (place / aliases).write_text(
            "".join(f"alias {pattern} {name}\n" for name in names for pattern in modinfo(self.built[name], "alias"))
        )
        for path, content in (extra or {}).items():
            (overlay / path).parent.mkdir(parents=True, exist_ok=True)
            (overlay / path).write_bytes(content)
            (overlay / path).chmod(0o755)
        guests.make_initrd(target, overlay, initd=initd)


def modinfo(module: bytes, field: str) -> list[str]:
    """The values of a field of .modinfo, which are strings with a NUL after each."""
    return [each.decode() for each in re.findall(rb"(?<=\0)%s=([^\0]*)\0" % field.encode(), b"\0" + module)]


@pytest.fixture(scope="module")
def all_modules(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Modules]:
    made: dict[str, Modules] = {}

    def of(series: str) -> Modules:
        if series not in made:
            made[series] = Modules(paths.Layout(ROOT, "default", series), tmp_path_factory.mktemp(f"modules-{series}"))
        return made[series]

    return of


class Booted:
    """One guest: its verdict with its pits, its report, and what was on its console."""

    def __init__(self, spec: launch.Spec, argv: Sequence[str], folder: Path) -> None:
        trial = runner.attempt(spec, argv, folder, catalogue.load(ROOT / "configs/pits"), ())
        assert trial.verdict is not None
        self.verdict, self.pits, self.report = trial.verdict, trial.roots, trial.report
        self.modules = {module.name: module for module in trial.report.modules}
        self.console = (folder / "console.log").read_text(errors="replace")
        lines = (folder / "report.jsonl").read_text(errors="replace").splitlines()
        self.ended = next((line for line in lines if line.startswith('{"record":"exit"')), "")

    def row(self, name: str) -> verdict.Check:
        (found,) = [row for row in self.verdict.checks if row.name == name]
        return found


Boot = Callable[..., Booted]


@pytest.fixture
def boot(series: str, bundle: Path, all_modules: Callable[[str], Modules], tmp_path: Path) -> Boot:
    """Boots a guest with these modules in its initrd."""
    modules = all_modules(series)

    def boot(
        *names: str, cmdline: Sequence[str] = (), driver: str = "", gpu: str = "secondary-vga", **more: object
    ) -> Booted:
        wanted = Launch(gpus=(gpu,), driver=driver, cmdline=(f"initd.modules-seconds={DEADLINE}", *cmdline))
        image = tmp_path / "initrd.img"
        modules.initrd(names, image, **more)  # type: ignore[arg-type]
        return Booted(*guests.command(bundle, wanted, image, tmp_path, series), tmp_path)

    return boot


# ── a driver that works ──


@pytest.mark.parametrize(("gpu", "size"), [("secondary-vga", 1 << 24), ("bar:64M", 4096)])
def test_a_card_gets_its_driver_by_its_modalias(boot: Boot, gpu: str, size: int) -> None:
    found = boot("minguest_bar", CARD, driver=CARD, gpu=gpu)
    assert found.verdict.result == "pass", found.verdict.reason
    assert found.row("driver of gpu0") == verdict.Check("driver of gpu0", CARD, "", CARD, True)
    assert set(found.modules) == {CARD, "minguest_bar"}
    card, needed = found.modules[CARD], found.modules["minguest_bar"]
    assert (card.result, card.version, needed.result, needed.version) == ("loaded", "1.2", "loaded", None)
    assert card.file is not None and card.file.endswith(f"/extra/{CARD}.ko")
    assert any(f"BAR 0 has {size:#x} bytes" in line for line in card.messages)
    assert found.console.index("module minguest_bar: loaded") < found.console.index(f"module {CARD}: loaded")


def test_a_parameter_reaches_its_module(boot: Boot) -> None:
    found = boot("minguest_bar", CARD, driver=CARD, cmdline=["minguest-card.bar=2"])
    assert found.verdict.result == "pass", found.verdict.reason
    assert any("BAR 2 has 0x1000 bytes" in line for line in found.modules[CARD].messages)


def test_a_card_that_comes_later_gets_its_driver(boot: Boot, tmp_path: Path) -> None:
    """A program puts modules.alias in place, and has the kernel send the card's uevent again."""
    source_, program = tmp_path / "later.c", tmp_path / "later"
    source_.write_text(LATER)
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", program, source_], check=True)
    extra = {"later": program.read_bytes()}
    found = boot("minguest_bar", CARD, cmdline=["initd.then=/later"], extra=extra, aliases="aliases")
    assert found.report.complete, found.report.damage
    assert "exit" in found.ended and '"status":0' in found.ended
    assert {module.name: module.result for module in found.report.modules} == {CARD: "loaded", "minguest_bar": "loaded"}
    assert not found.report.all("module")  # none before the end


# ── drivers that do not work: each is bounded, and said; the guest powers off ──


def failed(found: Booted, module: str) -> report.Module:
    """The module's record, of a guest that reported and powered off, and whose only wrong row is the driver's."""
    assert found.report.complete
    assert found.verdict.result == "failed"
    assert found.verdict.ending == "power-off"
    assert {row.name for row in found.verdict.checks if not row.ok} <= {"driver of gpu0", "pits"}
    assert not found.row("driver of gpu0").ok
    return found.modules[module]


def test_a_module_for_another_kernel_is_refused(boot: Boot) -> None:
    def other(module: bytes) -> bytes:
        assert b"\0vermagic=" in module
        return module.replace(b"\0vermagic=", b"\0vermagic=5.").replace(b" mod_unload ", b" modunload", 1)

    found = boot("minguest_bar", CARD, driver=CARD, change=other)
    needed = failed(found, "minguest_bar")
    assert (needed.result, needed.errno) == ("failed", "ENOEXEC")
    assert any(re.match(r"minguest_bar: version magic '5\.\S+ .*' should be '", line) for line in needed.messages)
    card = found.modules[CARD]
    assert (card.result, card.seconds, card.messages) == (
        "failed", None, ("initd: not tried, because it needs minguest_bar",),
    )  # fmt: skip
    assert "no driver is bound; module minguest_card: failed" in found.row("driver of gpu0").why
    assert found.pits == ("module-other-kernel",)


def test_a_symbol_that_no_kernel_has_is_named(boot: Boot) -> None:
    found = boot("minguest_symbol", driver=CARD, cmdline=["initd.modules=minguest-symbol"])
    module = failed(found, "minguest_symbol")
    assert (module.result, module.errno) == ("failed", "ENOENT")
    said = r"minguest_symbol: Unknown symbol minguest_no_such_function \(err (-2|0)\)"
    assert any(re.fullmatch(said, line) for line in module.messages)
    assert found.pits == ("module-unknown-symbol",)


def test_an_oops_ends_the_loading_and_nothing_else(boot: Boot) -> None:
    found = boot("minguest_oops", "minguest_bar", CARD, driver="other", cmdline=[f"initd.modules=minguest_oops,{CARD}"])
    module = failed(found, "minguest_oops")
    assert (module.result, module.errno, module.signal) == ("failed", None, 9)
    assert any(line.startswith("BUG: ") for line in module.messages)
    assert len(module.messages) == 10
    assert found.modules[CARD].result == "loaded"
    assert found.row("driver of gpu0").guest == CARD
    assert found.pits == ("module-crashed",)


def test_an_init_function_that_hangs_has_so_long(boot: Boot) -> None:
    found = boot("minguest_hang", "minguest_bar", CARD, driver="other", cmdline=[f"initd.modules=minguest_hang,{CARD}"])
    module = failed(found, "minguest_hang")
    assert module.result == "timeout"
    assert DEADLINE <= (module.seconds or 0) < 2 * DEADLINE
    assert "this will never end" in module.messages
    assert found.modules[CARD].result == "loaded"
    # It cannot be killed; its guest ends all the same.
    assert found.report.shutdown is not None and found.report.shutdown.left == 1
    assert found.pits == ("module-hangs",)


def test_a_probe_that_hangs_keeps_the_kernel_from_powering_off_and_the_guest_ends(boot: Boot) -> None:
    """The kernel's device_shutdown() waits for the lock of the card: initd ends the guest by a panic."""
    found = boot(
        "minguest_hang",
        driver="minguest_hang",
        cmdline=["initd.modules=minguest_hang", "minguest_hang.in_probe=1"],
        defines=["-DGRACE_S=1", "-DSYNC_S=2", "-DUNMOUNT_S=2", "-DEND_S=2"],
    )
    assert found.report.complete
    assert found.modules["minguest_hang"].result == "timeout"
    assert found.verdict.ending == "reset"
    assert "initd: power-off is not done in 2 s: a driver holds its device" in found.console
    assert found.pits == ("module-hangs",)


def test_firmware_that_is_not_there_is_named(boot: Boot) -> None:
    found = boot("minguest_firmware", driver="minguest_firmware")
    module = failed(found, "minguest_firmware")
    assert module.result == "loaded"
    why = found.row("driver of gpu0").why
    assert "Direct firmware load for minguest/card.bin failed with error -2" in why
    assert found.pits == ("card-firmware-missing",)


def test_firmware_comes_from_the_initrd(boot: Boot) -> None:
    extra = {"lib/firmware/minguest/card.bin": b"f" * 1000}
    found = boot("minguest_firmware", driver="minguest_firmware", extra=extra)
    assert found.verdict.result == "pass", found.verdict.reason
    assert any("1000 bytes of firmware" in line for line in found.modules["minguest_firmware"].messages)


def test_a_module_that_is_not_there_is_named(boot: Boot) -> None:
    found = boot("minguest_bar", driver=CARD, cmdline=[f"initd.modules={CARD},/none.ko"])
    assert failed(found, CARD).result == "absent"
    assert (found.modules["none"].result, found.modules["none"].errno) == ("absent", "ENOENT")
    assert found.pits == ("module-missing",)


@pytest.mark.parametrize("content", [b"", b"noise" * 1000, b"\x7fELF\x02\x01\x01" + bytes(57)])
def test_what_is_no_module_is_refused(boot: Boot, content: bytes) -> None:
    found = boot(CARD, "minguest_bar", driver=CARD, change=lambda _: content)
    needed = failed(found, "minguest_bar")
    assert (needed.result, needed.errno) in (("failed", "ENOEXEC"), ("failed", "EINVAL"))
