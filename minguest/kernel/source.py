# SPDX-License-Identifier: Apache-2.0
"""Which kernel is built, and its tree: fetched or copied, patched, kept by content, complete or absent."""

import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from minguest import settings
from minguest.kernel import pgp
from minguest.model import Choice, Guest, Source, Sources
from minguest.util import archive, files, run
from minguest.util.errors import ToolError, UserError

# SLOW: requests takes 30 ms to import, so fetch is imported only where a download may be needed.

STAMP = ".minguest.json"
PINNED = "pinned"
AUTO = "auto"
# Seconds in which the mirrors of one series must answer whether they have it.
ANSWER = 8.0


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of configs/kernel/patches/series.toml."""

    file: str
    series: str
    versions: str
    """Kernel versions that it applies to, as PEP 440 specifiers."""
    reason: str
    tool: str | None = None
    """`gcc`, `binutils` or `glibc`, if one of these makes it necessary."""
    tools: str = ""
    """Versions of that tool that it applies to, as PEP 440 specifiers."""
    guest: str | None = None
    """The guest that it applies to; None: all guests."""


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """configs/kernel/patches/series.toml."""

    patch: tuple[Patch, ...]


class Applied(msgspec.Struct, frozen=True):
    """A patch in a tree, by content."""

    file: str
    sha256: str
    reason: str


class Tree(msgspec.Struct, frozen=True):
    """The inputs of a prepared tree: the stamp in it."""

    series: str
    version: str
    origin: str
    """`sha256:…` of the pinned tarball, or `own:` and the SHA-256 over the user's tree (`content`)."""
    signed: str
    """Who signed the tarball, or why that was not verified."""
    patches: tuple[Applied, ...]

    @property
    def identity(self) -> bytes:
        """What determines every byte of the tree: its version, its origin and its patches."""
        return msgspec.json.encode([self.version, self.origin, [[each.file, each.sha256] for each in self.patches]])


class Prepared(msgspec.Struct, frozen=True):
    """A tree that is ready for a build: out/*/tree.json."""

    path: str
    tree: Tree


# ── the choice ────────────────────────────────────────────────────────────────


def choose(
    guest: Guest,
    sources: Sources,
    kept: Choice | None,
    kernel: str | None,
    own: str | None,
    available: Callable[[Source], str | None],
) -> Choice:
    """Decide which kernel is built, from the user's `kernel=` and `source=`, the kept choice, and the guest's list.

    `available` says where a pinned source is (`cached`, a mirror's URL), or None.
    Raises UserError for impossible values, ToolError for a series that cannot be downloaded.
    """
    check_series(kernel, sources)
    if own is not None and own != PINNED:
        return _own(own, sources, kernel)
    if kept is not None and own is None and kept.series in sources.kernel:
        if kernel is None and (kept.fixed or kept.wanted == guest.kernel):
            return kept
        if kernel == kept.series:
            return msgspec.structs.replace(kept, wanted=(kernel,), fixed=True)
    if kept is not None and own == PINNED and kernel is None:
        kernel = kept.series
    if kernel is None or kernel == AUTO:
        return _first(guest, sources, available)
    return _insist(kernel, sources.kernel[kernel], available)


def check_series(kernel: str | None, sources: Sources) -> None:
    """UserError where `kernel=` names a series that this project does not have."""
    if kernel not in (None, AUTO, *sources.kernel):
        raise UserError(f"kernel={kernel}: no such series", f"known series: {', '.join(sources.kernel)}")


def _own(own: str, sources: Sources, kernel: str | None) -> Choice:
    path = Path(own).expanduser().absolute()
    version = own_version(path)
    series = ".".join(version.split(".")[:2])
    if series not in sources.kernel:
        raise UserError(f"source={own} is linux {version}", f"name a tree of linux {' or '.join(sources.kernel)}")
    if kernel not in (None, AUTO, series):
        raise UserError(f"source={own} is linux {version}, but kernel={kernel} was requested", f"pass kernel={series}")
    return Choice((series,), series, version, "your own tree", source=str(path), fixed=True)


