# SPDX-License-Identifier: Apache-2.0
"""kernel-devel: what modules out of the tree are built against, as one archive that belongs to one kernel.

`tar xf kernel-devel.tar.zst; make -C kernel-devel-RELEASE M=$PWD modules`, in any folder, with the compiler that built
the kernel. Which files kbuild needs for that: the kernel's scripts/package/install-extmod-build (6.12) and builddeb
(4.12), whose lists agree but for a few files that no module uses. The list is our own because 4.12 has no such script,
and because the script leaves out .config, which NVIDIA's Makefile reads.

No key is in it: a build's certs/ is not picked, and the kernel gets the certificate of a key, never the key.
"""

import io
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from minguest.kernel import linked, symvers
from minguest.model import Devel
from minguest.util import files, run
from minguest.util.errors import ToolError

# It rises when other files are picked or packed differently: it is part of the key by which an archive is kept.
FORMAT = 1
ARCHIVE = "kernel-devel.tar.zst"
FACTS = "kernel-devel.json"
# The kernel's own modules, where its config has any (=m).
IN_TREE = "in-tree-modules.tar"
# 3 s of CPU time for less than 9 MB: level 19 takes ten times that for 4 % less. The window, 32 MiB, is four times the
# level's own: headers are like headers far from them. tar and zstd unpack up to 128 MiB without an option.
LEVEL = ("-12", "--zstd=wlog=25")
# 1980: make takes the beginning of time for a file that does not exist.
TIME = 315532800
# Below scripts/: what configures, packages and checks a kernel; and programs that only make a part of it.
NOT_SCRIPTS = ("atomic", "checkpatch.pl", "coccinelle", "dtc", "dummy-tools", "extract_xc3028.pl", "gdb", "get_abi.pl",
               "get_maintainer.pl", "kconfig", "kernel-doc", "package", "spelling.txt", "sphinx-pre-install", "tracing",
               "asn1_compiler", "extract-cert", "insert-sys-cert", "kallsyms", "sortextable", "sorttable",
               "unifdef")  # fmt: skip
# Below include/dt-bindings/: numbers of device trees, which x86 has none of; no other header includes one of these.
NOT_BINDINGS = ("clock", "interconnect", "memory", "pinctrl", "power", "reset")
# Folders of headers that a build makes; the source tree may have them too, after a build in it.
GENERATED = ("config", "generated")
ELF = b"\x7fELF"


def pick(tree: Path, out: Path, config: Mapping[str, str]) -> dict[str, Path]:
    """The files by name in the archive, from the source `tree` and from `out`, in which the kernel and its modules
    were built. A file of `out` wins."""
    found = {name: tree / name for name in ("Makefile", "Kbuild") if (tree / name).is_file()}
    found |= {f"arch/x86/{path.name}": path for path in (tree / "arch/x86").glob("Makefile*")}
    arch = [path.relative_to(tree).as_posix() for path in (tree / "arch/x86").rglob("include") if path.is_dir()]
    for folder in arch:
        found |= _below(tree, folder, GENERATED)
    found |= _below(tree, "include", (*GENERATED, "dt-bindings"))
    found |= _below(tree, "include/dt-bindings", NOT_BINDINGS)
    found |= _below(tree, "scripts", NOT_SCRIPTS)
    for folder in ("arch/x86/include/generated", "include/generated"):
        found |= _below(out, folder)
    found |= _below(out, "scripts", NOT_SCRIPTS)
    single = [".config", "Module.symvers", "include/config/auto.conf", "include/config/kernel.release"]
    if "y" in (config.get("OBJTOOL"), config.get("STACK_VALIDATION")):
        single.append("tools/objtool/objtool")
    for name in single:
        if not (out / name).is_file() or not (out / name).stat().st_size:
            raise ToolError(f"the kernel's build did not make {name}", "run the same command again")
        found[name] = out / name
    return {name: path for name, path in found.items() if not _made_on_the_way(path)}


def _below(root: Path, folder: str, but: tuple[str, ...] = ()) -> dict[str, Path]:
    """Files and links below a folder of `root`, without the folders and files `but` at its top."""
    start = root / folder
    if not start.is_dir():
        return {}
    return {
        path.relative_to(root).as_posix(): path
        for path in start.rglob("*")
        if path.relative_to(start).parts[0] not in but and (path.is_symlink() or path.is_file())
    }


def _made_on_the_way(path: Path) -> bool:
    name = path.name
    return name in ("mk_elfconfig", ".gitignore") or name.endswith((".o", ".a", ".s", ".cmd", ".orig", ".rej", ".pem"))


