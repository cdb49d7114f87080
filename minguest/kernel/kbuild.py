# SPDX-License-Identifier: Apache-2.0
"""The kernel: its config from fragments, verified before anything is compiled; its build; its inspection.

A kernel is built from scratch, in a new O= folder that is never used again: for kbuild, whatever is newer than its
source is complete, so a folder cannot be trusted after make was killed in it or the tree changed. It is still fast: a
kernel is kept by the hash of all its inputs, and ccache keeps its objects by theirs. Only kernels that differ in an
option or two, and that no bundle gets, begin with the objects of another one (`folders.Objects`).
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import settings
from minguest.kernel import binary, contract, devel, expected, kconfig, linked, signing, source
from minguest.kernel.folders import Objects, slot
from minguest.model import Launch
from minguest.paths import Store
from minguest.util import files, run
from minguest.util.errors import ToolError, UserError
from minguest.util.progress import Counted

# What would make two builds of the same input differ. Any fixed date will do: the kernel prints it in its banner.
REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "minguest",
    "KBUILD_BUILD_HOST": "minguest",
    "KBUILD_BUILD_VERSION": "1",
    # Set, but empty: then setlocalversion adds no "+" for a tree in a git checkout.
    "LOCALVERSION": "",
}

# Tools whose version 6.12's Kconfig writes into the config, and so into the image; nothing here is built with them.
# With names that no machine has, it makes no difference whether the builder has them.
HIDDEN_TOOLS = {"RUSTC": "no-rustc", "BINDGEN": "no-bindgen", "PAHOLE": "no-pahole"}

# For size, gcc writes `rep stosb` where a block is cleared or copied. To software emulation that is one store a byte,
# and a slow one where init memory is freed, because it had code: 0.1 to 0.3 s of a boot. Calls of memset() and memcpy()
# are 4 KB more in bzImage, and what they do fits the CPU.
STRINGS = "-mstringop-strategy=libcall"

# Where make leaves the image in its O= folder.
IMAGE = Path("arch/x86/boot/bzImage")
# The files of a kernel that are kept: its objects take a hundred times the space.
KEPT = ("bzImage", "System.map", "kernel.config", "kernel.json")
SUMS = "sums.json"
# The files of a kernel's kernel-devel, which is kept in a folder of its own: most variants need none. The last one says
# which kernel it was built with.
KERNEL_SUMS = "kernel-sums.json"
DEVEL = (devel.ARCHIVE, devel.FACTS, KERNEL_SUMS)
# And of one whose config has modules of the kernel's own.
WITH_MODULES = (*DEVEL, devel.IN_TREE)


class Configured(msgspec.Struct, frozen=True):
    """The result of verifying a config: config.json beside kernel.config."""

    requested: int
    """How many options the fragments and the guest request."""
    problems: tuple[str, ...]
    """What verification found; empty without contract=ignore."""


class Inspected(msgspec.Struct, frozen=True):
    """The facts of the built image: kernel.json beside bzImage."""

    vmlinux: binary.Elf
    bzimage: binary.BzImage


def make_argv(tree: Path, out: Path, jobs: int, *targets: str) -> list[str]:
    """The make command for a build of `tree` in the folder `out`."""
    # 4.12 uses an absolute path to its tree if O= is elsewhere; __FILE__ would carry it into the image.
    prefix_map = f"-fmacro-prefix-map={tree}/="
    return [
        "make",
        "-C", str(tree),
        f"O={out}",
        f"-j{jobs}",
        "ARCH=x86",
        f"KCFLAGS={prefix_map} {STRINGS}",
        f"KAFLAGS={prefix_map}",
        *(f"{name}={value}" for name, value in (REPRODUCIBLE | HIDDEN_TOOLS).items()),
        *targets,
    ]  # fmt: skip


def make_environment(store: Store, out: Path) -> dict[str, str]:
    """make's environment in addition to run.bare_environment(): temporary files in `out`, and ccache's settings.

    ccache identifies a compiler by its content, and reads each header: it does not rely on times. What the user has set
    for it (settings.PASSED) wins: a larger cache, one that several machines share.
    """
    return {
        "TMPDIR": str(out),
        # ccache ends where it finds no home, as of a user without a name, though it uses nothing there.
        "HOME": str(out),
        "CCACHE_DIR": str(store.objects),
        "CCACHE_CONFIGPATH": "/dev/null",
        "CCACHE_COMPILERCHECK": "content",
        "CCACHE_NOINODECACHE": "1",
        "CCACHE_MAXSIZE": "4G",
        **settings.compiler_cache(),
    }


def through_ccache() -> list[str]:
    """Arguments for make that let ccache keep the objects, if it is installed; the result is the same without it."""
    return ["CC=ccache gcc", "HOSTCC=ccache gcc"] if shutil.which("ccache") else []


def configure(
    tree: source.Prepared,
    series: str,
    fragments: Sequence[Path],
    overrides: Mapping[str, str | int | bool],
    rules: Sequence[contract.Rule],
    launch: Launch,
    target: Path,
    *,
    root: Path,
    guest_file: str,
    store: Store,
    ignore: bool,
    log: Path,
    say: Callable[[str], None],
) -> Configured:
    """Write `target`/kernel.config from the fragments; UserError before anything is compiled.

    The kernel's own tools merge and resolve. The result is verified: it holds every request, and it meets the contract
    of the launch. With `ignore`, problems of these two kinds are reported and recorded, and are not errors.
    """
    requested = kconfig.merge(kconfig.read(fragments, root), overrides, guest_file)
    symbols = kconfig.known_symbols(Path(tree.path))
    if any(name not in symbols for name in requested):
        # Trees of other series distinguish an option of theirs from a typing error.
        elsewhere = {other: kconfig.known_symbols(path) for other, path in source.trees(store.trees, series).items()}
        kconfig.refuse(kconfig.unknown(requested, series, symbols, elsewhere))
    text = resolve(tree, kconfig.render(requested), store, log, say)
    config = kconfig.parse_config(text)
    breaches = contract.check(rules, config, launch, series)
    unmet = kconfig.unmet(requested, config)
    if config.get("MODULE_SIG") == "y" and config.get("MODULE_SIG_KEY") != f'"{signing.CERTIFICATE}"':
        raise UserError(
            f"CONFIG_MODULE_SIG is on, and {guest_file} has no module_key: the build would make a key that no module "
            "can be signed with later",
            "name a key of your own as module_key, which switches signing on; to make one: "
            + signing.MAKE.format("modules.pem"),
        )
    problems = [contract.describe(breaches)] if breaches else []
    if unmet:
        from minguest.kernel import explain  # noqa: PLC0415 - kconfiglib is slow to import

        why = explain.explain_all(Path(tree.path), text, [each.option.name for each in unmet])
        problems.append(kconfig.describe(unmet, why))
    if problems and not ignore:
        raise UserError(
            f"the config of linux {series} is not what was requested; nothing was compiled\n" + "\n".join(problems),
            "fix the fragments named above, or the guest's [options]; or pass contract=ignore to build it anyway",
        )
    for problem in problems:
        say(f"contract=ignore: {problem}")
    result = Configured(len(requested), tuple(problems))
    files.write(target / "config.json", msgspec.json.format(msgspec.json.encode(result)))
    files.write(target / "kernel.config", text)
    return result


def resolve(tree: source.Prepared, requested: str, store: Store, log: Path, say: Callable[[str], None]) -> str:
    """The whole .config that Kconfig makes from the options in `requested`; all others are as in tinyconfig."""
    kept = _config_place(tree, requested, store)
    if (text := _kept_text(kept)) is not None:
        files.used(kept)
        return text
    place = Path(tree.path)
    with slot(store, say) as (work, held):

        def make(target: str, log: Path) -> None:
            argv = make_argv(place, work, 1, target)
            run.run(argv, env=make_environment(store, work), log=log, bare=True, pass_fds=(held,))

        make("tinyconfig", log.with_suffix(".tinyconfig.log"))
        merged = work / "merged.config"
        merged.write_text(requested, encoding="utf-8")
        run.run(
            [place / "scripts/kconfig/merge_config.sh", "-m", "-O", work, work / ".config", merged],
            cwd=work,  # for its temporary files
            env=make_environment(store, work),
            log=log.with_suffix(".merge.log"),
            bare=True,
        )
        make("olddefconfig", log)
        text = (work / ".config").read_text(encoding="utf-8")
    _check_tools(text, source.compiler_tools())
    files.write(kept, msgspec.json.encode((_sha256(text), text)))
    return text


def resolved(tree: source.Prepared, requested: str, store: Store) -> str | None:
    """What `resolve` gives, if an earlier run kept it; nothing is run."""
    return _kept_text(_config_place(tree, requested, store))


def _config_place(tree: source.Prepared, requested: str, store: Store) -> Path:
    recipe = make_argv(Path("tree"), Path("out"), 1, "tinyconfig", "olddefconfig")
    return store.configs / f"{_key(tree, requested, source.compiler_tools(), recipe)}.json"


def _kept_text(path: Path) -> str | None:
    try:
        digest, text = msgspec.json.decode(path.read_bytes(), type=tuple[str, str])
    except (OSError, ValueError):
        return None
    return text if _sha256(text) == digest else None


def _check_tools(text: str, tools: Mapping[str, str]) -> None:
    """Kconfig of later kernels reads the compiler's version; a compiler that cannot run looks like an older one."""
    config = kconfig.parse_config(text)
    for option, tool in (("GCC_VERSION", "gcc"), ("LD_VERSION", "binutils")):
        numbers = [int(part) for part in tools[tool].split(".")[:3]]
        wanted = sum(part * factor for part, factor in zip(numbers, (10000, 100, 1), strict=False))
        if option in config and int(config[option]) != wanted:
            raise ToolError(
                f"Kconfig took {tool} for version {config[option]}, but it is {tools[tool]}, so the config is wrong",
                "check that there is room for temporary files and enough memory; then run the same command again",
            )