def _insist(series: str, source: Source, available: Callable[[Source], str | None]) -> Choice:
    where = available(source)
    if where is None:
        raise ToolError(
            f"kernel={series}: linux {source.version} is not available: not in the cache, {_mirrors(source)}",
            f"build your own {series}.y tree with source=DIR or source=TARBALL; or omit kernel= for the guest's list",
        )
    return Choice((series,), series, source.version, f"kernel={series}, {where}", fixed=True)


def _first(guest: Guest, sources: Sources, available: Callable[[Source], str | None]) -> Choice:
    missed: list[str] = []
    for series in guest.kernel:
        if series not in sources.kernel:
            raise UserError(f"guest {guest.name}: no series {series!r}", f"known series: {', '.join(sources.kernel)}")
        source = sources.kernel[series]
        where = available(source)
        if where is not None:
            return Choice(guest.kernel, series, source.version, "; ".join([*missed, where]))
        missed.append(f"linux {source.version}: {_mirrors(source)}")
    raise ToolError(
        "no kernel is available: " + "; ".join(missed),
        "check the network, or build your own tree with source=DIR or source=TARBALL",
    )


def _mirrors(source: Source) -> str:
    return f"{len(source.urls)} mirrors, none answered"


def availability(cache: Path) -> Callable[[Source], str | None]:
    """The `available` of `choose`, for this cache and the network."""

    def available(source: Source) -> str | None:
        from minguest.util import fetch  # noqa: PLC0415 - see SLOW

        if fetch.cached(source, cache):
            return "in the cache"
        url = fetch.reachable(source, ANSWER)
        return f"{url.split('/')[2]} has it" if url else None

    return available


def sentence(choice: Choice) -> str:
    """One line that says which kernel is built, and why."""
    *missed, reason = choice.reason.split("; ")
    if missed:
        return "; ".join([*missed, f"building {choice.version} ({reason})"])
    return f"linux {choice.version} ({reason}{f', {choice.source}' if choice.source else ''})"


