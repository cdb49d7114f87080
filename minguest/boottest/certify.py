# SPDX-License-Identifier: Apache-2.0
"""The certificate that each option is needed: each is left out, and what is missing then is seen.

So are the options that Kconfig switches on where nobody asks: what each costs is known then.

A kernel is built without the option, and started in the launches that the fragments are for, until one of them shows
something, twice. Where none does, its size and the instructions of its boot say what the option costs.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from minguest import paths
from minguest.boottest import inject, runner, userland
from minguest.boottest.records import CERTIFICATE_SCHEMA, Certificate, Kind, Row
from minguest.bundle import manifests
from minguest.diagnose import catalogue
from minguest.kernel import binary, kconfig, variants
from minguest.model import Launch
from minguest.util import files
from minguest.util.errors import ToolError, UserError

# In an option's comment: what it is for, where no test here can show it.
UNTESTED = "Not tested here: "
# Instructions of a boot: less than this is no difference. One kernel's are the same within 2 %; another's differ by up
# to 6 % for the places of its functions alone.
COUNTED = 0.1
# Bytes of a compressed kernel: less than this is no difference.
PACKED = 256
# What gcc and ld say of code that they refuse.
REFUSED = re.compile(r"^\S+:\d+:\d+: error: .*|^.*\bundefined reference to .*", re.MULTILINE)
ROOT = {"disk": "/dev/vda"}
# The launches, in this order. `counted` is the one that instructions are counted in; those with a root have
# userland.py's program as its init.
PROBES = (
    catalogue.Injection("own"),
    catalogue.Injection("counted", launch={"cpus": 1, "accel": "tcg"}, fault=("clock=instructions",)),
    catalogue.Injection("userland", launch={"root": ROOT}),
    catalogue.Injection("pc", launch={"machine": "pc", "cpus": 8, "root": ROOT}),
    catalogue.Injection("hotplug", launch={"cpus": 2, "memory": "1G"}, plug={"cpus": 8, "memory": "3G"}),
    catalogue.Injection("button"),
    catalogue.Injection("nodes", launch={"numa": inject.NODES}),
    catalogue.Injection("large-bars", launch={"gpus": ["bar:128G"] * 8}),
)
# The modules that make rows, beside inject.CODE: when they change, kept rows are dropped.
CODE = ("boottest/certify", "boottest/userland", "kernel/variants")
MEANING: Mapping[Kind, str] = {
    "not built": "without it the kernel does not build",
    "not booted": "without it a guest is lost",
    "row": "without it a row of the verdict is wrong, or a call of a program",
    "pit": "without it a pit is named",
    "size": "without it the kernel is larger",
    "time": "without it the boot takes more instructions",
    "unchanged": "Kconfig gives the same config without it: another option selects it, or it is the default",
    "stated": "no test here shows it; its comment says what it is for",
    "unseen": "no test here shows it, and its comment does not say so",
    "unasked": "nobody asks for it, and no test here shows what it is for",
    "NOT RUN": "it could not be tried",
}


class Site(msgspec.Struct, frozen=True):
    """Where a certificate is made."""

    matrix: inject.Site
    """Its folder gets certificate.json and, in runs/, a folder for each boot."""
    shop: variants.Workshop
    compiler: str
    qemu: str
    program: Path
    """userland.py's program."""
    published: Path
    """docs/necessity.json: its rows count too, if their key is the same."""


class Whole(msgspec.Struct, frozen=True):
    """The kernel with all options."""

    text: str
    bytes: int
    """`packed`."""
    instructions: float | None
    userland: dict[str, frozenset[str]]
    """By a probe that starts userland.py's program: what the program found."""


Begin = Callable[[str], None]
"""Called with an option before its files are replaced: what was known of it is dropped."""


class Doer(Protocol):
    """Makes rows, in any order: here, or on other machines (minguest/scale)."""

    def base(self, site: Site, manifest: manifests.Manifest, say: Callable[[str], None]) -> Whole:
        """`with_all`, of which the rows are."""

    def rows(
        self,
        site: Site,
        manifest: manifests.Manifest,
        options: Sequence[kconfig.Option],
        begin: Begin,
        say: Callable[[str], None],
    ) -> Iterator[Row]:
        """A row for each option; `base` was called before."""


