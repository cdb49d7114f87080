# SPDX-License-Identifier: Apache-2.0
"""A kernel module as a file: what it says of itself, whether a kernel can load it, and the lists that a loader reads.

Formats: .modinfo and __versions as include/linux/module.h and scripts/mod/modpost.c write them; the rules of loading
from kernel/module/main.c; modules.dep and its companions as kmod's depmod(8) and modules.dep(5) describe them.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest.kernel import symvers
from minguest.model import Devel
from minguest.util.errors import UserError

# struct modversion_info of 64-bit kernels: a CRC in 8 bytes, a name in 56.
VERSION = struct.Struct("<Q56s")
# license_is_gpl_compatible() in include/linux/license.h.
GPL = ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
# A symbol that the linker makes, which no kernel looks for.
LINKERS = "_GLOBAL_OFFSET_TABLE_"
# Most symbols that an error lists.
SHOWN = 20


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a module."""

    name: str
    type: str
    text: str


class Module(msgspec.Struct, frozen=True):
    """One module, from its .modinfo; `size` in bytes."""

    name: str
    file: str
    """Beside modules.json."""
    version: str
    licence: str
    sha256: str
    size: int
    vermagic: str
    depends: tuple[str, ...]
    """Modules that it needs: of this set, or of the kernel's own."""
    firmware: tuple[str, ...]
    """Files below /lib/firmware that it may ask for."""
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    signed: bool


class Set(msgspec.Struct, frozen=True):
    """modules.json: the modules of one source."""

    format: int
    name: str
    source: str
    """SHA-256 over the names, kinds and contents of the source's files; of an archive, over its bytes."""
    kernel: Devel
    """Which kernel they were built for."""
    modules: tuple[Module, ...]


class Kmodule(msgspec.Struct, frozen=True):
    """A module, as its .modinfo and its symbol table have it."""

    name: str
    """With `_`, as the kernel spells it, also where the file has `-`."""
    info: dict[str, tuple[str, ...]]
    """.modinfo: the values by key."""
    wanted: frozenset[str]
    """Symbols that must be found when it is loaded."""
    crcs: dict[str, int]
    """With CONFIG_MODVERSIONS: the types of these symbols."""

    def one(self, key: str) -> str:
        """A value that a module has once; empty if it has none."""
        return self.info.get(key, ("",))[0]

    def parameters(self) -> tuple[Parameter, ...]:
        """Its parameters, by name."""
        types = dict(each.partition(":")[::2] for each in self.info.get("parmtype", ()))
        texts = dict(each.partition(":")[::2] for each in self.info.get("parm", ()))
        return tuple(Parameter(name, types.get(name, ""), texts.get(name, "")) for name in sorted({*types, *texts}))


def module_name(path: str) -> str:
    """The name of the module in a file, or at a path of Module.symvers."""
    return path.rsplit("/", 1)[-1].removesuffix(".ko").replace("-", "_")


def read(path: Path) -> Kmodule:
    """Read a module's file; UserError if it is none for x86-64."""
    from elftools.common.exceptions import ELFError, ELFParseError  # noqa: PLC0415 - slow
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415
    from elftools.elf.sections import SymbolTableSection  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            if elf.header["e_type"] != "ET_REL" or elf.header["e_machine"] != "EM_X86_64":
                raise UserError(f"{path}: not a kernel module for x86-64")
            info, table = elf.get_section_by_name(".modinfo"), elf.get_section_by_name(".symtab")
            versions = elf.get_section_by_name("__versions")
            if info is None or not isinstance(table, SymbolTableSection):
                raise UserError(f"{path}: not a kernel module: no .modinfo, or no symbols")
            wanted = frozenset(
                symbol.name
                for symbol in table.iter_symbols()
                if symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
            )
            return Kmodule(
                module_name(path.name),
                _info(info.data()),
                wanted - {LINKERS, ""},
                _crcs(versions.data() if versions is not None else b""),
            )
    except (ELFError, ELFParseError, struct.error) as error:
        raise UserError(f"{path}: not a kernel module: {error}") from error


def _info(data: bytes) -> dict[str, tuple[str, ...]]:
    """`key=value` strings, each with a zero byte, and more zero bytes between them."""
    found: dict[str, list[str]] = {}
    for each in data.split(b"\0"):
        key, equals, value = each.decode(errors="replace").partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return {key: tuple(values) for key, values in found.items()}


def _crcs(data: bytes) -> dict[str, int]:
    return {name.split(b"\0")[0].decode(): crc for crc, name in VERSION.iter_unpack(data)}