def pack(tree: Path, out: Path, config: Mapping[str, str], target: Path, log: Path) -> Devel:
    """Write ARCHIVE and FACTS into the folder `target`; ToolError if the build is not complete.

    The same input gives the same bytes: sorted, one time, no owner; programs without debug information, whose paths
    would differ.
    """
    facts = describe(out, config)
    found = pick(tree, out, config)
    text = msgspec.json.format(msgspec.json.encode(facts)) + b"\n"
    plain = out / "kernel-devel.tar"
    top = f"kernel-devel-{facts.release}"
    with tarfile.open(plain, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content, mode in _members(found, out, log):
            member = tarfile.TarInfo(f"{top}/{name}")
            member.mtime, member.mode = TIME, mode
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo(f"{top}/{FACTS}")
        member.mtime, member.mode, member.size = TIME, 0o644, len(text)
        tar.addfile(member, io.BytesIO(text))
    run.run(["zstd", "-q", *LEVEL, "-T1", "-o", target / ARCHIVE, plain], bare=True)
    plain.unlink()
    (target / FACTS).write_bytes(text)
    return facts


def has_modules(config: Mapping[str, str]) -> bool:
    """Whether a config builds parts of the kernel's own source as modules."""
    return "m" in config.values()


def pack_modules(out: Path, target: Path) -> None:
    """Write IN_TREE into the folder `target`: the modules that the build in `out` made, without debug information and
    not signed. The same input gives the same bytes. ToolError if there is none."""
    found = sorted(out.rglob("*.ko"))
    if not found:
        raise ToolError("the kernel's build made no module, and its config has some (=m)", "run the same command again")
    stripped = out / "stripped"
    with tarfile.open(target / IN_TREE, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in found:
            run.run(["strip", "-g", "-o", stripped, path], bare=True)
            member = tarfile.TarInfo(path.relative_to(out).as_posix())
            member.mtime, member.mode, member.size = TIME, 0o644, stripped.stat().st_size
            with stripped.open("rb") as content:
                tar.addfile(member, content)


def _members(found: Mapping[str, Path], out: Path, log: Path) -> Iterator[tuple[str, bytes | str, int]]:
    """Name, content (of a link: where it points to) and mode of each file, in order."""
    for name in sorted(found):
        path = found[name]
        if path.is_symlink():
            yield name, str(path.readlink()), 0o777
            continue
        mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
        content = path.read_bytes()
        if content.startswith(ELF) and path.is_relative_to(out):
            if not linked.whole(path):
                raise ToolError(f"{path}: cut short", "run the same command again: it builds from scratch")
            stripped = out / "stripped"
            # The build ID is a hash over debug information too.
            run.run(["strip", "-R", ".note.gnu.build-id", "-o", stripped, path], log=log, bare=True)
            content = stripped.read_bytes()
        yield name, content, mode


def describe(out: Path, config: Mapping[str, str]) -> Devel:
    """The facts of a kernel that was built in `out` with its modules; ToolError if its parts do not agree."""
    release = (out / "include/config/kernel.release").read_text(encoding="utf-8").strip()
    table = symvers.read(out / "Module.symvers")
    _check_exports(table, out / "System.map")
    _, compiler = run.run(["gcc", "--version"], bare=True)
    return Devel(
        FORMAT,
        release,
        _vermagic(out / "vmlinux", release),
        _build_id(out / "vmlinux"),
        files.sha256(out / "Module.symvers"),
        files.sha256(out / ".config"),
        compiler.splitlines()[0],
    )


def _check_exports(table: Mapping[str, symvers.Export], system_map: Path) -> None:
    """Module.symvers has what vmlinux exports, no less and no more."""
    lines = map(str.split, system_map.read_text(encoding="utf-8").splitlines())
    names = [fields[2] for fields in lines if len(fields) > 2]
    exported = {name.removeprefix("__ksymtab_") for name in names if name.startswith("__ksymtab_")}
    listed = {name for name, each in table.items() if each.module == "vmlinux"}
    if exported != listed or not listed:
        some = ", ".join(sorted(exported ^ listed)[:3]) or "nothing is exported"
        raise ToolError(f"Module.symvers does not belong to vmlinux: {some}", "run the same command again")


def _vermagic(vmlinux: Path, release: str) -> str:
    """The string that kernel/module.c compares: the release and words for options (include/linux/vermagic.h)."""
    words = rb"(?:SMP|preempt|preempt_rt|mod_unload|modversions|RANDSTRUCT_[0-9a-f]+) "
    found = set(re.findall(rb"\0(" + re.escape(release.encode()) + rb" (?:" + words + rb")*)\0", vmlinux.read_bytes()))
    if len(found) != 1:
        raise ToolError(f"{vmlinux}: {len(found)} strings look like its vermagic", "is CONFIG_MODULES on?")
    (vermagic,) = found
    return str(vermagic.decode())


def _build_id(vmlinux: Path) -> str:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - slow
    from elftools.elf.sections import NoteSection  # noqa: PLC0415

    with vmlinux.open("rb") as file:
        for section in ELFFile(file).iter_sections():
            if isinstance(section, NoteSection):
                for note in section.iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
    raise ToolError(f"{vmlinux}: has no build ID", "the kernel is linked with --build-id")
