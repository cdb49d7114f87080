# SPDX-License-Identifier: Apache-2.0
"""Kernel modules, checked before any boot and laid out for an initrd or a disk: those out of the tree, which are built
here against a kernel-devel, and those of the kernel's own source, which its build made.

The result is a folder as an overlay has it: lib/modules/RELEASE/extra/NAME/*.ko, with what a loader reads in
lib/modules/RELEASE, and modules.json (`kmodule.Set`) beside the modules, which says what they are and for which kernel.
"""

import difflib
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import settings
from minguest.bundle import kmodule
from minguest.kernel import devel, folders, kbuild, signing, source, symvers
from minguest.model import Devel
from minguest.paths import Store
from minguest.util import archive, files, run, scratch
from minguest.util.errors import ToolError, UserError

FORMAT = 1
FACTS = "modules.json"
# The name of the kernel's own modules, as a guest's file has it.
IN_TREE = "in-tree"
# A folder of the initrd, and a word on a command line.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAKEFILES = ("Kbuild", "Makefile")
# kbuild takes modules from these lists alone.
LISTS = re.compile(r"^[ \t]*obj-(m|y|\$[({]\w+[)}])[ \t]*[:+]?=", re.MULTILINE)
TARBALLS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar.zst", ".tzst")
# What a build in the source left there: kbuild would take it for up to date.
LEFT = (".git", "*.ko", "*.mod", "*.mod.c", "*.mod.o", ".*.cmd", ".tmp_versions", "modules.order", "Module.symvers")


def name_of(path: Path) -> str:
    """The name that a source's modules get if the user gives none: that of the folder or archive, without a version."""
    base = path.name
    for ending in (*TARBALLS, ".deb"):
        base = base.removesuffix(ending)
    return re.split(r"[_-]\d", base)[0]


def check(
    path: Path | None, name: str | None, make: str | None, packages: Collection[str] = ()
) -> tuple[Path, str, list[str]]:
    """The source, the name and make's variables that a user gave; UserError for what cannot be, before any work.

    `packages` are the names of sources.toml that could be given in place of a path."""
    if path is None:
        raise UserError("modules: src= is not given", "src=DIR, src=TARBALL or src=PACKAGE.deb, with a module's source")
    if not path.is_dir() and not path.is_file():
        near = difflib.get_close_matches(path.name, packages, 1)
        raise UserError(
            f"src={path}: no such file or folder", f"nearest in sources.toml: src={near[0]}" if near else ""
        )
    if path.is_file() and not path.name.endswith((*TARBALLS, ".deb")):
        raise UserError(f"src={path}: neither a folder, a tarball nor a .deb", f"known: {', '.join(TARBALLS)}, .deb")
    return path, *check_words(path.name, name, make)


def check_words(source_name: str, name: str | None, make: str | None) -> tuple[str, list[str]]:
    """The name and make's variables that a user gave for a source of this name; UserError for what cannot be."""
    chosen = name_of(Path(source_name)) if name is None else name
    if not NAME.fullmatch(chosen):
        raise UserError(f"name={chosen}: becomes a folder's name", "use A-Z, a-z, 0-9, '.', '_' and '-'")
    if chosen == IN_TREE:
        raise UserError(f"name={chosen}: is the name of the kernel's own modules", "give these another name")
    try:
        words = shlex.split(make or "")
    except ValueError as error:
        raise UserError(f"make={make}: {error}") from None
    if wrong := [each for each in words if not re.fullmatch(r"\w+=.*", each, re.DOTALL)]:
        raise UserError(f"make={make}: {wrong[0]!r} is not NAME=VALUE", "for example make='DEBUG=1 ARCH_LIST=\"a b\"'")
    return chosen, words


def build(
    path: Path,
    name: str,
    packed: Path,
    target: Path,
    *,
    store: Store,
    make: Sequence[str] = (),
    key: Path | None = None,
    beside_in_tree: bool = False,
    log: Path,
    say: Callable[[str], None],
) -> kmodule.Set:
    """Build the modules of a source against the kernel-devel `packed`, and write them to `target` as an overlay.

    The source is copied first. `make`: more variables; `{devel}` in one is the folder of kernel-devel. `key` signs.
    `beside_in_tree`: the guest has the kernel's own modules too, which these may need. UserError for a source that is
    none, and for modules that this kernel would refuse; ToolError if make fails.
    """
    with folders.slot(store, say) as (work, held):
        tree, copy = work / "kernel-devel", work / "src"
        for folder in (tree, copy):
            folder.mkdir()
        archive.extract_tar(packed, tree)
        _copy(path, copy)
        digest = source.content(copy if path.is_dir() else path)
        place = find(copy, path)
        _make(tree, place, work, store, make, held, log)
        own_list = place / "Module.symvers"
        own = symvers.of_modules(symvers.read(own_list)) if own_list.exists() else {}
        if beside_in_tree:
            own = symvers.of_modules(symvers.read(tree / "Module.symvers")) | own
        return _lay_out(_built(copy, path), own, tree, name, digest, key, target, log)


