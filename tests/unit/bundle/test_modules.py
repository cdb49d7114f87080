# SPDX-License-Identifier: Apache-2.0
"""Modules that are built against a kernel-devel in miniature: whose Makefile compiles each .c to a .ko, no more."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.bundle import kmodule, modules
from minguest.kernel import signing, source
from minguest.model import Devel
from minguest.paths import Store
from minguest.util import files
from minguest.util.errors import ToolError, UserError
from tests.unit.bundle.test_firmware import package
from tests.unit.bundle.test_kmodule import KERNEL, module

MAKEFILE = """\
modules:
	test -f $(M)/Makefile -o -f $(M)/Kbuild
	for each in $(M)/*.c; do gcc -c -g -fno-pic $(KCFLAGS) $(FLAGS) -o $${each%.c}.ko $$each || exit 1; done
	cp $(M)/exports $(M)/Module.symvers || :
"""
SIGN_FILE = '#!/bin/sh\necho "$@" >>$(dirname $0)/../../signed\nprintf "~Module signature appended~\\n" >>$4\n'


def quiet(_: str) -> None:
    """Takes what would be said."""


class Bench:
    """A source of two modules, of which `one` needs `two`, and a kernel to build them for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "store")
        self.source, self.target = folder / "src-1.0", folder / "modules/cards"
        self.source.mkdir()
        (self.source / "Makefile").write_text("obj-m := one.o two.o\n")
        module(self.source / "one.ko", ["_printk", "two_does"], ["alias=pci:v1*", "version=3", "firmware=x.bin"])
        module(self.source / "two.ko", [], ["softdep=pre: crc32"])
        (self.source / "exports").write_text("0x0\ttwo_does\t/any/where/two\tEXPORT_SYMBOL\t\n")
        self.log = folder / "log"
        self.packed = self.kernel(KERNEL)

    def kernel(self, facts: Devel, *, sign: bool = False) -> Path:
        tree = self.folder / "kernel-devel"
        shutil.rmtree(tree, ignore_errors=True)
        (tree / "scripts").mkdir(parents=True)
        (tree / "Makefile").write_text(MAKEFILE)
        (tree / "Module.symvers").write_text("0x0\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n")
        (tree / "kernel-devel.json").write_bytes(msgspec.json.encode(facts))
        if sign:
            (tree / "scripts/sign-file").write_text(SIGN_FILE)
            (tree / "scripts/sign-file").chmod(0o755)
        packed = self.folder / "kernel-devel.tar.zst"
        subprocess.run(["tar", "caf", packed, "-C", self.folder, tree.name], check=True)
        return packed

    def build(self, path: Path | None = None, **more: Any) -> kmodule.Set:
        return modules.build(
            path or self.source, "cards", self.packed, self.target, store=self.store, log=self.log, say=quiet, **more
        )

    @property
    def laid(self) -> dict[str, Path]:
        return {path.relative_to(self.target).as_posix(): path for path in self.target.rglob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def as_folder(bench: Bench) -> Path:
    return bench.source


def as_tarball(ending: str) -> Callable[[Bench], Path]:
    def make(bench: Bench) -> Path:
        packed = bench.folder / f"cards-1.0{ending}"
        subprocess.run(["tar", "caf", packed, "-C", bench.folder, bench.source.name], check=True)
        return packed

    return make


def as_tree_in_a_deb(bench: Bench) -> Path:
    held = {f"./usr/src/cards-1.0/{path.name}": path.read_bytes() for path in bench.source.iterdir()}
    return package(bench.folder / "cards.deb", {"./usr/share/doc/cards/copyright": b"", **held})


def as_tarball_in_a_deb(bench: Bench) -> Path:
    inner = as_tarball(".tar.xz")(bench)
    return package(bench.folder / "cards.deb", {"./usr/src/cards.tar.xz": inner.read_bytes(), "./usr/share/doc/c": b""})


def as_folder_of_a_folder(bench: Bench) -> Path:
    outer = bench.folder / "outer"
    (outer / "only").mkdir(parents=True)
    shutil.copytree(bench.source, outer / "only/driver")
    (outer / "only/README").write_text("")
    return outer


@pytest.mark.parametrize(
    "form",
    [as_folder, as_tarball(".tar.gz"), as_tarball(".tar.xz"), as_tarball(".tar.zst"), as_tree_in_a_deb,
     as_tarball_in_a_deb, as_folder_of_a_folder],
)  # fmt: skip
def test_a_source_becomes_an_overlay(bench: Bench, form: Callable[[Bench], Path]) -> None:
    path = form(bench)
    before = source.content(path)
    made = bench.build(path)
    assert source.content(path) == before
    lists, extra = "lib/modules/6.12.1", "lib/modules/6.12.1/extra/cards"
    laid = bench.laid
    assert laid.keys() == {
        *(f"{lists}/modules.{each}" for each in ("dep", "alias", "softdep")),
        *(f"{extra}/{each}" for each in ("one.ko", "two.ko", "modules.json")),
    }
    assert laid[f"{lists}/modules.dep"].read_text() == ("extra/cards/one.ko: extra/cards/two.ko\nextra/cards/two.ko:\n")
    assert "alias pci:v1* one\n" in laid[f"{lists}/modules.alias"].read_text()
    assert "softdep two pre: crc32\n" in laid[f"{lists}/modules.softdep"].read_text()
    one = made.modules[0]
    assert (one.name, one.version, one.licence, one.depends, one.firmware, one.signed) == (
        "one", "3", "GPL", ("two",), ("x.bin",), False,
    )  # fmt: skip
    for each in made.modules:
        assert each.sha256 == files.sha256(laid[f"{extra}/{each.file}"])
        sections = subprocess.run(["readelf", "-SW", laid[f"{extra}/{each.file}"]], capture_output=True, check=True)
        assert b".modinfo" in sections.stdout and b".debug_info" not in sections.stdout
    assert made.kernel == KERNEL and modules.load(bench.target, KERNEL) == made


def test_what_an_earlier_build_left_in_the_source_is_not_taken(bench: Bench) -> None:
    module(bench.source / "stale.ko")
    (bench.source / "stale.c").unlink()
    assert [each.name for each in bench.build().modules] == ["one", "two"]


def test_make_gets_more_variables(bench: Bench) -> None:
    bench.build(make=["FLAGS=-DWHERE={devel}"])
    said = bench.log.read_text()
    (flags,) = [word for word in said.splitlines()[0].split() if word.startswith("FLAGS=")]
    assert flags.endswith("/kernel-devel") and "{devel}" not in said


def test_modules_are_signed_after_they_are_stripped(bench: Bench, tmp_path: Path) -> None:
    bench.packed = bench.kernel(KERNEL, sign=True)
    key = tmp_path / "key.pem"
    made = bench.build(key=key)
    assert all(each.signed for each in made.modules)
    for name, path in bench.laid.items():
        if name.endswith(".ko"):
            assert path.read_bytes().endswith(signing.MARK)
            subprocess.run(["strip", "-g", "-o", tmp_path / "plain.ko", path], check=True)
            assert path.read_bytes() == (tmp_path / "plain.ko").read_bytes() + signing.MARK


def test_a_kernel_that_checks_no_signature_cannot_sign(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="this kernel does not check signatures"):
        bench.build(key=tmp_path / "key.pem")
    assert not bench.target.exists()


def test_a_module_that_the_kernel_would_refuse_is_not_laid_out(bench: Bench) -> None:
    made = bench.build()
    module(bench.source / "one.ko", ["gone"])
    with pytest.raises(
        UserError, match=r"(?s)linux 6\.12\.1 would refuse these modules:\n  one: no such symbol .*gone"
    ):
        bench.build()
    bench.packed = bench.kernel(msgspec.structs.replace(KERNEL, vermagic="6.12.1-other SMP "))
    with pytest.raises(
        UserError, match=r"two: built for '6\.12\.1 SMP mod_unload ', but this kernel loads '6\.12\.1-o"
    ):
        bench.build()
    assert modules.load(bench.target, KERNEL) == made  # the one before is still there


def test_a_build_that_fails_names_its_log(bench: Bench) -> None:
    (bench.source / "one.c").write_text("int broken(void) { return no_such_thing; }\n")
    with pytest.raises(ToolError, match=rf"(?s)the modules were not built.*no_such_thing.*whole log: {bench.log}"):
        bench.build()
    assert "no_such_thing" in bench.log.read_text() and not bench.target.exists()


def wanting(what: str) -> Callable[[Bench], None]:
    def change(bench: Bench) -> None:
        makefile = bench.source / "Makefile"
        if what == "no makefile":
            makefile.unlink()
        elif what == "no obj-m":
            makefile.write_text("all:\n\tmake -C /lib/modules M=.\n")
        elif what == "several":
            makefile.unlink()
            for name in ("a", "b"):
                (bench.source / name).mkdir()
                (bench.source / name / "Kbuild").write_text("obj-$(CONFIG_X) += x.o\n")
        elif what == "no module":
            bench.packed.unlink()
            (bench.folder / "kernel-devel/Makefile").write_text("modules:\n\ttrue\n")
            subprocess.run(["tar", "caf", bench.packed, "-C", bench.folder, "kernel-devel"], check=True)

    return change


def test_a_package_of_sources_toml_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"src=.*/open-kernal: no such file or folder") as raised:
        modules.check(tmp_path / "open-kernal", None, None, ["open-kernel", "other"])
    assert raised.value.remedy == "nearest in sources.toml: src=open-kernel"
    assert modules.check_words("open-kernel-535", None, "A=b") == ("open-kernel", ["A=b"])


