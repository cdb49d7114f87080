# SPDX-License-Identifier: Apache-2.0
"""The firmware from edk2's source: sources that belong together, patches in order, kept by the inputs.

The edk2 here is a toy: its `build` puts one source file into the volumes.
"""

import io
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from minguest import settings
from minguest.bundle import edk2
from minguest.kernel import kbuild
from minguest.model import Firmware, Part, Source
from minguest.paths import Store
from minguest.util import files
from minguest.util.errors import ToolError, UserError
from tests import ROOT

BUILD = """#!/bin/sh
set -e
test "$WORKSPACE" = "$PWD"
test "$CONF_PATH" = "$PWD/Conf"
test "$EDK_TOOLS_PATH" = "$PWD/BaseTools"
test -x "$PYTHON_COMMAND"
test "$PYTHONHASHSEED" = 0
test -f Conf/tools_def.txt
test -f OvmfPkg/Minguest/minguest.dsc
test ! -e EmulatorPkg
test -e made
case $* in *"PcdFirmwareVersionString=L2025.02-8+minguest"[12]'\\0') ;; *) exit 1 ;; esac
folder=Build/Minguest/RELEASE_GCC5/FV
mkdir -p $folder
echo built >>"{count}"
for name in CODE VARS; do
    { head -c 40 /dev/zero; printf _FVH; echo $name; cat lines; } >$folder/OVMF_$name.fd
done
case $* in *"-D MEASURED=TRUE"*)
    { echo 1-2 Pei; printf 'with measured/Performance.c: '; cat OvmfPkg/Minguest/measured/*.c; } >$folder/Guid.xref ;;
*) test ! -e OvmfPkg/Minguest/measured ;; esac
"""
TREE = {
    "lines": "one\ntwo\n",
    "BaseTools/Conf/target.template": "",
    "BaseTools/Conf/tools_def.template": "",
    "BaseTools/Conf/build_rule.template": "",
    "BaseTools/Source/C/Makefile": "GenFfs GenFv GenFw GenSec:\n\ttouch ../../../made\n",
    "Conf/readme": "",
    "OvmfPkg/readme": "",
    "EmulatorPkg/readme": "",
}


def patch(before: str, after: str, said: str) -> str:
    """A patch of the file `lines`, from and to these two lines."""
    old, new = ("".join(f"{sign}{line}\n" for line in text.split()) for sign, text in (("-", before), ("+", after)))
    return f"{said}\n\n--- a/lines\n+++ b/lines\n@@ -1,2 +1,2 @@\n{old}{new}"


DEBIAN = {
    "changelog": "edk2 (2025.02-8) unstable; urgency=medium\n",
    "patches/series": "# comment\nb.patch\n\na.patch -p1 # the second\n",
    "patches/b.patch": patch("one two", "one three", "From: x\nSubject: [PATCH 1/2] three is\n better\n\nMore."),
    "patches/a.patch": patch("one three", "one four", "Description: four\nAuthor: x"),
}


class Toy:
    """Both archives, configs/firmware and a store, and `build` on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.said = folder, Store(folder / "store"), list[str]()
        self.platform = folder / "firmware"
        (self.platform / "patches").mkdir(parents=True)
        (self.platform / "minguest.dsc").write_text("platform")
        self.own("0001-own.patch", patch("one four", "own four", "What it is.\n\nMore."))
        self.top, self.version = "edk2-2025.02", "2025.02-8+minguest1"
        self.tree = {**TREE, "BaseTools/BinWrappers/PosixLike/build": BUILD.replace("{count}", str(folder / "count"))}
        self.debian = dict(DEBIAN)

    def own(self, name: str, text: str) -> None:
        """A patch of this project's."""
        (self.platform / "patches" / name).write_text(text)

    def archive(self, name: str, top: str, content: dict[str, str]) -> Path:
        """A tarball."""
        path = self.folder / name
        with tarfile.open(path, "w:xz") as tar:
            for each, text in content.items():
                member = tarfile.TarInfo(f"{top}/{each}")
                member.size, member.mode = len(text.encode()), 0o755 if each.endswith("build") else 0o644
                tar.addfile(member, io.BytesIO(text.encode()))
        return path

    def build(self, *, measured: bool = False) -> Path:
        orig = self.archive("orig.tar.xz", self.top, self.tree)
        changes = self.archive("debian.tar.xz", "debian", self.debian)
        found = {files.sha256(path): path for path in (orig, changes)}
        part = Part(("http://example.invalid/debian",), files.sha256(changes))
        wanted = Firmware(self.version, ("http://example.invalid/orig",), files.sha256(orig), "MIT", debian=part)

        def fetch(source: Source, _: str) -> Path:
            return found[source.sha256]

        log = self.folder / "log/edk2.log"
        return edk2.build(wanted, self.platform, self.store, fetch, log=log, say=self.said.append, measured=measured)

    @property
    def builds(self) -> int:
        count = self.folder / "count"
        return len(count.read_text().split()) if count.exists() else 0


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(edk2, "tools", lambda: {"gcc": "1", "nasm": "2"})
    return Toy(tmp_path)


