# SPDX-License-Identifier: Apache-2.0
"""run-guest and domain.xml of a real bundle start it; libvirt makes the same machine from domain.xml as run-guest."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest import paths
from minguest.boottest import runner
from minguest.bundle import manifests
from minguest.paths import RUN_GUEST
from minguest.vm import arguments, emulator, launch, report, scripts
from minguest.vm.launch import Options
from tests import launches
from tests.integration.conftest import SERIES, Doit

# libvirt's driver within the process, in a folder of its own: no daemon, and nothing from the system.
NEEDED = ("virsh", "virt-qemu-run")
# As root it needs the user libvirt-qemu, which only the daemon's package creates; so in a namespace it is not root.
PLAIN = ["unshare", "-U", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For libvirt: its root, and a bundle of empty files, which libvirt looks for."""
    assert [tool for tool in NEEDED if not shutil.which(tool)] == [], "configs/packages.txt has them"
    if subprocess.run([*PLAIN, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT RUN: no user namespace, and libvirt's embedded driver does not run as root")
    # Short: the name of a UNIX socket has at most 107 bytes.
    return tmp_path_factory.mktemp("lv")


def libvirt(home: Path, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """One of libvirt's programs, with nothing of this environment."""
    return subprocess.run(
        [*PLAIN, *arguments], cwd=home, env=env(home), check=False, capture_output=True, text=True, timeout=timeout,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def env(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LC_ALL": "C.UTF-8"}


def placed(made: Mapping[str, str], bundle: Path) -> str:
    """domain.xml with its bundle's folder, as run-guest fills it in; both of them are put there."""
    for name, text in made.items():
        (bundle / name).write_text(text)
    return subprocess.run(["sh", bundle / RUN_GUEST, "--domain-xml"], check=True, capture_output=True, text=True).stdout


def domain(home: Path, name: str, bundle: Path) -> Path:
    """A file with the domain of one of tests/launches.py, whose bundle is in that folder."""
    sysfs = home / "sys"
    if not sysfs.exists():
        launches.sysfs(sysfs)
    path = home / f"{name}.xml"
    path.write_text(placed(launches.files(name, sysfs), bundle))
    return path


# ── the same machine ──


class Seen:
    """What a command of QEMU requests, from any source."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.options: dict[str, list[str]] = {}
        name = ""
        for each in argv:
            if each.startswith("-"):
                name = each
                self.options.setdefault(name, [])
            else:
                self.options[name].append(each)

    def all(self, name: str) -> list[dict[str, Any]]:
        """Every value of an option as keys and values, with its first field under the key ''."""
        return [json.loads(each) if each.startswith("{") else keyed(each) for each in self.options.get(name, [])]

    def machine(self) -> dict[str, Any]:
        """All that must be the same."""
        (machine,) = self.all("-machine")
        (smp,) = self.all("-smp")
        (memory,) = self.all("-m")
        accel = machine.get("accel") or self.options["-accel"][0]
        dist = [each for each in self.all("-numa") if each[""] == "dist" and each["src"] != each["dst"]]
        return {
            "machine": "q35" if "q35" in machine[""] else "pc",
            "accel": accel,
            "cpus": (smp[""], smp.get("maxcpus", smp[""])),
            "memory": mib(memory[""] or memory["size"]),
            "more memory": (mib(memory["maxmem"]), memory["slots"]) if "maxmem" in memory else None,
            "locked": "mem-lock=on" in self.options.get("-overcommit", []),
            "pages": self.pages(),
            "distances": sorted((each["src"], each["dst"], each["val"]) for each in dist),
            "clock": self.all("-rtc"),
            "timer": [each for each in self.options.get("-global", []) if "kvm-pit" in each],
            "window": self.options.get("-fw_cfg", []),
            "initrd": [Path(each).name for each in self.options["-initrd"] + self.options["-kernel"]],
            "cmdline": self.options["-append"],
            "devices": self.devices(),
            "cards": self.cards(),
            "disks": self.disks(),
            "flash": self.flash(),
            "report": [int(each["index"]) for each in self.all("-device") if int(each.get("index", 0))],
        }

    def devices(self) -> Counter[str]:
        found = Counter(driver(each) for each in self.all("-device"))
        found["isa-serial"] += len(self.options.get("-serial", []))
        return found

    def pages(self) -> list[tuple[int, int, bool]]:
        """MiB of each node, or of all memory; MiB of its large pages, and whether they are allocated at the start."""
        found = []
        for each in self.all("-object"):
            if "memory-backend" in driver(each):
                pages = {"2M": 2, "1G": 1024}.get(each.get("hugetlbsize", ""), each.get("hugetlbsize", 0))
                pages = pages if pages in (0, 2, 1024) else pages >> 20
                found.append((mib(each["size"]), pages, each.get("prealloc") in (True, "on")))
        # libvirt names the memory of every machine, run-guest only what is not QEMU's default.
        return [] if len(found) == 1 and not found[0][1] else found

    def cpu(self) -> tuple[str, set[tuple[str, str]]]:
        """Model and flags, by whatever option."""
        ((name, *flags),) = [each.split(",") for each in self.options["-cpu"]]
        flags += [each.partition("x86_64-cpu.")[2] for each in self.options.get("-global", []) if "-cpu." in each]
        pairs = [(f"{flag[1:]}={'on' if flag[0] == '+' else 'off'}" if flag[0] in "+-" else flag) for flag in flags]
        return name, {(flag.partition("=")[0], flag.partition("=")[2]) for flag in pairs}

    def nodes(self) -> list[set[int]]:
        """CPUs of each node."""
        return [
            {cpu for cpus in each.get("cpus", []) for cpu in report.cpu_list(cpus)}
            for each in self.all("-numa")
            if each[""] == "node"
        ]

    def cards(self) -> list[tuple[str, str, bool, bool]]:
        """Address at home; slot and function if it is one of several; whether behind a root port."""
        found = []
        for each in self.all("-device"):
            if driver(each) == "vfio-pci":
                slot, _, function = str(each.get("addr", "0")).replace("0x", "").partition(".")
                more = each.get("multifunction") in (True, "on")
                place = f"{slot}.{function or '0'}" if more or function not in ("", "0") else ""
                found.append((each["host"], place, more, bool(re.match(r"port|pci[.][1-9]", each.get("bus", "")))))
        return found

    def disks(self) -> list[tuple[Any, ...]]:
        """Format, how and by what name it is reached, configuration, monitors, whether only read, serial; in order."""
        nodes = {each["node-name"]: each for each in self.all("-blockdev")}
        found = []
        for each in self.all("-device"):
            if driver(each) != "virtio-blk-pci":
                continue
            node = nodes[each["drive"]]
            below = nodes.get(node.get("file", ""), {}) or {
                key.removeprefix("file."): value for key, value in node.items() if key.startswith("file.")
            }
            rbd = node if node["driver"] == "rbd" else below if below["driver"] == "rbd" else None
            place = f"{rbd['pool']}/{rbd['image']}" if rbd else below["filename"]
            only = node.get("read-only") in (True, "on")
            kind = ("raw" if rbd else node["driver"], "rbd" if rbd else below["driver"], place)
            servers = (rbd or {}).get("server") or [
                {"host": value, "port": rbd[key.replace(".host", ".port")]}
                for key, value in (rbd or {}).items()
                if rbd and key.startswith("server.") and key.endswith(".host")
            ]
            found.append((*kind, (rbd or {}).get("conf"), servers, only, each.get("serial")))
        return found

    def flash(self) -> list[tuple[str, bool]]:
        """OVMF's code and variables, and whether they are only read."""
        drives = [each for each in self.all("-drive") if each.get("if") == "pflash"]
        if drives:
            return [(Path(each["file"]).name.rpartition("_")[2], "readonly" in each) for each in drives]
        nodes = {each["node-name"]: each for each in self.all("-blockdev")}
        (machine,) = self.all("-machine")
        formats = [nodes[machine[f"pflash{n}"]] for n in (0, 1)]
        return [(Path(nodes[each["file"]]["filename"]).name.rpartition("_")[2], each["read-only"]) for each in formats]


def driver(each: Mapping[str, Any]) -> str:
    return str(each.get("driver") or each.get("qom-type") or each[""])


def keyed(text: str) -> dict[str, Any]:
    """QEMU's option=value list; a doubled comma is one of the value's own."""
    found: dict[str, Any] = {"": ""}
    for part in re.split(r"(?<!,),(?!,)", text):
        key, equals, value = part.replace(",,", ",").partition("=")
        if not equals:
            found[""] = key
        elif key == "cpus" and "nodeid" in found:
            found[key] = [*found.get(key, []), value]
        else:
            found[key] = value
    return found


def mib(size: str | int) -> int:
    """MiB of bytes as libvirt writes them, or of a number with its unit."""
    if isinstance(size, int):
        return size >> 20
    return int(size.rstrip("kM")) >> (10 if size.endswith("k") else 0)


@pytest.mark.parametrize("name", launches.LAUNCHES)
def test_libvirt_makes_the_machine_that_the_script_makes(home: Path, name: str) -> None:
    bundle = home / "empty"
    bundle.mkdir(exist_ok=True)
    for part in ("OVMF_CODE.fd", "OVMF_VARS.fd", "bzImage", "initrd.img"):
        (bundle / part).touch()
    path = domain(home, name, bundle)
    # One root: what libvirt learns about QEMU in the first test, it keeps for the others.
    virsh = ("virsh", "-c", f"qemu:///embed?root={home}/all")
    defined = libvirt(home, *virsh, f"define --validate {path}; undefine --nvram {launches.ABOUT.name}")
    assert defined.returncode == 0, defined.stderr
    # The key of a Ceph user comes from another driver, which is the daemon's.
    text = path.read_text()
    path.write_text(re.sub(r"<auth .*?</auth>", "", text, flags=re.DOTALL))
    assert (text.count("<auth ") == 1) == ("disks" in name)
    made = libvirt(home, *virsh, "domxml-to-native", "qemu-argv", path)
    assert made.returncode == 0, made.stderr
    argv = shlex.split(made.stdout)
    theirs = Seen(argv[next(n for n, each in enumerate(argv) if each.endswith(emulator.QEMU)) + 1 :])

    spec = launches.specs(name, home / "sys")["tcg" if name == "tcg" else "kvm"]
    # libvirt has the disk of drivers by its absolute path, run-guest by its link to the bundle.
    link = f"filename={arguments.LINK}/"
    ours = Seen([each.replace(link, f"filename={bundle}/") for each in arguments.argv(spec, watched=False)[1:]])
    assert theirs.machine() == ours.machine()
    (model, flags), (wanted, requested) = theirs.cpu(), ours.cpu()
    assert model == wanted and flags >= requested
    # libvirt also names CPUs that can be plugged in; QEMU gives them to the first node.
    if spec.numa:
        there = set(range(spec.cpus))
        assert [node & there for node in theirs.nodes()] == [node & there for node in ours.nodes()]


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ('disks = [{file = "disk.raw"}]', "launch.disks[0].file = 'disk.raw': is not an absolute path"),
        ('cmdline = ["a\\nb"]', "has a control character"),
        ('numa = [{memory = "1M"}]', "the nodes have 1 MiB, the launch has 1 GiB"),
    ],
)
def test_a_wrong_launch_is_named_before_anything_is_built(doit: Doit, tmp_path: Path, toml: str, why: str) -> None:
    guest = tmp_path / "odd.toml"
    guest.write_text(f'name = "default"\nkernel = ["{SERIES}"]\n[launch]\n{toml}\n')
    result = doit("build", f"guest={guest}")
    assert result.returncode != 0 and "──" not in result.stdout
    assert f"{guest}: launch" in result.stdout and why in result.stdout and "Traceback" not in result.stdout


# ── the real guest ──

# What OVMF adds to the kernel's parameters (QemuLoadImageLib).
OVMFS = "initrd=initrd"


@pytest.fixture
def awkward(built: paths.Layout, tmp_path: Path) -> Path:
    """The bundle in a folder whose name would break a shell and QEMU's option=value lists if unquoted."""
    return shutil.copytree(built.bundle, tmp_path / "a, b=c'd $e")


def test_the_script_starts_the_bundle(awkward: Path, tmp_path: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in awkward.iterdir())
    kept = tmp_path / "kept, too"
    done = subprocess.run(
        [awkward / RUN_GUEST, "--accel", "tcg", "--append", "its='own value'", "--keep", kept, "-smp", "2,maxcpus=64"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("run-guest: the guest wrote its whole report\n")
    seen = report.parse((kept / "report.jsonl").read_bytes())
    assert seen.complete and report.cpu_count(seen.record("cpus")["online"]) == 2
    assert seen.record("begin")["cmdline"].endswith(f"initd.then=poweroff its='own value' {OVMFS}")
    assert sorted(path.name for path in kept.iterdir()) == ["OVMF_VARS.fd", "report.jsonl"]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in awkward.iterdir()) == before


@pytest.mark.parametrize(("options", "by_it"), [(Options(accel="tcg"), True), (Options(accel="tcg", cpus="2"), False)])
def test_a_boot_test_of_the_guests_own_launch_is_the_scripts(
    built: paths.Layout, awkward: Path, tmp_path: Path, options: Options, by_it: bool
) -> None:
    bench = runner.Bench("it", awkward, tmp_path / "boot test", tmp_path / "kvm.json", built.pits)
    wanted = manifests.load(awkward).guest.launch
    runner.run(bench, options, wanted, print)
    outcome = msgspec.json.decode((bench.folder / "verdict.json").read_bytes(), type=runner.Outcome)
    assert outcome.run_guest is by_it and outcome.verdict.result == "pass"
    shown = subprocess.run(
        ["sh", awkward / RUN_GUEST, "--accel", "tcg", "--show"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert (list(outcome.argv) == arguments.watching(shown)) is by_it


def test_libvirt_starts_the_bundle(built: paths.Layout, home: Path) -> None:
    bundle_copy = shutil.copytree(built.bundle, home / "bundle")
    manifest = manifests.load(bundle_copy)
    # With software emulation: KVM may not run this firmware on every machine.
    wanted = msgspec.structs.replace(manifest.guest.launch, accel="tcg")
    specs = launch.shipped(wanted, manifest.kernel.series, runner.SYSFS, "")
    about = scripts.About(built.name, manifest.kernel.version, manifest.firmware.version)
    made = scripts.render(built.templates, about, wanted, specs)
    (home / "it.xml").write_text(placed(made, bundle_copy))
    written = bundle_copy / "report.jsonl"
    written.write_text("of a run before\n")
    root = home / "it"
    # Without the daemon's virtlogd, which otherwise writes the output of serial ports.
    (root / "etc").mkdir(parents=True)
    (root / "etc/qemu.conf").write_text('stdio_handler = "file"\n')
    log = root / f"log/qemu/{built.name}.log"
    deadline = time.monotonic() + 120
    with subprocess.Popen(
        [*PLAIN, "virt-qemu-run", f"--root={root}", home / "it.xml"],
        env=env(home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            # It does not end with its guest.
            while process.poll() is None and time.monotonic() < deadline:
                if log.exists() and "shutting down" in log.read_text():
                    break
                time.sleep(0.1)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            assert process.stdout is not None
            said = process.stdout.read().decode()
    assert "reason=shutdown" in log.read_text(), said
    seen = report.parse(written.read_bytes())
    assert seen.complete and seen.record("begin")["cmdline"] == " ".join([*arguments.cmdline(specs["tcg"]), OVMFS])
    assert report.cpu_count(seen.record("cpus")["online"]) == wanted.cpus
    assert [each.address for each in seen.pci if each.gpu] and (bundle_copy / "OVMF_VARS.fd").read_bytes() == (
        built.bundle / "OVMF_VARS.fd"
    ).read_bytes()