def build(
    tree: source.Prepared,
    text: str,
    store: Store,
    *,
    log: Path,
    say: Callable[[str], None],
    building: Callable[[], None] = lambda: None,
    with_devel: bool = False,
    certificate: str = "",
    objects: Objects | None = None,
    base: str = "",
) -> tuple[Path, Inspected]:
    """The folder with the kernel (KEPT) from `tree` and the config `text`; builds it if it does not exist.

    `with_devel`: also if its kernel-devel does not exist (`devel_folder`). `certificate`: what modules must be signed
    for, if the config has signing.OPTIONS. `objects`: where it is built, from the objects of the kernel with the config
    `base`; it is kept apart from those that were built from scratch. `building` is called before a build. Raises
    ToolError if make fails, and if an object that was linked is incomplete.
    """
    kept, after_another = places(tree, text, store, certificate)
    if objects and not whole(kept):
        kept = after_another
    beside = devel_folder(tree, text, store, certificate) if with_devel else None
    config = kconfig.parse_config(text)
    names = WITH_MODULES if devel.has_modules(config) else DEVEL

    def first(work: Path, held: int) -> None:
        say(f"linux {tree.tree.version}: the objects that the next kernels begin with")
        _compile(tree, base, work, store, held, log.with_name("base.log"))
        inspect(work, kconfig.parse_config(base), Path(tree.path))

    with files.lock(kept.with_name(f".{kept.name}.busy"), lambda: say("waiting for another build of this kernel")):
        if not whole(kept) or (beside and not _belongs(beside, kept, names)):
            building()
            with objects.of(tree, base, first) if objects else slot(store, say) as (work, held):
                if certificate:
                    files.write(work / signing.CERTIFICATE, certificate)
                _compile(tree, text, work, store, held, log)
                inspected = inspect(work, config, Path(tree.path))
                with files.replacing_tree(kept) as new:
                    shutil.copyfile(work / IMAGE, new / "bzImage")
                    shutil.copyfile(work / "System.map", new / "System.map")
                    (new / "kernel.config").write_text(text, encoding="utf-8")
                    (new / "kernel.json").write_bytes(msgspec.json.format(msgspec.json.encode(inspected)))
                    seal(new, KEPT)
                if beside:
                    _compile_modules(tree, work, store, held, log.with_suffix(".modules.log"))
                    with files.replacing_tree(beside) as new:
                        devel.pack(Path(tree.path), work, config, new, log.with_suffix(".devel.log"))
                        if devel.IN_TREE in names:
                            devel.pack_modules(work, new)
                        shutil.copyfile(kept / SUMS, new / KERNEL_SUMS)
                        seal(new, names)
        files.used(kept)
        if beside:
            files.used(beside)
        return kept, msgspec.json.decode((kept / "kernel.json").read_bytes(), type=Inspected)