def test_patches_are_applied_in_order_and_named(toy: Toy) -> None:
    kept = toy.build()
    code = (kept / "OVMF_CODE.fd").read_bytes()
    assert code == b"\0" * 40 + b"_FVHCODE\nown\nfour\n"
    built = msgspec.json.decode((kept / "firmware.json").read_bytes(), type=edk2.Built)
    assert [(each.file, each.reason) for each in built.patches] == [
        ("debian/b.patch", "three is better"), ("debian/a.patch", "four"), ("patches/0001-own.patch", "What it is."),
    ]  # fmt: skip
    assert built.patches[2].sha256 == files.sha256(toy.platform / "patches/0001-own.patch")
    assert built.platform == {"minguest.dsc": files.sha256(toy.platform / "minguest.dsc")}
    assert (built.version, built.code_sha256) == ("2025.02-8+minguest1", files.sha256(kept / "OVMF_CODE.fd"))
    assert list(toy.store.making.glob("[0-9]*")) == []


def test_it_is_built_once_and_again_when_damaged(toy: Toy) -> None:
    kept = toy.build()
    os.utime(kept, (0, 0))
    assert toy.build() == kept
    assert toy.builds == 1
    assert kept.stat().st_mtime > 0  # so that a prune keeps it
    (kept / "OVMF_VARS.fd").write_bytes(b"x")
    assert toy.build() == kept
    assert toy.builds == 2
    assert kbuild.whole(kept, edk2.KEPT)


@pytest.mark.parametrize(
    "change",
    [
        lambda toy: toy.own("0002-more.patch", patch("own four", "own five", "More.")),
        lambda toy: (toy.platform / "minguest.dsc").write_text("other"),
        lambda toy: toy.tree.update({"other": ""}),
        lambda toy: toy.debian.update({"rules": "other"}),
        lambda toy: setattr(toy, "version", "2025.02-8+minguest2"),
    ],
)
def test_every_input_counts(toy: Toy, change: Callable[[Toy], None]) -> None:
    before = toy.build()
    change(toy)
    assert toy.build() != before
    assert toy.builds == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda toy: setattr(toy, "top", "edk2-2024.11"), "built from edk2-2025.02, but the tarball has edk2-2024.11"),
        (lambda toy: toy.debian.update({"changelog": "edk2 (2024.11-1) x"}), r"has those of 2024\.11-1"),
        (lambda toy: toy.debian.pop("patches/series"), "not Debian's changes to a source: series"),
        (lambda toy: toy.debian.update({"patches/series": "../x"}), "outside the folder of patches"),
        (lambda toy: toy.debian.update({"patches/series": "a.patch -p0"}), "options other than -p1"),
        (lambda toy: (toy.platform / "minguest.dsc").unlink(), r"minguest\.dsc: missing"),
    ],
)
def test_sources_that_do_not_belong_together_are_named(toy: Toy, change: Callable[[Toy], object], message: str) -> None:
    change(toy)
    with pytest.raises(UserError, match=message):
        toy.build()
    assert toy.builds == 0