class OneByOne:
    """The Doer of this process."""

    def base(self, site: Site, manifest: manifests.Manifest, say: Callable[[str], None]) -> Whole:
        self._base = with_all(site, manifest, say)
        return self._base

    def rows(
        self,
        site: Site,
        manifest: manifests.Manifest,
        options: Sequence[kconfig.Option],
        begin: Begin,
        say: Callable[[str], None],
    ) -> Iterator[Row]:
        for option in options:
            begin(option.name)
            yield left_out(site, manifest, option, self._base, say)


def options(shop: variants.Workshop, only: Sequence[str], say: Callable[[str], None]) -> list[kconfig.Option]:
    """What is left out: first what the fragments ask for, in their order, then what nobody asks for. UserError for
    another option."""
    known = [each for each in variants.requested(shop).values() if each.line]
    known += [kconfig.Option(name, "y", "", 0, "") for name in variants.unasked(shop, say)]
    names = [each.name for each in known]
    for name in only:
        if name not in names:
            raise UserError(
                f"only={name}: no fragment of this guest asks for it, and it cannot be switched off by itself",
                "an option without CONFIG_, as EFI",
            )
    return [each for each in known if not only or each.name in only]


def run(site: Site, only: Sequence[str], say: Callable[[str], None], doer: Doer | None = None) -> Certificate:
    """Leave out each option, and write certificate.json after every one. Rows with the same key stay.

    `doer`: what does it; None: this process.
    """
    with files.lock(site.matrix.folder / ".run", lambda: say("waiting for another certificate")):
        return _run(site, only, say, doer or OneByOne())


def _run(site: Site, only: Sequence[str], say: Callable[[str], None], doer: Doer) -> Certificate:
    manifest = manifests.load(site.matrix.bench.bundle)
    chosen = options(site.shop, only, say)
    order = [each.name for each in options(site.shop, (), say)]
    key, judge = key_of(site, manifest), judge_of(site.matrix.launch, site.matrix.known)
    known = [each for each in (*published(site.published), load(site.matrix.folder)) if each and each.key == key]
    rows = {row.option: row for each in known for row in each.rows}
    base = doer.base(site, manifest, say)

    def keep() -> Certificate:
        done = tuple(rows[name] for name in order if name in rows)
        certificate = Certificate(
            CERTIFICATE_SCHEMA, manifest.kernel.series, manifest.kernel.version, manifest.files,
            manifest.config.fragments, site.compiler, site.qemu, judge, key, len(done) == len(order), base.bytes,
            base.instructions, done,
        )  # fmt: skip
        files.write(place(site.matrix.folder), msgspec.json.format(msgspec.json.encode(certificate)))
        return certificate

    def begin(name: str) -> None:
        rows.pop(name, None)
        keep()

    # What an option's comment says changes no kernel.
    rows |= {each.name: commented(rows[each.name], each) for each in chosen if each.name in rows}
    missing = [each for each in chosen if each.name not in rows or rows[each.name].kind == "NOT RUN"]
    for option in chosen:
        if option not in missing:
            say(shown(rows[option.name]))
    for row in doer.rows(site, manifest, missing, begin, say):
        rows[row.option] = row
        keep()
        say(shown(row))
    return keep()


def place(folder: Path) -> Path:
    """The certificate's file."""
    return folder / "certificate.json"


def load(folder: Path) -> Certificate | None:
    """The certificate of an earlier run; None if there is none, or it cannot be read."""
    try:
        return msgspec.json.decode(place(folder).read_bytes(), type=Certificate)
    except (OSError, ValueError):
        return None


def published(path: Path) -> tuple[Certificate, ...]:
    """The certificates in docs/necessity.json; none if there is no such file, or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[Certificate, ...])
    except (OSError, ValueError):
        return ()


def shown(row: Row) -> str:
    """One row on the terminal."""
    gone = f"with it {', '.join(row.gone)}" if row.gone else ""
    cost = "" if row.bytes is None else f"  {row.bytes:+,} bytes"
    count = "" if row.instructions is None else f"  {row.instructions:+.1f} M instructions"
    seen = f"{row.seen} ({row.probe})" if row.probe and row.seen else row.seen
    what = "; ".join(each for each in (seen, gone, *map(by_chance, row.once)) if each)
    return f"  {row.kind:<10}  {row.option:<28}{cost}{count}  {what}".rstrip()


def by_chance(once: str) -> str:
    """One of a row's `once`, for people."""
    return f"one of two boots: {once}"