def test_a_kbuild_may_have_its_list_elsewhere(bench: Bench) -> None:
    (bench.source / "Makefile").rename(bench.source / "list.mk")
    (bench.source / "Kbuild").write_text("include $(src)/list.mk\n")
    assert [each.name for each in bench.build().modules] == ["one", "two"]


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("no makefile", "no folder has a Makefile or Kbuild with obj-m"),
        ("no obj-m", "no folder has a Makefile or Kbuild with obj-m"),
        ("several", "several folders have a Makefile or Kbuild with obj-m: a, b"),
        ("no module", "make built no module"),
    ],
)
def test_a_source_of_no_module_is_an_error(bench: Bench, what: str, why: str) -> None:
    wanting(what)(bench)
    with pytest.raises(UserError, match=why):
        bench.build()
    assert not bench.target.exists()


@pytest.mark.parametrize(
    ("held", "there"),
    [
        ({"./usr/bin/tool": b"", "./etc/x": b""}, "nothing"),
        ({"./usr/src/a-1/Makefile": b"", "./usr/src/b.tar.gz": b"", "./etc/x": b""}, r"a-1, b\.tar\.gz"),
    ],
)
def test_a_package_of_another_layout_is_an_error(bench: Bench, held: dict[str, bytes], there: str) -> None:
    with pytest.raises(UserError, match=rf"one tarball or folder in /usr/src, and this one has {there}"):
        bench.build(package(bench.folder / "x.deb", held))


