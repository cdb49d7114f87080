# SPDX-License-Identifier: Apache-2.0
"""run-guest passes QEMU exactly what a boot test does; domain.xml is valid and says the same."""

import os
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from minguest.model import Accel, Disk, Launch
from minguest.paths import DOMAIN, RUN_GUEST
from minguest.util.errors import UserError
from minguest.vm import arguments, emulator, launch, scripts
from tests import ROOT, launches


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return launches.sysfs(tmp_path / "sys")


def render(wanted: Launch, sysfs: Path, cpuinfo: str = "") -> dict[str, str]:
    specs = launch.shipped(wanted, "6.12", sysfs, cpuinfo)
    absent = launch.absent(specs["kvm"], sysfs)
    return scripts.render(ROOT / "configs/templates", launches.ABOUT, wanted, specs, absent)


def show(text: str, folder: Path, *options: str) -> list[str]:
    """What the script would start, run in an empty folder that it must leave empty."""
    (folder / "here").mkdir()
    script = folder / RUN_GUEST
    script.write_text(text)
    done = subprocess.run(
        ["sh", script, "--show", *options], cwd=folder / "here", check=True, capture_output=True, text=True
    )
    assert done.stderr == "" and not list((folder / "here").iterdir())
    (folder / "here").rmdir()
    return done.stdout.removesuffix("\n").split("\n")


@pytest.mark.parametrize("accel", launch.ACCELS)
@pytest.mark.parametrize("name", launches.LAUNCHES)
def test_the_script_starts_what_a_boot_test_starts(name: str, accel: Accel, sysfs: Path, tmp_path: Path) -> None:
    spec = launches.specs(name, sysfs)[accel]
    shown = show(launches.files(name, sysfs)[RUN_GUEST], tmp_path, "--accel", accel)
    assert shown == arguments.argv(spec, watched=False)
    assert arguments.watching(shown) == arguments.argv(spec)


def test_the_launches_are_of_every_kind(sysfs: Path) -> None:
    """The test above covers every option: its launches need all of them."""
    made = {name: launches.specs(name, sysfs) for name in launches.LAUNCHES}
    line = " ".join(each for specs in made.values() for spec in specs.values() for each in arguments.argv(spec))
    for part in (
        "pc,accel=kvm", "q35,accel=tcg", "memory-backend-memfd", "mem-lock=on", "-numa dist", "maxmem=", "-fw_cfg",
        "phys-bits=43", "qcow2", "driver=host_device", "key-secret=", "multifunction=on", "addr=1f.1", "nokaslr",
        "virtio-gpu-pci", "pci-testdev", "kvm-pit", "clock=vm",
    ):  # fmt: skip
        assert part in line, part
    # Planned apart for each accelerator: software emulation has a wider CPU, KVM the host's.
    wide = made["wide"]
    assert "phys-bits=43" in wide["tcg"].cpu and "phys-bits" not in wide["kvm"].cpu
    assert made["bars"]["kvm"].window and made["cards"]["kvm"].gpus[0].functions == ("0000:41:00.1",)


EVIL = ("-x;touch evil", "-$(touch evil)", "-`touch evil`", "--\"'|touch evil", "- >evil")


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("accel", launch.ACCELS)
def test_the_shell_interprets_nothing(text: str, accel: Accel, sysfs: Path, tmp_path: Path) -> None:
    wanted = Launch(cpu=text, gpus=(text,), cmdline=(text,), disks=(Disk(file=f"/{text}", serial=text),))
    script = render(wanted, sysfs)[RUN_GUEST]
    shown = show(script, tmp_path, "--accel", accel)
    assert shown == arguments.argv(launch.shipped(wanted, "6.12", sysfs, "")[accel], watched=False)
    # Nor where it checks whether KVM works, with values from the launch.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / emulator.QEMU).symlink_to("/bin/false")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    probed = script.replace("[ -w /dev/kvm ]", "true").replace(">/dev/null 2>&1; then", "; then", 1)
    (tmp_path / "probed").write_text(probed)
    subprocess.run(["sh", tmp_path / "probed", "--show"], cwd=tmp_path, check=True, env={"PATH": path})
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("about", [("x\ntouch evil", "1"), ("1", "2025.02\n./evil"), ("1\x1b[2J", "2")])
def test_no_version_ends_its_comment(about: tuple[str, str], sysfs: Path) -> None:
    specs = launch.shipped(Launch(), "6.12", sysfs, "")
    with pytest.raises(UserError, match="control character"):
        scripts.render(ROOT / "configs/templates", scripts.About("it", *about), Launch(), specs)


