# SPDX-License-Identifier: Apache-2.0
"""OVMF built from edk2's source: Debian's tarball and patches, and the platform and patches in configs/firmware.

It is built in a new folder that is never used again, and kept by the hash of all its inputs, as kernels are.
"""

import hashlib
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import settings
from minguest.bundle import firmware
from minguest.kernel import folders, kbuild, source
from minguest.model import Firmware, Source
from minguest.paths import Store
from minguest.util import archive, files, run
from minguest.util.errors import ToolError, UserError

# The platform's description, below configs/firmware/, and where it goes in edk2's tree.
PLATFORM = "minguest.dsc"
FOLDER = "OvmfPkg/Minguest"
# What edk2's `build` is called with: its name for gcc with link-time optimization, and a build without DEBUG().
TOOLCHAIN, TARGET = "GCC5", "RELEASE"
RESULT = f"Build/Minguest/{TARGET}_{TOOLCHAIN}/FV"
# The programs of BaseTools that a platform without VFR forms needs: the others take a C++ compiler, and longer.
BASETOOLS = ("GenFfs", "GenFv", "GenFw", "GenSec")
KEPT = ("OVMF_CODE.fd", "OVMF_VARS.fd", "firmware.json")
# Below configs/firmware/, and only for a firmware that is measured: what writes edk2's performance records to the debug
# port. The names of the modules in them are in NAMES, which such a build keeps too.
MEASURED, NAMES = "measured", "Guid.xref"
# Where Debian's changes are unpacked, beside the tree.
DEBIAN = "debian"
# Not unpacked: it has a link to /opt.
LEFT_OUT = "EmulatorPkg"


class Applied(msgspec.Struct, frozen=True):
    """A patch that was applied, in this order."""

    file: str
    sha256: str
    reason: str


class Built(msgspec.Struct, frozen=True):
    """What the manifest says of a firmware that was built here: firmware.json beside it."""

    version: str
    code_sha256: str
    vars_sha256: str
    patches: tuple[Applied, ...]
    """Debian's, then this project's."""
    platform: dict[str, str]
    """SHA-256 of each file of configs/firmware that was used, by name."""
    tools: dict[str, str]


def tools() -> dict[str, str]:
    """Versions of what builds edk2; ToolError names what is missing."""
    try:
        _, nasm = run.run(["nasm", "-v"], bare=True)
    except ToolError as error:
        raise ToolError(
            f"the firmware is built with nasm: {error.message.splitlines()[0]}", "apt install nasm"
        ) from error
    header = ["gcc", "-fsyntax-only", "-include", "uuid/uuid.h", "-x", "c", "/dev/null"]
    status, said = run.run(header, bare=True, check=False)
    if status != 0:
        raise ToolError(
            f"edk2's tools need uuid/uuid.h, and gcc does not find it: {(said.splitlines() or ['no reason given'])[0]}",
            "apt install uuid-dev; in a checkout, ./doit.sh installs it",
        )
    version = re.search(r"version (\S+)", nasm)
    return {**source.compiler_tools(), "nasm": version[1] if version else nasm.strip()}


def inputs(folder: Path, *, measured: bool = False) -> dict[str, Path]:
    """The files of configs/firmware that a build uses, by their names in it: the platform and the patches; also what
    measures it."""
    found = [*folder.glob("*.dsc"), *folder.glob("*.fdf"), *folder.glob("patches/*.patch")]
    found += folder.glob(f"{MEASURED}/*") if measured else ()
    if folder / PLATFORM not in found:
        raise UserError(f"{folder / PLATFORM}: missing", "the firmware's platform is a part of the checkout")
    return {path.relative_to(folder).as_posix(): path for path in sorted(found)}


def series(text: str, where: str) -> list[str]:
    """File names of a Debian source's debian/patches/series, in order: https://manpages.debian.org/quilt

    UserError for one outside the folder, and for options of patch, which are not supported.
    """
    found = []
    for line in text.splitlines():
        name, *options = line.split("#")[0].split() or [""]
        if not name:
            continue
        if options not in ([], ["-p1"]):
            raise UserError(f"{where}: {line!r}: options other than -p1 are not supported")
        if name.startswith("/") or ".." in Path(name).parts:
            raise UserError(f"{where}: {name!r}: outside the folder of patches")
        found.append(name)
    return found


