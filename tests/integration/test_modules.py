# SPDX-License-Identifier: Apache-2.0
"""Modules out of the tree, built against the kernel-devel of a real kernel: by hand, and by doit modules."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from minguest import paths, settings
from minguest.bundle import cpio, kmodule, manifests, modules
from minguest.model import Devel
from minguest.util import archive
from minguest.util.errors import UserError
from tests import ROOT
from tests.integration.conftest import SERIES, Doit

HELLO = ROOT / "tests/modules/hello"
LIMIT = 9e6
GUEST = f"""
name = "with-modules"
kernel = ["{SERIES}"]
overlays = ["base"]
modules = ["hello"]
"""
# Nothing of the kernel's build can be seen there: neither its tree, nor the folder that it was built in, nor ccache.
HIDDEN = 'mount -t tmpfs none "$0" && mount -t tmpfs none "$1" && make -C "$2" M="$3" modules'


def unpacked(packed: Path, target: Path) -> Path:
    """A kernel-devel as a user unpacks it; its folder."""
    target.mkdir()
    subprocess.run(["tar", "xf", packed, "-C", target], check=True)
    (top,) = target.iterdir()
    return top


@pytest.fixture(scope="module")
def devel(built: paths.Layout) -> Devel:
    return msgspec.json.decode((built.kernel / "kernel-devel.json").read_bytes(), type=Devel)


@pytest.fixture
def hello(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HELLO, tmp_path / "hello"))


def test_kernel_devel_is_small_and_of_this_kernel(built: paths.Layout, devel: Devel, tmp_path: Path) -> None:
    manifest = manifests.load(built.bundle)
    assert manifest.files["kernel-devel.tar.zst"].size < LIMIT
    assert manifest.kernel.devel == devel and devel.release == manifest.kernel.release
    assert devel.config == manifest.files["kernel.config"].sha256
    top = unpacked(built.bundle / "kernel-devel.tar.zst", tmp_path / "devel")
    assert (top / ".config").read_bytes() == (built.bundle / "kernel.config").read_bytes()
    assert msgspec.json.decode((top / "kernel-devel.json").read_bytes(), type=Devel) == devel
    # It names no place of this machine, and has no key.
    held = [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]
    store = os.fsencode(settings.store_folder())
    assert [path for path in held if store in path.read_bytes() or os.fsencode(ROOT) in path.read_bytes()] == []
    assert [path for path in held if b"PRIVATE KEY-----\n" in path.read_bytes()] == []


def test_make_builds_modules_with_the_kernels_build_hidden(built: paths.Layout, hello: Path, tmp_path: Path) -> None:
    top = unpacked(built.bundle / "kernel-devel.tar.zst", tmp_path / "another-place")
    store = settings.store_folder()
    unshare = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
    argv = [*unshare, "sh", "-c", HIDDEN, *map(str, (store, ROOT / "out", top, hello))]
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    found = [kmodule.read(hello / f"{name}.ko") for name in ("greeting", "hello")]
    assert all(each.one("vermagic").startswith("6.12.") for each in found)
    # What kbuild says that each object was made from: headers of the tree, of the module and of the compiler.
    used = set()
    for path in hello.glob(".*.o.cmd"):
        used |= set(re.findall(r"^  (?:\$\(wildcard )?(/[^\s)]+)", path.read_text(), re.MULTILINE))
    assert all(each.startswith((f"{hello}/", f"{top}/", "/usr/lib/gcc/")) for each in used), used


def test_doit_modules_puts_them_into_the_initrd(
    built: paths.Layout, devel: Devel, doit: Doit, hello: Path, tmp_path: Path
) -> None:
    guest = tmp_path / "guest.toml"
    guest.write_text(GUEST)
    at = paths.Layout(ROOT, "with-modules", SERIES)
    shutil.rmtree(at.modules, ignore_errors=True)
    arguments = [f"guest={guest}", f"kernel={SERIES}"]
    result = doit("build", *arguments)
    assert result.returncode != 0 and "modules 'hello': not built for this guest and series" in result.stdout
    before = {path.name: path.read_bytes() for path in hello.iterdir()}
    result = doit("modules", *arguments, f"src={hello}")
    assert result.returncode == 0, result.stdout
    assert re.search(
        r"^hello\.ko 1\.0, \d+ KB, needs greeting, firmware minguest/hello\.bin$", result.stdout, re.MULTILINE
    )
    assert {path.name: path.read_bytes() for path in hello.iterdir()} == before
    result = doit("build", *arguments)
    assert result.returncode == 0, result.stdout
    (made,) = manifests.load(at.bundle).initrd.modules
    assert made.kernel == devel
    assert [(each.name, each.vermagic, each.depends) for each in made.modules] == [
        ("greeting", devel.vermagic, ()), ("hello", devel.vermagic, ("greeting",)),
    ]  # fmt: skip
    with archive.decompressed(at.bundle / "initrd.img") as stream:
        held = {member.name: member.data for member in cpio.parse(stream.read())[0]}
    lists = f"lib/modules/{devel.release}"
    assert held[f"{lists}/modules.dep"] == b"extra/hello/greeting.ko:\nextra/hello/hello.ko: extra/hello/greeting.ko\n"
    assert b"alias pci:v00001B36d00000005sv*sd*bc*sc*i* hello\n" in held[f"{lists}/modules.alias"]
    # Its path in the machine that built it is not in it.
    assert b"greeting.c" in held[f"{lists}/extra/hello/greeting.ko"]
    assert os.fsencode(settings.store_folder()) not in held[f"{lists}/extra/hello/greeting.ko"]
    for path in (at.work, at.choice):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_symbol_that_nobody_exports_is_named(built: paths.Layout, doit: Doit, hello: Path) -> None:
    source = hello / "greeting.c"
    source.write_text(
        source.read_text().replace("pr_info(", "extern int not_exported(void);\n\tnot_exported();\n\tpr_info(")
    )
    result = doit("modules", f"kernel={SERIES}", f"src={hello}", "name=unresolved")
    assert result.returncode != 0
    assert re.search(r"would refuse these modules:\n  greeting: no such symbol .*: not_exported\n", result.stdout)
    assert not (built.modules / "unresolved").exists()


def test_modules_of_a_doctored_release_are_refused(
    built: paths.Layout, devel: Devel, hello: Path, tmp_path: Path
) -> None:
    """The tree says that it is of another release, as one does that was changed after its kernel was built."""
    top = unpacked(built.bundle / "kernel-devel.tar.zst", tmp_path / "devel")
    header = top / "include/generated/utsrelease.h"
    header.write_text(header.read_text().replace(devel.release, f"{devel.release}-other"))
    packed = tmp_path / "doctored.tar.zst"
    subprocess.run(["tar", "caf", packed, "-C", top.parent, top.name], check=True)
    target = tmp_path / "modules/hello"
    with pytest.raises(UserError) as raised:
        modules.build(
            hello, "hello", packed, target, store=paths.Store(tmp_path / "store"), log=tmp_path / "log", say=print
        )
    assert f"hello: built for '{devel.release}-other SMP mod_unload ', but this kernel loads" in str(raised.value)
    assert not target.exists()