def test_the_users_options_come_last(sysfs: Path, tmp_path: Path) -> None:
    script = launches.files("default", sysfs)[RUN_GUEST]
    plain = show(script, tmp_path, "--accel", "tcg")
    more = show(script, tmp_path, "--accel=tcg", "--append", "a='b c' $d", "-m", "4G", "-name", "x y")
    assert more[-4:] == ["-m", "4G", "-name", "x y"]
    (at,) = [n for n in range(len(plain)) if plain[n - 1] == "-append"]
    assert more[at] == f"{plain[at]} a='b c' $d"
    assert [*more[:at], *more[at + 1 : -4]] == [*plain[:at], *plain[at + 1 :]]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--accel"], "--accel wants a value"),
        (["--accel", "xen"], "--accel xen: kvm or tcg"),
        (["-m", "4G", "--show"], "--show: this script's own options come before QEMU's"),
    ],
)
def test_wrong_options_for_the_script_are_named(sysfs: Path, tmp_path: Path, options: list[str], why: str) -> None:
    script = tmp_path / RUN_GUEST
    script.write_text(launches.files("default", sysfs)[RUN_GUEST])
    done = subprocess.run(["sh", script, *options], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and why in done.stderr


def test_the_script_is_readable(sysfs: Path, tmp_path: Path) -> None:
    text = launches.files("default", sysfs)[RUN_GUEST]
    assert text.startswith("#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")
    assert "# default-6.12: linux 6.12.94, OVMF 2025.02-8+deb13u1\n" in text
    groups = text[text.index("own=$#") : text.index('while [ "$own"')]
    options = [line.strip() for line in groups.splitlines() if line.strip().startswith("-")]
    assert len(options) > 15 and not any(" -" in line for line in options)
    assert groups.count("\n# ") == groups.count('\nset -- "$@"') + groups.count("\ncase ")
    # What the launch does not need leaves no comment.
    assert "Disks" not in groups and "window" not in groups
    (tmp_path / RUN_GUEST).write_text(text)
    usage = subprocess.run(["sh", tmp_path / RUN_GUEST, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--show" in usage and "set -eu" not in usage


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_what_is_typed_reaches_qemu(sysfs: Path, tmp_path: Path, shell: str) -> None:
    """dash gives /dev/null to a program in the background, whatever <&0 says."""
    (tmp_path / "OVMF_VARS.fd").touch()
    (tmp_path / RUN_GUEST).write_text(launches.files("default", sysfs)[RUN_GUEST])
    stub = tmp_path / emulator.QEMU
    stub.write_text('#!/bin/sh\nread line\necho "{\\"record\\":\\"end\\"} $line" >report.jsonl\n')
    stub.chmod(0o755)
    done = subprocess.run(
        [shell, tmp_path / RUN_GUEST, "--accel", "tcg", "--keep", tmp_path / "kept"],
        input=b"typed\n", env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, (tmp_path / "kept/report.jsonl").read_text()) == (0, '{"record":"end"} typed\n')


# ── domain.xml ──


@pytest.mark.parametrize("name", launches.LAUNCHES)
def test_the_domain_is_valid_by_libvirts_schema(name: str, sysfs: Path, tmp_path: Path) -> None:
    path = tmp_path / DOMAIN
    path.write_text(launches.files(name, sysfs)[DOMAIN])
    done = subprocess.run(["virt-xml-validate", path, "domain"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def domain(name: str, sysfs: Path) -> ET.Element:
    return ET.fromstring(launches.files(name, sysfs)[DOMAIN])


@pytest.mark.parametrize("name", launches.LAUNCHES)
def test_the_domain_keeps_every_value_whole(name: str, sysfs: Path) -> None:
    spec = launches.specs(name, sysfs)["tcg" if name == "tcg" else "kvm"]
    found = domain(name, sysfs)
    assert found.get("type") == ("qemu" if name == "tcg" else "kvm")
    assert found.findtext("os/cmdline") == " ".join(arguments.cmdline(spec))
    sources = [each.get("file") or each.get("dev") or each.get("name") for each in found.findall(".//disk/source")]
    own = [disk.file or disk.rbd for disk in launches.LAUNCHES[name].disks]
    assert sources == own + [f"{scripts.FOLDER}/drivers.img"] * (name == "drivers")
    assert len(sources) == len(spec.disks)


def test_cards_keep_their_functions_on_one_slot(sysfs: Path) -> None:
    for name, bus, slot in (("cards", "0x01", "0x00"), ("pc-cards", "0x00", "0x1f")):
        found = domain(name, sysfs).findall(".//hostdev")
        assert [each.get("managed") for each in found] == ["yes"] * 3
        places = [each.find("address") for each in found[:2]]
        assert [place is not None and (place.get("bus"), place.get("slot")) for place in places] == [(bus, slot)] * 2
        functions = [place is not None and (place.get("function"), place.get("multifunction")) for place in places]
        assert functions == [("0x0", "on"), ("0x1", None)]


def test_a_ceph_key_stays_in_its_file(tmp_path: Path, sysfs: Path) -> None:
    key = tmp_path / "key"
    key.write_text(launches.KEY)
    made = render(Launch(disks=(Disk(rbd="a/b", user="u", key_file=str(key)),)), sysfs)
    assert not any(launches.KEY in text for text in made.values())
    assert "a disk is on Ceph" in made[RUN_GUEST]
    assert "Ceph" not in render(Launch(disks=(Disk(file="/f"),)), sysfs)[RUN_GUEST]
    found = ET.fromstring(made[DOMAIN])
    secret = found.find(".//disk/auth/secret")
    assert secret is not None and (secret.get("type"), secret.get("usage")) == ("ceph", "default-6.12-disk0")
    text = found.findtext("description") or ""
    assert "virsh secret-define" in text and f"virsh secret-set-value UUID --file {key}" in text


AWKWARD = ("plain", "a b", "a,b;c'd\"e", "<x>&amp;y&", "$HOME `id` $(id)", "back\\slash\\1 \\& %s", "path/to/bundle",
           "--", "-n", "~", "é", "k=v")  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_the_script_fills_the_folder_in(name: str, sysfs: Path, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    texts = launches.files("disks", sysfs)
    for file, text in texts.items():
        (folder / file).write_text(text)
    (tmp_path / "link").symlink_to(folder / RUN_GUEST)
    for script in (folder / RUN_GUEST, tmp_path / "link"):
        done = subprocess.run(["sh", script, "--domain-xml"], check=True, capture_output=True, text=True, cwd="/")
        assert done.stderr == ""
    (tmp_path / "filled.xml").write_text(done.stdout)
    checked = subprocess.run(
        ["virt-xml-validate", tmp_path / "filled.xml", "domain"], check=False, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    made, before = ET.fromstring(done.stdout), ET.fromstring(texts[DOMAIN])
    values = [(each.text, each.attrib) for each in made.iter()]
    wanted = [
        (each.text and each.text.replace(scripts.FOLDER, str(folder)),
         {key: value.replace(scripts.FOLDER, str(folder)) for key, value in each.attrib.items()})
        for each in before.iter()
    ]  # fmt: skip
    assert values == wanted and made.findtext("os/kernel") == f"{folder}/bzImage"


def test_a_folder_that_xml_cannot_name_is_refused(sysfs: Path, tmp_path: Path) -> None:
    texts = launches.files("default", sysfs)
    for name, why in (("a\nb", "has a control character"), ("gone", "domain.xml: cannot be read")):
        (tmp_path / name).mkdir()
        (tmp_path / name / RUN_GUEST).write_text(texts[RUN_GUEST])
        if name != "gone":
            (tmp_path / name / DOMAIN).write_text(texts[DOMAIN])
        done = subprocess.run(
            ["sh", tmp_path / name / RUN_GUEST, "--domain-xml"], check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (2, "") and why in done.stderr
    # It does not include these.
    for options in (["--append", "a"], ["-m", "4G"], ["--accel", "tcg"], ["--show"], ["--keep", "k"]):
        for requested in (["--domain-xml", *options], [*options, "--domain-xml"]):
            done = subprocess.run(
                ["sh", tmp_path / "gone" / RUN_GUEST, *requested], check=False, capture_output=True, text=True
            )
            assert (done.returncode, done.stdout) == (2, ""), requested


# ── both ──


def test_the_files_say_that_an_absent_card_is_not_planned(sysfs: Path) -> None:
    for text in launches.files("absent", sysfs).values():
        assert "0000:99:00.0 could not be read" in text and "minguest plan" in text
    for text in launches.files("cards", sysfs).values():
        assert "could not be read" not in text


def test_the_bytes_do_not_depend_on_the_machine(sysfs: Path, tmp_path: Path) -> None:
    for name in ("default", "bars", "disks"):
        wanted = launches.LAUNCHES[name]
        made = render(wanted, sysfs, launches.CPUINFO)
        assert made == render(wanted, tmp_path / "elsewhere", "vendor_id : AuthenticAMD\n")
        assert not any(str(path) in text for text in made.values() for path in (ROOT, Path.home(), tmp_path))


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Launch(disks=(Disk(file="disk.raw"),)), r"launch.disks\[0\].file = 'disk.raw': is not an absolute path"),
        (Launch(disks=(Disk(file="~/disk.raw"),)), "is not an absolute path"),
        (Launch(disks=(Disk(file="/a"), Disk(rbd="a/b", conf="c"))), r"launch.disks\[1\].conf = 'c'"),
        (Launch(disks=(Disk(rbd="a/b", key_file="k"),)), r"launch.disks\[0\].key_file = 'k'"),
        (Launch(cmdline=("a\nb",)), "has a control character"),
        (Launch(cmdline=("a\x1b[2Jb",)), "control character"),
        (Launch(disks=(Disk(file="/a\0b"),)), "control character"),
        (Launch(disks=(Disk(file="/a\u0085b"),)), "control character"),
        (Launch(cpu="max\r"), "control character"),
        (Launch(disks=tuple(Disk(file=f"/{n}") for n in range(30))), "more than 29 disks and cards"),
    ],
)
def test_what_the_files_cannot_express_is_refused(wanted: Launch, why: str, sysfs: Path) -> None:
    with pytest.raises(UserError, match=why):
        render(wanted, sysfs)


def test_a_command_of_another_kind_is_not_watched() -> None:
    spec = launch.settle(Launch(), launch.Options(accel="tcg"), 64, ["secondary-vga"], Path("/sys"))
    with pytest.raises(UserError, match=r"(?s)run-guest --show ends with .*another minguest"):
        arguments.watching([*arguments.argv(spec, watched=False), "-S"])
    assert arguments.argv(msgspec.structs.replace(spec, memory=2 << 30)) != arguments.argv(spec)
