# SPDX-License-Identifier: Apache-2.0
"""Modules in miniature, compiled for each test: what is read of them, and why a kernel would refuse them."""

import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from minguest.bundle import kmodule
from minguest.kernel.symvers import Export
from minguest.model import Devel
from minguest.util.errors import UserError

KERNEL = Devel(1, "6.12.1", "6.12.1 SMP mod_unload ", "ab" * 20, "c" * 64, "d" * 64, "gcc 12")
EXPORTS = {
    "_printk": Export(0, "vmlinux", False, ""),
    "pci_enable": Export(0, "vmlinux", True, ""),
    "dma_buf_get": Export(0, "vmlinux", False, "DMA_BUF"),
    "drm_open": Export(0, "drivers/gpu/drm/drm", False, ""),
}


def module(
    path: Path,
    wants: Sequence[str] = (),
    info: Sequence[str] = (),
    *,
    vermagic: str = KERNEL.vermagic,
    licence: str = "GPL",
    crcs: Mapping[str, int] | None = None,
    weak: Sequence[str] = (),
) -> Path:
    """A file as kbuild makes one, as far as it is read: .modinfo, a symbol table, __versions."""
    values = [f"license={licence}", f"vermagic={vermagic}", *info]
    text = "".join(f'"{each}\\0"' for each in values)
    source = [f'const char info[] __attribute__((section(".modinfo"))) = {text};']
    source += [f"extern int {each}(void);" for each in wants]
    source += [f"extern int {each}(void) __attribute__((weak));" for each in weak]
    calls = "".join(f" + {each}()" for each in [*wants, *weak])
    source.append(f"int init_module(void) {{ return 0{calls}; }}")
    rows = b"".join(struct.pack("<Q56s", crc, name.encode()) for name, crc in (crcs or {}).items())
    if rows:
        data = ", ".join(map(str, rows))
        source.append(f'const unsigned char versions[] __attribute__((section("__versions"))) = {{{data}}};')
    path.with_suffix(".c").write_text("\n".join(source) + "\n")
    subprocess.run(["gcc", "-c", "-fno-pic", "-o", path, path.with_suffix(".c")], check=True)
    return path


def refused(*modules: Path, own: Mapping[str, Export] | None = None) -> list[str]:
    return kmodule.check([kmodule.read(path) for path in modules], KERNEL, EXPORTS, own or {})