def reason(patch: str) -> str:
    """What a patch says of itself: the subject of its mail, its DEP-3 description, or its first line."""
    header = re.split(r"\n(?:--- |diff --git)", patch, maxsplit=1)[0]
    named = re.search(r"^(?:Subject|Description):[ \t]*(.+(?:\n[ \t]+\S.*)*)", header, re.MULTILINE)
    line = named[1] if named else header.strip().splitlines()[0] if header.strip() else ""
    line = re.sub(r"^(\[PATCH[^]]*\]\s*)", "", " ".join(line.split()))
    return "" if line.startswith(("--- ", "diff ", "Index: ")) else line


def check_tarball(tarball: Path, wanted: Firmware) -> None:
    """UserError if edk2's tarball is of another version than sources.toml says: `edk2-2025.02/` for 2025.02-8."""
    upstream = re.split(r"[-+~]", wanted.version)[0]
    try:
        with tarfile.open(tarball, "r|*") as members:
            first = next(iter(members), None)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{tarball}: not a tarball of edk2: {error}") from error
    top = first.name.removeprefix("./").split("/")[0] if first else "nothing"
    if top != f"edk2-{upstream}":
        raise UserError(
            f"the firmware {wanted.version} is built from edk2-{upstream}, but the tarball has {top}",
            "correct version, sha256 and urls of the firmware in configs/sources.toml: they belong together",
        )


def check_debian(changelog: str, wanted: Firmware) -> None:
    """UserError if Debian's changes are of another version."""
    found = re.match(r"edk2 \(([^)]+)\)", changelog)
    if not found or not re.fullmatch(rf"{re.escape(found[1])}(\+minguest\d+)?", wanted.version):
        raise UserError(
            f"the firmware {wanted.version} is built with Debian's changes of that version, but the archive has those "
            f"of {found[1] if found else 'something else'}",
            "correct version and debian of the firmware in configs/sources.toml: they belong together",
        )


def build_argv(version: str, jobs: int, *, measured: bool = False) -> list[str]:
    """edk2's build command: https://tianocore-docs.github.io/edk2-BuildSpecification"""
    return [
        "build", "-q", "-n", str(jobs), "-a", "X64", "-t", TOOLCHAIN, "-b", TARGET, "-p", f"{FOLDER}/{PLATFORM}",
        *(("-D", "MEASURED=TRUE") if measured else ()),
        "--pcd", "PcdFirmwareVendor=Lminguest\\0", "--pcd", f"PcdFirmwareVersionString=L{version}\\0",
    ]  # fmt: skip


def environment(tree: Path) -> dict[str, str]:
    """What edksetup.sh sets, and what makes a build independent of the user's Python."""
    base = tree / "BaseTools"
    return {
        "PATH": f"{base / 'BinWrappers/PosixLike'}:{run.bare_environment()['PATH']}",
        "WORKSPACE": str(tree),
        "EDK_TOOLS_PATH": str(base),
        "CONF_PATH": str(tree / "Conf"),
        "PYTHON_COMMAND": sys.executable,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tree),
    }