def own_version(path: Path) -> str:
    """The version in the top Makefile of the user's tree or tarball, such as `4.12.10`."""
    try:
        text = (path / "Makefile").read_text(encoding="utf-8") if path.is_dir() else _makefile_of(path)
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"source={path}: not a kernel tree or tarball: {error}") from error
    found: dict[str, str] = dict(
        re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*)$", text, re.MULTILINE)
    )
    if not all(found.get(key, "").isdigit() for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL")):
        raise UserError(f"source={path}: its Makefile has no kernel version")
    return "{VERSION}.{PATCHLEVEL}.{SUBLEVEL}".format_map(found) + found.get("EXTRAVERSION", "").strip()


def _makefile_of(tarball: Path) -> str:
    with tarfile.open(tarball, "r|*") as members:
        for member in members:
            if re.fullmatch(r"(\./)?([^/]+/)?Makefile", member.name) and (file := members.extractfile(member)):
                return file.read().decode()
    raise UserError(f"source={tarball}: no Makefile at its top")


# ── the tree ──────────────────────────────────────────────────────────────────


def fingerprint(path: Path) -> str:
    """A digest that changes when a file in a tree, or a tarball, does: names, sizes, times. Reads no content.

    It includes the ctime of each inode, which no program can set: `cp -p`, tar and git set the mtime.
    """
    digest = hashlib.sha256()
    for name, facts in _walk(path):
        digest.update(
            f"{name} {facts.st_mode} {facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}\n".encode(
                errors="surrogateescape"
            )
        )
    return digest.hexdigest()


def content(path: Path) -> str:
    """SHA-256 over the names, kinds and contents of the files in a tree; of a tarball, over its bytes."""
    if path.is_file():
        return files.sha256(path)
    digest = hashlib.sha256()
    for name, facts in _walk(path):
        if stat.S_ISLNK(facts.st_mode):
            kind, inside = "link", hashlib.sha256(os.fsencode((path / name).readlink())).hexdigest()
        elif stat.S_ISREG(facts.st_mode):
            kind, inside = ("program" if facts.st_mode & 0o100 else "file"), files.sha256(path / name)
        else:
            kind, inside = "other", ""
        digest.update(f"{kind} {inside} {name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _walk(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything except folders below `path`, by relative name, in order, without .git and a prepared tree's stamp."""
    if path.is_file():
        yield "", path.stat()
        return
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(path / folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name):
                name = f"{folder}{entry.name}"
                if entry.name == ".git" or name == STAMP:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    yield name, entry.stat(follow_symlinks=False)


def wanted_patches(
    table: Path, series: str, version: str, tools: Mapping[str, str], guest: str | None = None
) -> list[Patch]:
    """Rows of series.toml for this kernel version, these versions of `tools`, and all guests or this one."""
    found = []
    for patch in settings.decode(table, Series).patch:
        try:
            applies = (
                patch.series == series
                and number(version) in SpecifierSet(patch.versions)
                and patch.guest in (None, guest)
                and (patch.tool is None or number(tools[patch.tool]) in SpecifierSet(patch.tools))
            )
        except KeyError:
            raise UserError(f"{series}: {patch.file}: tool = {patch.tool!r}; known: {', '.join(tools)}") from None
        except InvalidSpecifier as error:
            raise UserError(f"{series}: {patch.file}: {error}; write for example '>=4.12, <4.13'") from error
        if applies:
            found.append(patch)
    return found


def number(version: str) -> Version:
    """The leading numbers of a version, without what a vendor appends."""
    return Version(re.sub(r"(\d+(?:\.\d+)*).*", r"\1", version))


def compiler_tools() -> dict[str, str]:
    """Versions of gcc, binutils and glibc, for the patches and the manifest."""
    _, libc = run.run(["getconf", "GNU_LIBC_VERSION"], bare=True)
    _, gcc = run.run(["gcc", "-dumpfullversion", "-dumpversion"], bare=True)
    _, ld = run.run(["ld", "--version"], bare=True)
    binutils = re.search(r"(\d+\.\d+(?:\.\d+)?)", ld.splitlines()[0].split(")")[-1])
    if not binutils:
        raise ToolError(f"ld: no version in {ld.splitlines()[0]!r}", "the kernel is built with GNU binutils")
    return {"gcc": gcc.strip(), "binutils": binutils[1], "glibc": libc.strip().removeprefix("glibc ")}


def compiler(tools: Mapping[str, str]) -> str:
    """The compiler of `compiler_tools`, or of a manifest's tools, as records name it."""
    return f"gcc {tools['gcc']}, binutils {tools['binutils']}"


def prepare(
    choice: Choice,
    source: Source | None,
    folder: Path,
    *,
    cache: Path,
    keys: Path,
    patches: Path,
    log: Path,
    say: Callable[[str], None],
    guest: str | None = None,
) -> Prepared:
    """The patched tree of a guest in `folder`; it is made if it is missing or was changed.

    `source` is the pinned download, None for the user's own tree, which is only read. A tree's name contains a hash of
    its identity, so different trees never share a folder.
    """
    wanted = wanted_patches(patches / "series.toml", choice.series, choice.version, compiler_tools(), guest)
    applied = tuple(Applied(each.file, files.sha256(patches / each.file), each.reason) for each in wanted)
    origin = f"sha256:{source.sha256}" if source else f"own:{_content(Path(choice.source or ''), folder)}"
    tree = Tree(choice.series, choice.version, origin, "", applied)
    target = folder / f"linux-{choice.version}-{hashlib.sha256(tree.identity).hexdigest()[:16]}"
    with files.lock(
        folder / f".{target.name}.busy", lambda: say(f"waiting for another run that prepares {target.name}")
    ):
        kept = stamp(target)
        if kept and kept.identity == tree.identity and intact(target):
            files.used(made(target))
            return Prepared(str(target), kept)
        made(target).unlink(missing_ok=True)
        signed = "not verified: your own tree"
        if source:
            from minguest.util import fetch  # noqa: PLC0415 - see SLOW

            tarball = fetch.fetch(source, f"linux {source.version}", cache, say)
            signed = _verify(source, tarball, keys, say)
        tree = msgspec.structs.replace(tree, signed=signed)
        with files.replacing_tree(target) as new:
            if source:
                say(f"unpacking linux {source.version}")
                archive.extract_tar(tarball, new)
            else:
                assert choice.source is not None
                say(f"copying {choice.source}")
                _copy(Path(choice.source), new, log)
            _patch(new, [patches / each.file for each in wanted], log)
            (new / STAMP).write_bytes(msgspec.json.encode(tree))
        files.write(made(target), fingerprint(target))
    return Prepared(str(target), tree)


def stamp(tree: Path) -> Tree | None:
    """The stamp of a prepared tree; None if there is no complete one."""
    try:
        return msgspec.json.decode((tree / STAMP).read_bytes(), type=Tree)
    except (OSError, ValueError):
        return None


def intact(tree: Path) -> bool:
    """Whether a prepared tree is unchanged since it was made."""
    try:
        return made(tree).read_text() == fingerprint(tree)
    except OSError:
        return False


def made(tree: Path) -> Path:
    """The file beside a prepared tree with its first fingerprint. Written last."""
    return tree.with_name(f".{tree.name}.made")


def _content(own: Path, folder: Path) -> str:
    """`content` of the user's tree; it is read again only if its fingerprint has changed."""
    name = hashlib.sha256(os.fsencode(own)).hexdigest()[:16]
    known, now = folder / f".own-{name}.json", fingerprint(own)
    try:
        before, digest = msgspec.json.decode(known.read_bytes(), type=tuple[str, str])
    except (OSError, ValueError):
        before, digest = "", ""
    if before != now:
        digest = content(own)
        files.write(known, msgspec.json.encode((now, digest)))
    return digest


def trees(folder: Path, but: str) -> dict[str, Path]:
    """Prepared trees in `folder` by series, without the series `but`."""
    found = {each.series: path for path in sorted(folder.glob("linux-*")) if (each := stamp(path))}
    return {series: path for series, path in found.items() if series != but}


def _verify(source: Source, tarball: Path, keys: Path, say: Callable[[str], None]) -> str:
    """Who signed the tarball. A wrong signature is an error; one that cannot be checked is reported."""
    if source.signature is None:
        result = "not verified: no signature is published beside it"
    elif not pgp.available():
        result = "not verified: gpgv is not installed"
    else:
        from minguest.util import fetch  # noqa: PLC0415 - see SLOW

        try:
            detached = fetch.fetch_small(source.signature.urls)
        except ToolError as error:
            result = f"not verified: {error.message.splitlines()[0]}"
        else:
            result = pgp.verify_tarball(tarball, detached, [keys / name for name in source.signature.keys])
    say(f"linux {source.version}: SHA-256 as pinned; signature: {result}")
    return result


def _copy(own: Path, folder: Path, log: Path) -> None:
    if own.is_file():
        archive.extract_tar(own, folder)
    else:
        shutil.copytree(own, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    # A tree that was built in place refuses O= until it is cleaned. Clean the copy, not the user's tree.
    if (folder / ".config").exists() or (folder / "include/config").exists():
        run.run(["make", "-C", folder, "ARCH=x86", "mrproper"], log=log, bare=True)


def _patch(folder: Path, patches: Sequence[Path], log: Path) -> None:
    for patch in patches:
        command = ["patch", "-p1", "--force", "--no-backup-if-mismatch", "-d", str(folder), "-i", str(patch.absolute())]
        there, _ = run.run([*command, "--dry-run", "--reverse"], check=False, bare=True)
        if there == 0:
            continue  # the user's tree has it already
        try:
            run.run([*command, "--forward"], log=log, bare=True)
        except ToolError as error:
            raise ToolError(f"{patch}: does not apply to this tree\n{error.message}") from error