def test_what_a_module_says_of_itself_is_read(tmp_path: Path) -> None:
    found = kmodule.read(
        module(
            tmp_path / "my-card.ko",
            ["_printk"],
            ["version=1.2", "firmware=a.bin", "firmware=b.bin", "alias=pci:v1", "parmtype=depth:int",
             "parm=depth:how deep: a number", "parmtype=bare:bool"],
            weak=["maybe"],
        )
    )  # fmt: skip
    assert (found.name, found.wanted, found.crcs) == ("my_card", frozenset({"_printk"}), {})
    assert (found.one("version"), found.one("srcversion"), found.info["firmware"]) == ("1.2", "", ("a.bin", "b.bin"))
    assert found.parameters() == (
        kmodule.Parameter("bare", "bool", ""),
        kmodule.Parameter("depth", "int", "how deep: a number"),
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a kernel module"),
        (b"\x7fELF" + b"\0" * 60, "not a kernel module"),
        (Path("/bin/true").read_bytes(), "not a kernel module for x86-64"),
    ],
)
def test_what_is_no_module_is_an_error(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.ko").write_bytes(content)
    with pytest.raises(UserError, match=f"x.ko: {why}"):
        kmodule.read(tmp_path / "x.ko")


def test_an_object_without_modinfo_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text("int x;\n")
    subprocess.run(["gcc", "-c", "-o", tmp_path / "x.ko", tmp_path / "x.c"], check=True)
    with pytest.raises(UserError, match=r"no \.modinfo"):
        kmodule.read(tmp_path / "x.ko")


def test_a_module_that_fits_is_not_refused(tmp_path: Path) -> None:
    one = module(tmp_path / "one.ko", ["_printk", "pci_enable", "two_does"])
    two = module(tmp_path / "two.ko", ["dma_buf_get"], ["import_ns=DMA_BUF"])
    assert refused(one, two, own={"two_does": Export(0, "/tmp/two", True, "")}) == []


def test_each_reason_is_named(tmp_path: Path) -> None:
    assert refused(module(tmp_path / "a.ko", vermagic="6.12.1-other SMP mod_unload ")) == [
        "a: built for '6.12.1-other SMP mod_unload ', but this kernel loads '6.12.1 SMP mod_unload '"
    ]
    missing = [f"gone_{number:02}" for number in range(kmodule.SHOWN + 2)]
    (problem,) = refused(module(tmp_path / "b.ko", [*missing, "_printk"]))
    assert problem.startswith("b: no such symbol is exported by the kernel or a module beside it: gone_00, gone_01, ")
    assert problem.endswith("gone_19 and 2 more")
    assert refused(module(tmp_path / "c.ko", ["drm_open"])) == [
        'c: symbols of a module of the kernel\'s own; put "in-tree" beside it, or build that one in (=y): '
        "drm_open of drivers/gpu/drm/drm"
    ]
    assert refused(module(tmp_path / "d.ko", ["pci_enable"], licence="Proprietary")) == [
        "d: only for modules under the GPL, and its licence is 'Proprietary': pci_enable"
    ]
    assert refused(module(tmp_path / "e.ko", ["dma_buf_get"])) == [
        "e: namespaces of symbols that it does not import (MODULE_IMPORT_NS): DMA_BUF"
    ]
    assert refused(module(tmp_path / "f.ko", ["_printk"], crcs={"_printk": 7})) == [
        "f: symbols whose type is another one in this kernel (CRC): _printk"
    ]
    assert refused(module(tmp_path / "g.ko", ["_printk"], crcs={"_printk": 0})) == []


def test_what_a_module_needs_are_modules_beside_it(tmp_path: Path) -> None:
    modules = [
        kmodule.read(module(tmp_path / "a-b.ko", ["c_does", "_printk"])),
        kmodule.read(module(tmp_path / "c.ko")),
    ]
    own = {"c_does": Export(0, "some/where/c", False, ""), "own": Export(0, "some/where/a-b", False, "")}
    assert kmodule.needs(modules, own) == {"a_b": ("c",), "c": ()}


def listed(name: str, *depends: str, alias: str = "", soft: str = "") -> kmodule.Listed:
    return kmodule.Listed(name, f"extra/x/{name}.ko", depends, (alias,) * bool(alias), (soft,) * bool(soft))


def test_the_lists_are_as_depmod_writes_them() -> None:
    texts = kmodule.lists(
        [listed("top", "mid", "low", alias="pci:v1*"), listed("low", soft="pre: crc32"), listed("mid", "low")]
    )
    assert texts == {
        "modules.dep": "extra/x/low.ko:\nextra/x/mid.ko: extra/x/low.ko\n"
        "extra/x/top.ko: extra/x/mid.ko extra/x/low.ko\n",
        "modules.alias": "# Aliases extracted from modules themselves.\nalias pci:v1* top\n",
        "modules.softdep": "# Soft dependencies extracted from modules themselves.\nsoftdep low pre: crc32\n",
    }
    assert "modules.softdep" not in kmodule.lists([listed("one")])


def test_what_a_row_needs_is_loaded_from_its_end() -> None:
    """Whatever the order of names: each module comes before what it needs itself."""
    found = [listed("a", "b", "c"), listed("b", "d"), listed("c", "b", "d"), listed("d")]
    row = kmodule.lists(found)["modules.dep"].splitlines()[0].split(": ")[1].split()
    places = {path[8]: place for place, path in enumerate(row)}
    assert set(places) == set("bcd")
    assert all(places[each.name] < places[needed] for each in found[1:] for needed in each.depends)


def test_modules_that_cannot_be_listed_are_errors() -> None:
    with pytest.raises(UserError, match="modules need each other: a -> b -> a"):
        kmodule.lists([listed("a", "b"), listed("b", "a")])
    with pytest.raises(UserError, match=r"two modules are called a: extra/x/a\.ko and extra/y/a\.ko"):
        kmodule.lists([listed("a"), msgspec.structs.replace(listed("a"), path="extra/y/a.ko")])