@pytest.mark.parametrize(
    ("name", "made"),
    [("hello", "hello"), ("nvidia-open_550.163.01.tar.xz", "nvidia-open"), ("acpi-call-dkms_1.2.2-2_all.deb",
      "acpi-call-dkms"), ("v4l2loopback-0.12.7", "v4l2loopback"), ("r8125.tgz", "r8125")],
)  # fmt: skip
def test_a_name_is_that_of_the_source(name: str, made: str) -> None:
    assert modules.name_of(Path(name)) == made


@pytest.mark.parametrize(
    ("path", "name", "make", "why"),
    [
        (None, None, None, "src= is not given"),
        ("gone", None, None, "no such file or folder"),
        ("x.zip", None, None, "neither a folder, a tarball nor a .deb"),
        ("src-1.0", "../x", None, "becomes a folder's name"),
        ("src-1.0", None, "DEBUG", "'DEBUG' is not NAME=VALUE"),
        ("src-1.0", None, "A='b", "No closing quotation"),
    ],
)
def test_what_the_user_gives_is_checked_first(
    bench: Bench, path: str | None, name: str | None, make: str | None, why: str
) -> None:
    (bench.folder / "x.zip").write_bytes(b"")
    with pytest.raises(UserError, match=why):
        modules.check(bench.folder / path if path else None, name, make)
    assert modules.check(bench.source, None, "A=b C='d e'") == (bench.source, "src", ["A=b", "C=d e"])


