# SPDX-License-Identifier: Apache-2.0
"""kernel-devel of a kernel in miniature: what is in it, which kernel it belongs to, and when it is made."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest

from minguest.kernel import devel, kbuild, symvers
from minguest.model import Devel
from minguest.paths import Store
from minguest.util import files
from minguest.util.errors import ToolError, UserError
from tests.unit.kernel.test_kbuild import prepared, quiet

CONFIG = "CONFIG_PACKET=y\nCONFIG_MODULES=y\n"


def build(tmp_path: Path, store: Store, config: str = CONFIG, *, with_devel: bool = True) -> tuple[Path, bool]:
    """The folder of the kernel, and whether make ran for it."""
    ran: list[bool] = []
    kept, _ = kbuild.build(
        prepared(tmp_path),
        config,
        store,
        log=tmp_path / "log",
        say=quiet,
        building=lambda: ran.append(True),
        with_devel=with_devel,
    )
    return kept, bool(ran)


def output(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def folder(tmp_path: Path, store: Store) -> Path:
    found = kbuild.devel_folder(prepared(tmp_path), CONFIG, store)
    assert found
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_it_has_what_modules_need_and_says_which_kernel_it_is_of(tmp_path: Path, store: Store) -> None:
    kept, _ = build(tmp_path, store)
    place = folder(tmp_path, store)
    subprocess.run(["tar", "xf", place / devel.ARCHIVE, "-C", tmp_path], check=True)
    top = tmp_path / "kernel-devel-6.12.1"
    held = {path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()}
    assert held == {
        "Makefile", ".config", "Module.symvers", "kernel-devel.json", "arch/x86/include/asm/toy.h",
        "include/linux/toy.h", "include/config/auto.conf", "include/config/kernel.release",
        "include/generated/utsrelease.h", "scripts/image.py", "scripts/mod/modpost",
    }  # fmt: skip
    facts = msgspec.json.decode((top / devel.FACTS).read_bytes(), type=Devel)
    assert facts == msgspec.json.decode((place / devel.FACTS).read_bytes(), type=Devel)
    assert (facts.release, facts.vermagic) == ("6.12.1", "6.12.1 SMP mod_unload ")
    assert facts.config == hashlib.sha256(CONFIG.encode()).hexdigest() == files.sha256(kept / "kernel.config")
    assert facts.symvers == files.sha256(top / "Module.symvers")
    assert len(bytes.fromhex(facts.build_id)) == 20
    assert facts.compiler == output("gcc", "--version").splitlines()[0]
    sections = output("readelf", "-S", top / "scripts/mod/modpost")
    assert ".text" in sections and ".debug_info" not in sections and "build-id" not in sections
    assert subprocess.run([top / "scripts/mod/modpost"], check=False).returncode == 1


def test_it_is_the_same_bytes_everywhere(tmp_path: Path, store: Store) -> None:
    build(tmp_path, store)
    other = Store(tmp_path / "another-store-with-a-longer-name")
    build(tmp_path, other)
    assert files.sha256(folder(tmp_path, store) / devel.ARCHIVE) == files.sha256(
        folder(tmp_path, other) / devel.ARCHIVE
    )
    plain = tmp_path / "plain.tar"
    subprocess.run(["zstd", "-qd", folder(tmp_path, store) / devel.ARCHIVE, "-o", plain], check=True)
    with tarfile.open(plain) as tar:
        members = tar.getmembers()
    assert {(each.mtime, each.uid, each.gid, each.uname, each.gname) for each in members} == {
        (devel.TIME, 0, 0, "", "")
    }
    names = [each.name for each in members]
    assert names[:-1] == sorted(names[:-1])


def test_it_is_made_where_it_is_wanted_and_kept(tmp_path: Path, store: Store) -> None:
    kept, ran = build(tmp_path, store, with_devel=False)
    before = files.sha256(kept / "bzImage")
    assert ran and not folder(tmp_path, store).exists()
    assert build(tmp_path, store)[1]
    assert build(tmp_path, store) == (kept, False) == build(tmp_path, store, with_devel=False)
    assert files.sha256(kept / "bzImage") == before


def test_a_kernel_without_modules_has_none(tmp_path: Path, store: Store) -> None:
    plain = "CONFIG_PACKET=y\n"
    assert kbuild.devel_folder(prepared(tmp_path), plain, store) is None
    kept, _ = build(tmp_path, store, plain)
    assert [path for path in store.kernels.iterdir() if path.is_dir()] == [kept]


def test_a_damaged_one_is_made_again(tmp_path: Path, store: Store) -> None:
    build(tmp_path, store)
    place = folder(tmp_path, store)
    good = {name: (place / name).read_bytes() for name in (*kbuild.DEVEL, kbuild.SUMS)}
    for name, content in good.items():
        (place / name).write_bytes(content[:-2])
        assert build(tmp_path, store)[1], name
        assert (place / name).read_bytes() == content
    shutil.rmtree(place)
    assert build(tmp_path, store)[1]


WITH_DRIVER = CONFIG + "CONFIG_TOY=m\n"


def test_the_kernels_own_modules_are_kept_with_it(tmp_path: Path, store: Store) -> None:
    build(tmp_path, store, WITH_DRIVER)
    place = kbuild.devel_folder(prepared(tmp_path), WITH_DRIVER, store)
    assert place is not None
    packed = place / devel.IN_TREE
    first = packed.read_bytes()
    with tarfile.open(packed) as tar:
        (member,) = tar.getmembers()
        assert (member.name, member.mode, member.mtime, member.uid) == ("drivers/toy/toy.ko", 0o644, devel.TIME, 0)
        module = tar.extractfile(member)
        assert module is not None
        (tmp_path / "toy.ko").write_bytes(module.read())
    sections = output("readelf", "-SW", tmp_path / "toy.ko")
    assert ".modinfo" in sections and ".debug" not in sections
    # It is as damaged as any other file, and the same bytes in every store.
    packed.write_bytes(first[:-2])
    assert build(tmp_path, store, WITH_DRIVER)[1] and packed.read_bytes() == first
    packed.unlink()
    assert build(tmp_path, store, WITH_DRIVER)[1] and packed.read_bytes() == first
    assert not build(tmp_path, store, WITH_DRIVER)[1]


def test_a_kernel_without_modules_of_its_own_keeps_none(tmp_path: Path, store: Store) -> None:
    build(tmp_path, store)
    assert not (folder(tmp_path, store) / devel.IN_TREE).exists()
    # A config that has one, and a build that made none.
    tree = Path(prepared(tmp_path).path, "Makefile")
    tree.write_text(tree.read_text().replace("CONFIG_TOY=m", "CONFIG_NO"))
    with pytest.raises(ToolError, match="made no module, and its config has some"):
        build(tmp_path, store, WITH_DRIVER)


def test_one_of_another_build_of_the_kernel_is_not_believed(tmp_path: Path, store: Store) -> None:
    """As where a run is killed after it replaced the kernel, and before it replaced this."""
    kept, _ = build(tmp_path, store)
    (kept / "System.map").write_text("another\n")
    kbuild.seal(kept, kbuild.KEPT)
    assert kbuild.whole(kept) and kbuild.whole(folder(tmp_path, store), kbuild.DEVEL)
    assert build(tmp_path, store)[1]
    assert (kept / "System.map").read_text() != "another\n"


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("printf '' >$(O)/Module.symvers", "does not belong to vmlinux: toy_exported"),
        ("printf '0x0\\tother\\tvmlinux\\tEXPORT_SYMBOL\\t\\n' >>$(O)/Module.symvers", "vmlinux: other"),
        ("printf '' >$(O)/include/config/auto.conf", "did not make include/config/auto.conf"),
        ("truncate -s 2000 $(O)/scripts/mod/modpost", "modpost: cut short"),
        ("false", "exit status 2"),
    ],
)
def test_a_build_that_is_not_complete_is_not_kept(tmp_path: Path, store: Store, rule: str, why: str) -> None:
    tree = prepared(tmp_path)
    makefile = Path(tree.path, "Makefile")
    makefile.write_text(makefile.read_text().replace("\n.PHONY", f"\t{rule}\n\n.PHONY"))
    with pytest.raises(ToolError, match=why):
        build(tmp_path, store)
    assert not kbuild.devel_folder(tree, CONFIG, store).exists()  # type: ignore[union-attr]


def test_exports_are_read_of_both_series(tmp_path: Path) -> None:
    table = tmp_path / "Module.symvers"
    table.write_text(
        "0x12345678\tprintk\tvmlinux\tEXPORT_SYMBOL\n"
        "0x00000000\tdma_buf_get\tdrivers/dma-buf/dma\tEXPORT_SYMBOL_GPL\tDMA_BUF\n"
    )
    assert symvers.read(table) == {
        "printk": symvers.Export(0x12345678, "vmlinux", False, ""),
        "dma_buf_get": symvers.Export(0, "drivers/dma-buf/dma", True, "DMA_BUF"),
    }
    table.write_text("0x0\tone\tvmlinux\tEXPORT_SYMBOL\nno line\n")
    with pytest.raises(UserError, match=r"Module.symvers:2: not a line of Module.symvers: 'no line'"):
        symvers.read(table)