def in_tree(built: Path, packed: Path, target: Path, *, key: Path | None = None, log: Path) -> kmodule.Set:
    """Write the kernel's own modules to `target` as an overlay: `built` is devel.IN_TREE, `packed` the kernel-devel of
    the same build. `key` signs. UserError for modules that this kernel would refuse."""
    with scratch.folder("in-tree") as work:
        tree, copy = work / "kernel-devel", work / "modules"
        for folder, packing in ((tree, packed), (copy, built)):
            folder.mkdir()
            archive.extract_tar(packing, folder)
        own = symvers.of_modules(symvers.read(tree / "Module.symvers"))
        return _lay_out(_built(copy, built), own, tree, IN_TREE, files.sha256(built), key, target, log)


def is_of(target: Path, built: Path, kernel: Devel | None, *, signed: bool) -> bool:
    """Whether `target` is what `in_tree` makes of `built`, whole."""
    try:
        made = load(target, kernel)
    except UserError:
        return False
    same = (made.format, made.source) == (FORMAT, files.sha256(built))
    return same and all(each.signed == signed for each in made.modules)


def _copy(path: Path, target: Path) -> None:
    """A source in a folder of ours; of a .deb, the source tree or tarball that it brings."""
    if path.is_dir():
        shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT))
        return
    if not path.name.endswith(".deb"):
        archive.extract_tar(path, target)
        return
    unpacked = target.with_name("deb")
    unpacked.mkdir()
    archive.extract_deb(path, unpacked)
    inner = of_package(unpacked, path)
    if inner.is_dir():
        shutil.copytree(inner, target, symlinks=True, dirs_exist_ok=True)
    else:
        archive.extract_tar(inner, target)


def of_package(unpacked: Path, deb: Path) -> Path:
    """The one tarball or source tree below usr/src of an unpacked Debian package; UserError if there is not one."""
    found = sorted(each for each in unpacked.rglob("*") if each.parent.name == "src" and not each.is_symlink())
    found = [each for each in found if each.is_dir() or each.name.endswith(TARBALLS)]
    if len(found) != 1:
        there = ", ".join(each.name for each in found) or "nothing"
        raise UserError(
            f"{deb}: a package of a module's source has one tarball or folder in /usr/src, and this one has {there}",
            "unpack it with dpkg-deb -x, and name the folder that has the module's Makefile as src=",
        )
    return found[0]


def find(folder: Path, path: Path) -> Path:
    """The folder of a source with a Makefile or Kbuild that kbuild can take modules from; UserError if there is not
    one. It is searched at the top and one level below; folders that hold but one folder do not count."""
    while not _lists(folder) and len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    if _lists(folder):
        return folder
    found = sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink() and _lists(each))
    if len(found) == 1:
        return found[0]
    count = f"several folders have a Makefile or Kbuild with obj-m: {', '.join(each.name for each in found)}"
    raise UserError(
        f"{path}: at the top and one level below, "
        + (count if found else "no folder has a Makefile or Kbuild with obj-m"),
        "name the folder that has it as src=; kbuild needs a line such as `obj-m := NAME.o`",
    )


def _lists(folder: Path) -> bool:
    # NVIDIA's Kbuild includes the files that have its obj-m. A file of that name is for kbuild in any case.
    return (folder / "Kbuild").is_file() or any(
        LISTS.search(file.read_text(errors="replace")) for name in MAKEFILES if (file := folder / name).is_file()
    )


def _make(tree: Path, place: Path, work: Path, store: Store, variables: Sequence[str], held: int, log: Path) -> None:
    # __FILE__ of a module has the path of its source, which depends on the machine.
    flags = f"-fmacro-prefix-map={place}/="
    argv = [
        "make",
        "-C", str(tree),
        f"M={place}",
        f"-j{settings.jobs()}",
        "ARCH=x86",
        f"KCFLAGS={flags}",
        # What is not exported is said by our own check, of all modules and with its reason.
        "KBUILD_MODPOST_WARN=1",
        *(f"{name}={value}" for name, value in (kbuild.REPRODUCIBLE | kbuild.HIDDEN_TOOLS).items()),
        *kbuild.through_ccache(),
        *(each.replace("{devel}", str(tree)) for each in variables),
        "modules",
    ]  # fmt: skip
    try:
        run.run(argv, env=kbuild.make_environment(store, work), log=log, bare=True, pass_fds=(held,))
    except ToolError as error:
        raise ToolError(f"the modules were not built: {error.message}", error.remedy) from error


def _built(copy: Path, path: Path) -> list[Path]:
    """The modules that make left; UserError if there is none, or two have one name."""
    found = sorted(copy.rglob("*.ko"), key=lambda each: each.name)
    if not found:
        raise UserError(f"{path}: make built no module", "does its obj-m name one for this config?")
    names = [each.name for each in found]
    if twice := {each for each in names if names.count(each) > 1}:
        raise UserError(
            f"{path}: two modules are called {', '.join(sorted(twice))}", "name one of their folders as src="
        )
    return found