def places(tree: source.Prepared, text: str, store: Store, certificate: str = "") -> tuple[Path, Path]:
    """Where `build` keeps the kernel from `tree` and the config `text`: one that was built from scratch, and one that
    began with `objects`. A folder's name is a hash of all that the kernel depends on."""
    recipe, tools = make_argv(Path("tree"), Path("out"), 1, "bzImage"), source.compiler_tools()
    first = store.kernels / _key(tree, text, tools, _with(recipe, certificate))
    return first, store.kernels / _key(
        tree, text, tools, [*_with(recipe, certificate), "from the objects of another one"]
    )


def devel_folder(tree: source.Prepared, text: str, store: Store, certificate: str = "") -> Path | None:
    """Where `build` keeps the kernel-devel (DEVEL or WITH_MODULES) of the kernel from `tree` and the config `text`;
    None for a kernel that loads no modules."""
    if kconfig.parse_config(text).get("MODULES") != "y":
        return None
    recipe = [*make_argv(Path("tree"), Path("out"), 1, "bzImage", "modules"), f"kernel-devel {devel.FORMAT}"]
    return store.kernels / _key(tree, text, source.compiler_tools(), _with(recipe, certificate))


def _with(recipe: list[str], certificate: str) -> list[str]:
    return [*recipe, certificate] if certificate else recipe