# ── what was built, for an initrd ──


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("release", "6.12.2", "linux 6.12.1, and this kernel's is 6.12.2"),
        ("config", "e" * 64, "a config with SHA-256 d"),
        ("symvers", "e" * 64, "a Module.symvers with SHA-256 c"),
        ("compiler", "gcc 14", "compiled by gcc 12, and this kernel's is gcc 14"),
        ("build_id", "cd" * 20, "build ID ab"),
        ("format", 2, "kernel-devel of format 1, and now it is 2"),
    ],
)
def test_modules_of_another_kernel_are_refused(bench: Bench, field: str, value: str | int, why: str) -> None:
    bench.build()
    with pytest.raises(UserError, match=f"modules 'cards' were built for another kernel: {why}") as raised:
        modules.load(bench.target, msgspec.structs.replace(KERNEL, **{field: value}))
    assert raised.value.remedy == "doit modules src=… name=cards"
    with pytest.raises(UserError, match="and this one has no modules"):
        modules.load(bench.target, None)


def test_modules_that_are_not_there_or_damaged_are_refused(bench: Bench) -> None:
    with pytest.raises(UserError, match="modules 'cards': not built for this guest and series"):
        modules.load(bench.target, KERNEL)
    bench.build()
    path = bench.laid["lib/modules/6.12.1/extra/cards/one.ko"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"one\.ko: is not the module that was built"):
        modules.load(bench.target, KERNEL)
    path.with_name("modules.json").write_text("{")
    with pytest.raises(UserError, match=r"modules\.json: damaged"):
        modules.load(bench.target, KERNEL)


def test_the_kernels_own_modules_become_an_overlay(bench: Bench, tmp_path: Path) -> None:
    tree = tmp_path / "kernel-devel"
    (tree / "Module.symvers").write_text(
        "0x0\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n0x0\ttwo_does\tdrivers/two/two\tEXPORT_SYMBOL\t\n"
    )
    subprocess.run(["tar", "caf", bench.packed, "-C", tmp_path, tree.name], check=True)
    places = {"one": "drivers/one", "two": "drivers/two"}
    for name, place in places.items():
        (tmp_path / "built" / place).mkdir(parents=True)
        shutil.copyfile(bench.source / f"{name}.ko", tmp_path / "built" / place / f"{name}.ko")
    built, target = tmp_path / "in-tree-modules.tar", tmp_path / "modules/in-tree"
    subprocess.run(["tar", "cf", built, "-C", tmp_path / "built", "drivers"], check=True)
    made = modules.in_tree(built, bench.packed, target, log=bench.log)
    assert (made.name, made.source, made.kernel) == ("in-tree", files.sha256(built), KERNEL)
    assert {each.name: each.depends for each in made.modules} == {"one": ("two",), "two": ()}
    assert modules.load(target, KERNEL) == made
    dep = target / "lib/modules/6.12.1/modules.dep"
    assert dep.read_text() == "extra/in-tree/one.ko: extra/in-tree/two.ko\nextra/in-tree/two.ko:\n"
    # Whether it has to be made again.
    assert modules.is_of(target, built, KERNEL, signed=False)
    assert not modules.is_of(target, built, KERNEL, signed=True)
    assert not modules.is_of(target, built, msgspec.structs.replace(KERNEL, config="0" * 64), signed=False)
    assert not modules.is_of(target, bench.packed, KERNEL, signed=False)
    ((target / "lib/modules/6.12.1/extra/in-tree") / "two.ko").unlink()
    assert not modules.is_of(target, built, KERNEL, signed=False)
    with pytest.raises(UserError, match=r"two\.ko: is not the module") as raised:
        modules.load(target, KERNEL)
    assert raised.value.remedy == "doit build"