def _lay_out(
    built: Sequence[Path],
    own: Mapping[str, symvers.Export],
    tree: Path,
    name: str,
    digest: str,
    key: Path | None,
    target: Path,
    log: Path,
) -> kmodule.Set:
    """`own`: what these modules export, and those beside them; `tree`: the kernel-devel, unpacked."""
    kernel = msgspec.json.decode((tree / devel.FACTS).read_bytes(), type=Devel)
    with files.replacing_tree(target) as new:
        folder = new / "lib/modules" / kernel.release / "extra" / name
        folder.mkdir(parents=True)
        kept = []
        for path in built:
            # Debug information is most of a module, and no kernel reads it. Before the signature, which is over all.
            run.run(["strip", "-g", "-o", folder / path.name, path], bare=True)
            kept.append(folder / path.name)
        read = [kmodule.read(path) for path in kept]
        if problems := kmodule.check(read, kernel, symvers.read(tree / "Module.symvers"), own):
            raise UserError(
                f"linux {kernel.release} would refuse these modules:\n" + "\n".join(f"  {each}" for each in problems),
                f"build the kernel with what exports these symbols, or other modules; make's output: {log}",
            )
        if key:
            for path in kept:
                signing.sign(path, key, tree)
        depends = kmodule.needs(read, own)
        modules = tuple(_describe(path, each, depends[each.name]) for path, each in zip(kept, read, strict=True))
        made = kmodule.Set(FORMAT, name, digest, kernel, modules)
        (folder / FACTS).write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
        # What is beside them, `combine` knows.
        names = {each.name for each in modules}
        alone = [
            msgspec.structs.replace(each, depends=tuple(name for name in each.depends if name in names))
            for each in modules
        ]
        _write_lists(new, [msgspec.structs.replace(made, modules=tuple(alone))])
    return made


def _describe(path: Path, module: kmodule.Kmodule, depends: tuple[str, ...]) -> kmodule.Module:
    return kmodule.Module(
        module.name,
        path.name,
        module.one("version"),
        module.one("license"),
        files.sha256(path),
        path.stat().st_size,
        module.one("vermagic"),
        depends,
        module.info.get("firmware", ()),
        module.info.get("alias", ()),
        module.info.get("softdep", ()),
        module.parameters(),
        signing.signed(path),
    )


def _write_lists(folder: Path, sets: Sequence[kmodule.Set]) -> None:
    listed = [
        kmodule.Listed(each.name, f"extra/{of.name}/{each.file}", each.depends, each.aliases, each.softdeps)
        for of in sets
        for each in of.modules
    ]
    for name, text in kmodule.lists(listed).items():
        (folder / "lib/modules" / sets[0].kernel.release / name).write_text(text, encoding="utf-8")


def load(folder: Path, kernel: Devel | None) -> kmodule.Set:
    """What `build` wrote to `folder`; UserError if it is damaged, or was built for another kernel than `kernel`."""
    again = "doit build" if folder.name == IN_TREE else f"doit modules src=… name={folder.name}"
    found = list(folder.glob(f"lib/modules/*/extra/{folder.name}/{FACTS}"))
    if len(found) != 1:
        raise UserError(f"modules {folder.name!r}: not built for this guest and series", again)
    try:
        made = msgspec.json.decode(found[0].read_bytes(), type=kmodule.Set)
    except ValueError as error:
        raise UserError(f"{found[0]}: damaged: {error}", again) from error
    if made.kernel != kernel:
        raise UserError(
            f"modules {made.name!r} were built for another kernel: {_difference(made.kernel, kernel)}", again
        )
    for each in made.modules:
        path = found[0].with_name(each.file)
        if not path.is_file() or files.sha256(path) != each.sha256:
            raise UserError(f"{path}: is not the module that was built", again)
    return made


def _difference(built: Devel, kernel: Devel | None) -> str:
    """The first field that tells two kernels apart."""
    if kernel is None:
        return f"linux {built.release}, and this one has no modules"
    for field, text in (
        ("release", "linux"),
        ("config", "a config with SHA-256"),
        ("symvers", "a Module.symvers with SHA-256"),
        ("compiler", "compiled by"),
        ("build_id", "build ID"),
        ("vermagic", "vermagic"),
    ):
        theirs, ours = getattr(built, field), getattr(kernel, field)
        if theirs != ours:
            return f"{text} {theirs[:60]}, and this kernel's is {ours[:60]}"
    return f"kernel-devel of format {built.format}, and now it is {kernel.format}"


def combine(folders: Sequence[Path], kernel: Devel | None, target: Path) -> list[kmodule.Set]:
    """One overlay in the empty folder `target` from what `build` wrote to several: their files, and lists of them all.

    UserError as `load`, and for two modules of one name.
    """
    sets = [load(folder, kernel) for folder in folders]
    for folder, each in zip(folders, sets, strict=True):
        extra = Path("lib/modules", each.kernel.release, "extra", each.name)
        shutil.copytree(folder / extra, target / extra)
    if sets:
        _write_lists(target, sets)
    return sets