def test_nothing_is_kept_of_a_build_that_failed(toy: Toy) -> None:
    toy.own("0001-own.patch", patch("one six", "own six", "Of another version."))
    with pytest.raises(ToolError, match=r"0001-own\.patch: does not apply to this edk2"):
        toy.build()
    toy.own("0001-own.patch", patch("one four", "own four", "x"))
    toy.tree["BaseTools/Source/C/Makefile"] = "GenFfs:\n\tfalse\n"
    with pytest.raises(ToolError, match="make: exit status 2"):
        toy.build()
    assert [path for path in toy.store.firmware.glob("*") if path.is_dir()] == []


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("setpriv", "gcc", "getconf", "ld"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="built with nasm") as raised:
        edk2.tools()
    assert raised.value.remedy == "apt install nasm"
    nasm, gcc = tmp_path / "nasm", tmp_path / "gcc"
    nasm.write_text("#!/bin/sh\necho NASM version 2.16.01 compiled on Jan 1\n")
    nasm.chmod(0o755)
    gcc.unlink()
    gcc.write_text("#!/bin/sh\ncase $* in *uuid*) echo 'uuid/uuid.h: No such file'; exit 1;; esac\necho 12.2.0\n")
    gcc.chmod(0o755)
    with pytest.raises(
        ToolError, match=r"need uuid/uuid\.h, and gcc does not find it: uuid/uuid\.h: No such"
    ) as raised:
        edk2.tools()
    assert "uuid-dev" in str(raised.value.remedy)
    gcc.write_text("#!/bin/sh\necho 12.2.0\n")
    assert edk2.tools()["nasm"] == "2.16.01"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one\n\n--- a/x\n+++ b/x\n", "one"),
        ("--- a/x\n+++ b/x\n", ""),
        ("From 12 Mon\nSubject: [PATCH] fix it\n---\n x | 1 +\n\ndiff --git a/x b/x\n", "fix it"),
        ("Description: wait\n longer\n\nLast-Update: 2025\n--- a/x\n", "wait longer"),
    ],
)
def test_what_a_patch_says_of_itself(text: str, said: str) -> None:
    assert edk2.reason(text) == said


def test_the_platform_names_every_module_once_in_both_files() -> None:
    """What the DSC builds is in a volume, and the other way round: a module in one of them only is a mistake."""
    folder = ROOT / "configs/firmware"
    dsc = (folder / "minguest.dsc").read_text().split("[Components]")[1]
    fdf = (folder / "minguest.fdf").read_text().split("[FV.SECFV]")[1]
    built = re.findall(r"^  ([^\s|]+\.inf)", dsc, re.MULTILINE)
    laid = [line.split()[-1] for line in fdf.splitlines() if line.startswith("INF ")]
    assert sorted(built) == sorted(laid)
    assert len(set(built)) == len(built)


def test_the_release_of_sources_toml_belongs_to_debians() -> None:
    found = settings.sources(ROOT / "configs/sources.toml").firmware
    edk2.check_debian(f"edk2 ({found['ovmf'].version}) trixie", found["ovmf-minimal"])


def test_a_measured_firmware_is_another_build_with_the_names_of_its_modules(toy: Toy) -> None:
    (toy.platform / "measured").mkdir()
    (toy.platform / "measured/Performance.c").write_text("first")
    shipped = toy.build()
    kept = toy.build(measured=True)
    assert (kept / "Guid.xref").read_text() == "1-2 Pei\nwith measured/Performance.c: first"
    assert (kept / "OVMF_CODE.fd").read_bytes() == (shipped / "OVMF_CODE.fd").read_bytes()  # of the toy
    assert not (shipped / "Guid.xref").exists()
    built = msgspec.json.decode((kept / "firmware.json").read_bytes(), type=edk2.Built)
    assert set(built.platform) == {"minguest.dsc", "measured/Performance.c"}
    # What measures is no input of what ships.
    (toy.platform / "measured/Performance.c").write_text("second")
    assert toy.build() == shipped and toy.builds == 2
    other = toy.build(measured=True)
    assert other != kept and toy.builds == 3
    (other / "Guid.xref").write_text("x")
    assert toy.build(measured=True) == other and toy.builds == 4