def check(
    modules: Sequence[Kmodule], kernel: Devel, exports: Mapping[str, symvers.Export], own: Mapping[str, symvers.Export]
) -> list[str]:
    """Why `kernel` would refuse to load one of these modules; empty if it would not.

    `exports` is the kernel's Module.symvers, `own` that of the modules themselves and of those beside them, which win.
    """
    names = {each.name for each in modules} | {module_name(each.module) for each in own.values()}
    problems = []
    for each in modules:
        if each.one("vermagic") != kernel.vermagic:
            problems.append(
                f"{each.name}: built for {each.one('vermagic')!r}, but this kernel loads {kernel.vermagic!r}"
            )
        missing, elsewhere, imports, licence, types = [], [], set(), [], []
        for symbol in sorted(each.wanted):
            export = own.get(symbol) or exports.get(symbol)
            if export is None:
                missing.append(symbol)
                continue
            if export.module != symvers.VMLINUX and module_name(export.module) not in names:
                elsewhere.append(f"{symbol} of {export.module}")
            if export.namespace and export.namespace not in each.info.get("import_ns", ()):
                imports.add(export.namespace)
            if export.gpl and each.one("license") not in GPL:
                licence.append(symbol)
            if each.crcs and each.crcs.get(symbol, export.crc) != export.crc:
                types.append(symbol)
        for found, text in (
            (missing, "no such symbol is exported by the kernel or a module beside it"),
            (elsewhere, 'symbols of a module of the kernel\'s own; put "in-tree" beside it, or build that one in (=y)'),
            (licence, f"only for modules under the GPL, and its licence is {each.one('license')!r}"),
            (types, "symbols whose type is another one in this kernel (CRC)"),
            (sorted(imports), "namespaces of symbols that it does not import (MODULE_IMPORT_NS)"),
        ):
            if found:
                more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                problems.append(f"{each.name}: {text}: {', '.join(found[:SHOWN])}{more}")
    return problems


def needs(modules: Iterable[Kmodule], own: Mapping[str, symvers.Export]) -> dict[str, tuple[str, ...]]:
    """Which of the modules each one needs, directly."""
    return {
        each.name: tuple(sorted({module_name(own[symbol].module) for symbol in each.wanted & own.keys()} - {each.name}))
        for each in modules
    }


class Listed(msgspec.Struct, frozen=True):
    """What the lists say of one module."""

    name: str
    path: str
    """Relative to /lib/modules/RELEASE."""
    depends: tuple[str, ...]
    aliases: tuple[str, ...]
    softdeps: tuple[str, ...]


def lists(modules: Iterable[Listed]) -> dict[str, str]:
    """modules.dep, modules.alias and, where a module has any, modules.softdep: their texts by name.

    UserError for two modules of one name, and for modules that need each other.
    """
    found: dict[str, Listed] = {}
    for each in modules:
        if each.name in found:
            raise UserError(f"two modules are called {each.name}: {found[each.name].path} and {each.path}")
        found[each.name] = each
    order = [found[name] for name in sorted(found)]
    rows = ["".join(f" {found[name].path}" for name in _all_needs(each.name, found)) for each in order]
    texts = {
        "modules.dep": "".join(f"{each.path}:{row}\n" for each, row in zip(order, rows, strict=True)),
        "modules.alias": "# Aliases extracted from modules themselves.\n"
        + "".join(f"alias {alias} {each.name}\n" for each in order for alias in each.aliases),
    }
    if any(each.softdeps for each in order):
        texts["modules.softdep"] = "# Soft dependencies extracted from modules themselves.\n" + "".join(
            f"softdep {each.name} {value}\n" for each in order for value in each.softdeps
        )
    return texts


def _all_needs(name: str, found: Mapping[str, Listed]) -> list[str]:
    """Everything that a module needs, each before what it needs itself: the loader begins at the end of the row."""
    order: list[str] = []

    def visit(each: str, above: tuple[str, ...]) -> None:
        if each not in found:
            raise UserError(
                f"module {above[-1]} needs {each}, which is not beside it",
                'both in the initrd, or both on the disk of drivers: "in-tree" has the kernel\'s own',
            )
        if each in above:
            raise UserError(f"modules need each other: {' -> '.join((*above, each))}")
        if each not in order:
            for needed in found[each].depends:
                visit(needed, (*above, each))
            order.append(each)

    visit(name, ())
    return order[-2::-1]