def reason_of(option: kconfig.Option) -> str:
    """An option's comment on one line."""
    return " ".join(option.reason.split())


def commented(row: Row, option: kconfig.Option) -> Row:
    """An earlier row with the option's present place and comment."""
    row = msgspec.structs.replace(row, fragment=option.fragment, reason=reason_of(option))
    if row.kind not in ("stated", "unseen", "unasked"):
        return row
    return _without_sign(msgspec.structs.replace(row, seen=""))


def left_out(
    site: Site, manifest: manifests.Manifest, option: kconfig.Option, base: Whole, say: Callable[[str], None]
) -> Row:
    """The row of one option. Not raised: its kernel is not built."""
    row = Row(option.name, option.fragment, option.value, reason_of(option), "NOT RUN")
    name = f"without-{option.name}"
    try:
        made = variants.without(site.shop, option.name, say)
        row = msgspec.structs.replace(row, instead=made.value, gone=made.gone)
        if made.text == base.text:
            return msgspec.structs.replace(row, kind="unchanged")
        if kconfig.parse_config(made.text).get("64BIT") != "y":
            return msgspec.structs.replace(row, kind="not built", seen="the kernel would be one of 32 bits")
        kernel = variants.build(site.shop, made.text, name, f"kernel without {option.name}", say)
    except ToolError as error:
        # Only what compiler or linker refuse is the option's doing: not a full disk, or a machine without memory.
        log = site.shop.log / f"{name}.log"
        refused = REFUSED.search(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else None
        seen = refused[0] if refused else str(error).splitlines()[0]
        return msgspec.structs.replace(row, kind="not built" if refused else "NOT RUN", seen=seen)
    row = msgspec.structs.replace(row, bytes=packed(kernel) - base.bytes)
    return _judged(_booted(site, manifest, kernel, row, base), base)


def judge_of(launch: Launch, known: Mapping[str, catalogue.Pit]) -> str:
    """A hash of what judges a boot: the probes, this launch, these pits, and this program's code."""
    code = [files.sha256(paths.PACKAGE / f"{name}.py") for name in (*inject.CODE, *CODE)]
    judged = [(name, pit.symptom, pit.require, pit.leads_to) for name, pit in known.items()]
    return _hash(CERTIFICATE_SCHEMA, launch, PROBES, judged, code)


def key_of(site: Site, manifest: manifests.Manifest) -> str:
    """The key that a certificate must have for its rows to be taken: all that they depend on but their comments."""
    asked = sorted((each.name, each.value) for each in variants.requested(site.shop).values())
    judge = judge_of(site.matrix.launch, site.matrix.known)
    tree, program = site.shop.tree.tree.identity, files.sha256(site.program)
    return _hash(judge, manifest.files, site.compiler, site.qemu, tree, program, asked)


def _hash(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def with_all(site: Site, manifest: manifests.Manifest, say: Callable[[str], None]) -> Whole:
    """The kernel with all options. It must pass every probe: else what is seen without an option says nothing."""
    kernel = site.matrix.bench.bundle
    row = _booted(site, manifest, kernel, Row("with all options", "", "", "", "NOT RUN"), None)
    if row.kind != "NOT RUN" or row.seen:
        raise UserError(
            f"with all options: {row.probe}: {row.kind}: {row.seen}",
            "doit boot-test; a certificate needs a healthy guest",
        )
    text = (kernel / "kernel.config").read_text(encoding="utf-8")
    size = packed(kernel)
    say(f"with all options: {size:,} bytes compressed, {row.instructions or 0:.1f} M instructions")
    for each in row.once:
        say(f"with all options: {by_chance(each)}")
    runs = site.matrix.folder / "runs"
    there = {each.name: userland.found(runs / f"with-all-options.{each.name}") for each in PROBES if _programs(each)}
    return Whole(text, size, row.instructions, there)


def packed(kernel: Path) -> int:
    """Bytes of the compressed kernel in a folder's bzImage; the file itself grows by whole pages only. UserError if it
    has none."""
    found = binary.payload((kernel / "bzImage").read_bytes())
    if found is None:
        raise UserError(f"{kernel / 'bzImage'}: its boot header names no compressed kernel", "doit build")
    return found.behind - found.start


def _booted(site: Site, manifest: manifests.Manifest, kernel: Path, row: Row, base: Whole | None) -> Row:
    """The row with the first probe that shows something twice, or with what the kernel costs."""
    for probe in PROBES:
        found = _probed(site, manifest, kernel, row, base, probe)
        if found.kind != "NOT RUN":
            # A boot can be lost by chance: what only one of two boots shows is not the option's doing.
            again = _probed(site, manifest, kernel, row, base, probe)
            if again.kind == "NOT RUN" and not again.seen:
                once = f"{found.kind}: {found.seen} ({probe.name})"
                again = msgspec.structs.replace(again, once=(*again.once, once))
            found = again
        if found.kind != "NOT RUN" or found.seen:
            return found
        row = found
    return row


def _probed(
    site: Site, manifest: manifests.Manifest, kernel: Path, row: Row, base: Whole | None, probe: catalogue.Injection
) -> Row:
    """The row with what one boot shows; NOT RUN as long as it shows nothing, and with a reason if there was no boot."""
    folder = site.matrix.folder / "runs" / f"{row.option}.{probe.name}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    matrix = msgspec.structs.replace(site.matrix, kernels=lambda _: kernel)
    # With options, so that this kernel is started, not the bundle's.
    each = msgspec.structs.replace(probe, options={row.option: False})
    more = userland.devices(site.program, probe.launch) if _programs(probe) else ()
    trial, why = inject.attempt(matrix, each, manifest, folder, button=probe.name == "button", more=more)
    if trial is None or trial.verdict is None:
        return msgspec.structs.replace(row, probe=probe.name, seen=why or (trial.refusal if trial else ""))
    # The contract knows it from the config; what counts here is what a boot shows.
    named = ", ".join(hit.id for hit in trial.blind.roots)
    wrong = [name for name in inject.wrong_rows(trial) if name != "pits"]
    if trial.verdict.result == "lost":
        seen = f"{trial.verdict.reason}{f'; pit {named}' if named else ''}"
        return msgspec.structs.replace(row, kind="not booted", probe=probe.name, seen=seen)
    if wrong:
        seen = f"{', '.join(wrong)}{f'; pit {named}' if named else ''}"
        return msgspec.structs.replace(row, kind="row", probe=probe.name, seen=seen)
    if named:
        return msgspec.structs.replace(row, kind="pit", probe=probe.name, seen=named)
    if probe.name == "counted":
        count = instructions(trial)
        less = base.instructions if base is not None and base.instructions is not None else 0.0
        row = msgspec.structs.replace(row, instructions=None if count is None else round(count - less, 1))
    there = userland.found(folder) if _programs(probe) else frozenset()
    if base is not None and (lost := base.userland.get(probe.name, frozenset()) - there):
        seen = f"a program's {', '.join(sorted(lost)) if there else 'console'}"
        return msgspec.structs.replace(row, kind="row", probe=probe.name, seen=seen)
    if base is not None:
        shutil.rmtree(folder)
    return row


def _programs(probe: catalogue.Injection) -> bool:
    """Whether it starts userland.py's program."""
    return "root" in probe.launch


def instructions(trial: runner.Trial) -> float | None:
    """Of the kernel to initd's start, in millions, where the guest's clock counts them."""
    times = trial.report.record("times")
    return float(times["start"]) * 1e3 if "start" in times else None


def _judged(row: Row, base: Whole) -> Row:
    """The row of a guest that passed every probe, by what its kernel costs."""
    if row.kind != "NOT RUN" or row.seen:
        return row
    if row.bytes is not None and row.bytes >= PACKED:
        return msgspec.structs.replace(row, kind="size", seen=f"larger by {row.bytes:,} bytes")
    if row.instructions is not None and base.instructions and row.instructions >= COUNTED * base.instructions:
        return msgspec.structs.replace(row, kind="time", seen=f"{row.instructions:+.1f} M instructions")
    return _without_sign(row)


def _without_sign(row: Row) -> Row:
    """The row of an option that no test here shows anything of."""
    if UNTESTED in row.reason:
        return msgspec.structs.replace(row, kind="stated", seen=row.reason.partition(UNTESTED)[2])
    return msgspec.structs.replace(row, kind="unseen" if row.fragment else "unasked")


def summary(certificate: Certificate) -> str:
    """How many rows are of which kind."""
    kinds = [row.kind for row in certificate.rows]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in MEANING if kind in kinds)