def _belongs(beside: Path, kept: Path, names: Sequence[str]) -> bool:
    """Whether a kernel-devel is complete and was built together with this kernel."""
    return whole(beside, names) and (beside / KERNEL_SUMS).read_bytes() == (kept / SUMS).read_bytes()


def seal(folder: Path, names: Sequence[str]) -> None:
    """Write what `whole` checks."""
    sums = {name: files.sha256(folder / name) for name in names}
    (folder / SUMS).write_bytes(msgspec.json.encode(sums))


def _make(
    tree: source.Prepared,
    work: Path,
    store: Store,
    held: int,
    log: Path,
    target: str,
    on_line: Callable[[str], None] | None = None,
) -> None:
    run.run(
        [*make_argv(Path(tree.path), work, settings.jobs(), target), *through_ccache()],
        env=make_environment(store, work),
        log=log,
        on_line=on_line,
        bare=True,
        pass_fds=(held,),
    )


def _compile(tree: source.Prepared, text: str, work: Path, store: Store, held: int, log: Path) -> None:
    dot_config = work / ".config"
    dot_config.write_text(text, encoding="utf-8")
    config = kconfig.parse_config(text)
    first = not (work / IMAGE).exists()
    objects = expected.objects(store, tree.tree.series, config) if first else None
    with Counted(f"linux {tree.tree.version}", "objects", objects) as progress:

        def compiled(line: str) -> None:
            if expected.OBJECT.fullmatch(line):
                progress.step(line.strip())

        _make(tree, work, store, held, log, "bzImage", compiled)
    if first:
        expected.record(store, tree.tree.series, config, progress.count)
    files.used(store.objects)
    if dot_config.read_text(encoding="utf-8") != text:
        raise ToolError(f"make changed the verified config of linux {tree.tree.version}", f"read {log}")


def _compile_modules(tree: source.Prepared, work: Path, store: Store, held: int, log: Path) -> None:
    """Also where the config has no module: it is `make modules` that writes Module.symvers."""
    with Counted(f"modules of linux {tree.tree.version}", "objects", None) as progress:

        def compiled(line: str) -> None:
            if expected.OBJECT.fullmatch(line):
                progress.step(line.strip())

        _make(tree, work, store, held, log, "modules", compiled)


def whole(kept: Path, names: Sequence[str] = KEPT) -> bool:
    """Whether a kept kernel, or with DEVEL its kernel-devel, is complete, and each file is what was built."""
    try:
        sums = msgspec.json.decode((kept / SUMS).read_bytes(), type=dict[str, str])
        return set(sums) == set(names) and all(files.sha256(kept / name) == digest for name, digest in sums.items())
    except (OSError, ValueError):
        return False


def _key(tree: source.Prepared, text: str, tools: Mapping[str, str], recipe: Sequence[str]) -> str:
    parts = (tree.tree.identity, text.encode(), msgspec.json.encode([sorted(tools.items()), recipe]))
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def inspect(out: Path, config: Mapping[str, str], tree: Path) -> Inspected:
    """Compare a built kernel with its config; ToolError names what disagrees."""
    vmlinux, bzimage = binary.elf(out / "vmlinux"), binary.bzimage(out / IMAGE)
    wrong = linked.faults(tree, out, out / IMAGE, config)
    if (vmlinux.machine, vmlinux.bits, vmlinux.static) != ("x64", 64, True):
        wrong.append(f"vmlinux is {vmlinux.machine}, {vmlinux.bits} bits, static {vmlinux.static}")
    if "kernel-64" not in bzimage.xloadflags:
        wrong.append(f"bzImage has no 64-bit entry: xloadflags {', '.join(bzimage.xloadflags) or 'none'}")
    wants_stub = config.get("EFI_STUB") == "y"
    if bzimage.efi_stub != wants_stub:
        wrong.append(f"EFI_STUB is {'y' if wants_stub else 'n'}, but the image {'lacks' if wants_stub else 'has'} it")
    if bzimage.relocatable != (config.get("RELOCATABLE") == "y"):
        wrong.append(f"RELOCATABLE is {config.get('RELOCATABLE', 'n')}, but the header says {bzimage.relocatable}")
    if config.get("IKCONFIG") == "y":
        carried = binary.embedded_config(out / "vmlinux")
        if carried is None or kconfig.parse_config(carried) != config:
            wrong.append("the config in the image is not the config it should be built from")
    if wrong:
        raise ToolError(
            "the built kernel does not match its config, and was not kept: " + "; ".join(wrong),
            "run the same command again: it builds from scratch",
        )
    return Inspected(vmlinux, bzimage)