def build(
    wanted: Firmware,
    folder: Path,
    store: Store,
    fetch: Callable[[Source, str], Path],
    *,
    log: Path,
    say: Callable[[str], None],
    measured: bool = False,
) -> Path:
    """The folder with the firmware (KEPT) that `wanted` and configs/firmware, `folder`, describe; built if missing.

    `fetch` gets a source by a name for messages. `measured`: the same, but it writes performance records to the debug
    port; with NAMES. Raises UserError for sources of another version, ToolError if a
    program is missing or fails, or if a patch does not apply.
    """
    used, with_tools = inputs(folder, measured=measured), tools()
    kept = store.firmware / key(wanted, used, with_tools, measured=measured)
    names = (*KEPT, NAMES) if measured else KEPT
    with files.lock(kept.with_name(f".{kept.name}.busy"), lambda: say("waiting for another build of this firmware")):
        if not kbuild.whole(kept, names):
            tarball = fetch(wanted, f"edk2 {wanted.version}")
            debian = fetch(_changes(wanted), f"Debian's changes to edk2 {wanted.version}")
            check_tarball(tarball, wanted)
            with folders.slot(store, say) as (work, held):
                tree = work / "edk2"
                applied = _prepare(tree, tarball, debian, wanted, used, log.with_suffix(".patch.log"), say)
                _compile(tree, build_argv(wanted.version, settings.jobs(), measured=measured), held, log)
                with files.replacing_tree(kept) as new:
                    made = {name: (tree / RESULT / name).read_bytes() for name in KEPT[:2]}
                    sums = firmware.write(new, made["OVMF_CODE.fd"], made["OVMF_VARS.fd"], f"edk2 {wanted.version}")
                    if measured:
                        files.copy(tree / RESULT / NAMES, new / NAMES)
                    hashes = {name: files.sha256(path) for name, path in used.items() if not name.endswith(".patch")}
                    facts = Built(wanted.version, *sums, tuple(applied), hashes, with_tools)
                    (new / "firmware.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
                    kbuild.seal(new, names)
        files.used(kept)
    return kept


def key(wanted: Firmware, used: Mapping[str, Path], with_tools: Mapping[str, str], *, measured: bool = False) -> str:
    """What a built firmware is kept by."""
    parts = [
        wanted.version,
        wanted.sha256,
        _changes(wanted).sha256,
        sorted((name, files.sha256(path)) for name, path in used.items()),
        sorted(with_tools.items()),
        build_argv("version", 1, measured=measured),
    ]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]


def _changes(wanted: Firmware) -> Source:
    changes = wanted.debian
    assert changes is not None
    return Source(version=wanted.version, urls=changes.urls, sha256=changes.sha256, licence=wanted.licence)


def _prepare(
    tree: Path,
    tarball: Path,
    debian: Path,
    wanted: Firmware,
    used: Mapping[str, Path],
    log: Path,
    say: Callable[[str], None],
) -> list[Applied]:
    """Unpack edk2 into `tree` with Debian's patches, this project's, and its platform. Returns the patches."""
    say(f"unpacking edk2 {wanted.version}")
    tree.mkdir()
    archive.extract_tar(tarball, tree, lambda name: f"/{LEFT_OUT}/" not in name)
    changes = tree.with_name(DEBIAN)
    changes.mkdir()
    archive.extract_tar(debian, changes)
    check_debian(_read(changes / "changelog", debian), wanted)
    names = series(_read(changes / "patches/series", debian), f"{debian}: series")
    patches = [(f"debian/{name}", changes / "patches" / name) for name in names]
    patches += [(name, path) for name, path in used.items() if name.endswith(".patch")]
    for _, path in patches:
        _patch(tree, path, log)
    for name, path in used.items():
        if not name.endswith(".patch"):
            files.copy(path, tree / FOLDER / name)
    return [Applied(name, files.sha256(path), reason(_read(path, debian))) for name, path in patches]


def _read(path: Path, debian: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise UserError(f"{debian}: not Debian's changes to a source: {path.name}: {error.strerror}") from error


def _patch(tree: Path, patch: Path, log: Path) -> None:
    try:
        run.run(["patch", "-p1", "--force", "--forward", "--no-backup-if-mismatch", "-d", tree, "-i", patch], log=log,
                bare=True)  # fmt: skip
    except ToolError as error:
        raise ToolError(
            f"{patch.name}: does not apply to this edk2\n{error.message}",
            "the patch was made for another version: see [firmware] in configs/sources.toml",
        ) from error


def _compile(tree: Path, argv: Sequence[str], held: int, log: Path) -> None:
    """edk2's own tools, then the firmware."""
    for name in ("target", "tools_def", "build_rule"):
        shutil.copyfile(tree / f"BaseTools/Conf/{name}.template", tree / f"Conf/{name}.txt")
    env = environment(tree)

    def make(argv: Sequence[str], place: Path) -> None:
        run.run(argv, cwd=tree, env=env, log=place, bare=True, pass_fds=(held,))

    make(
        ["make", "-C", "BaseTools/Source/C", f"-j{settings.jobs()}", "ARCH=X64", *BASETOOLS],
        log.with_suffix(".tools.log"),
    )
    make(argv, log)