def test_a_module_may_need_one_of_the_kernels_own(bench: Bench, tmp_path: Path) -> None:
    tree = tmp_path / "kernel-devel"
    (tree / "Module.symvers").write_text(
        "0x0\t_printk\tvmlinux\tEXPORT_SYMBOL\t\n0x0\tdrm_open\tdrivers/gpu/drm/drm\tEXPORT_SYMBOL\t\n"
    )
    subprocess.run(["tar", "caf", bench.packed, "-C", tmp_path, tree.name], check=True)
    module(bench.source / "two.ko", ["drm_open"])
    with pytest.raises(UserError, match=r'two: symbols of a module of the kernel\'s own; put "in-tree" beside it'):
        bench.build()
    made = bench.build(beside_in_tree=True)
    assert {each.name: each.depends for each in made.modules} == {"one": ("two",), "two": ("drm",)}
    alone = tmp_path / "alone"
    alone.mkdir()
    with pytest.raises(UserError, match="module two needs drm, which is not beside it"):
        modules.combine([bench.target], KERNEL, alone)
    (tmp_path / "drivers").mkdir()
    module(tmp_path / "drivers/drm.ko")
    built = tmp_path / "in-tree-modules.tar"
    subprocess.run(["tar", "cf", built, "-C", tmp_path, "drivers/drm.ko"], check=True)
    own = tmp_path / "modules/in-tree"
    modules.in_tree(built, bench.packed, own, log=bench.log)
    both = tmp_path / "both"
    both.mkdir()
    modules.combine([bench.target, own], KERNEL, both)
    assert (both / "lib/modules/6.12.1/modules.dep").read_text() == (
        "extra/in-tree/drm.ko:\nextra/cards/one.ko: extra/cards/two.ko extra/in-tree/drm.ko\n"
        "extra/cards/two.ko: extra/in-tree/drm.ko\n"
    )


def test_the_name_of_the_kernels_own_modules_is_taken() -> None:
    with pytest.raises(UserError, match="name=in-tree: is the name of the kernel's own modules"):
        modules.check_words("src", "in-tree", None)


def test_several_sets_are_listed_together(bench: Bench, tmp_path: Path) -> None:
    first = bench.build()
    other = tmp_path / "other"
    other.mkdir()
    (other / "Kbuild").write_text("obj-m += three.o\n")
    module(other / "three.ko", [], ["alias=pci:v3"])
    second = modules.build(
        other, "more", bench.packed, tmp_path / "modules/more", store=bench.store, log=bench.log, say=quiet
    )
    target = tmp_path / "overlay"
    target.mkdir()
    folders = [bench.target, tmp_path / "modules/more"]
    assert modules.combine(folders, KERNEL, target) == [first, second]
    lists = target / "lib/modules/6.12.1"
    assert (lists / "modules.dep").read_text() == (
        "extra/cards/one.ko: extra/cards/two.ko\nextra/more/three.ko:\nextra/cards/two.ko:\n"
    )
    assert "alias pci:v1* one\nalias pci:v3 three\n" in (lists / "modules.alias").read_text()
    assert {path.name for path in (lists / "extra").rglob("*.ko")} == {"one.ko", "two.ko", "three.ko"}
    module(other / "two.ko")
    modules.build(other, "more", bench.packed, folders[1], store=bench.store, log=bench.log, say=quiet)
    with pytest.raises(UserError, match="two modules are called two"):
        modules.combine(folders, KERNEL, tmp_path / "modules")
