# SPDX-License-Identifier: Apache-2.0
"""Makes a release from a tested bundle: a folder with its contents, the evidence for them, and signatures over both.

docs/release.md describes each file.
"""

import gzip
import io
import tarfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from minguest import VERSION, paths
from minguest.boottest import runner
from minguest.bundle import manifests
from minguest.diagnose import catalogue
from minguest.kernel import kconfig
from minguest.paths import Layout
from minguest.release import attest, evidence, layout, provenance, sbom, sshsig, verify
from minguest.util import files, run, strictjson, templates
from minguest.util.errors import MinguestError, UserError, printable
from minguest.vm import console, report


class Before(msgspec.Struct, frozen=True):
    """The previous release, which the notes compare with."""

    facts: layout.Facts
    manifest: manifests.Manifest
    config: dict[str, str]
    seconds: evidence.Seconds | None


def make(
    at: Layout,
    version: str | None,
    key: Path | None,
    since: Path | None,
    *,
    unsigned: bool,
    redistribute: Collection[str] = (),
    say: Callable[[str], None],
) -> layout.Release:
    """Write the release folder, complete or not at all; a release of another version that was there becomes `before`.

    Raises UserError: the boot test of the guest's own launch did not pass on exactly these bytes, the bundle breaks
    its contract, there is no key and `unsigned` was not requested, the version is invalid, or a package in the bundle
    may be passed on only under conditions and is not among `redistribute`.
    """
    version = check(version, key, unsigned=unsigned)
    manifest = manifests.load(at.bundle)
    if manifest.config.problems:
        raise UserError(
            f"{at.bundle}: was built with contract=ignore and breaks its contract, so it is not released",
            "fix the config and build without contract=ignore",
        )
    _check_restricted(manifest, at, redistribute)
    if missing := [name for name in (paths.RUN_GUEST, paths.DOMAIN) if name not in manifest.files]:
        raise UserError(f"{at.bundle}: has no {' and no '.join(missing)}: an older minguest built it", manifests.AGAIN)
    checks = evidence.checks(
        at,
        manifest,
        runner.nr_cpus_of(at.bundle),
        catalogue.load(at.pits),
    )
    _own_test(checks, manifest)
    before = _before(at, version, since)
    facts = layout.Facts(
        schema=layout.SCHEMA,
        name=at.name,
        version=version,
        signed=not unsigned,
        guest=at.guest,
        series=at.series,
        kernel=manifest.kernel.version,
        firmware=manifest.firmware.version,
        minguest=VERSION,
        previous=before.facts.version if before else None,
    )
    sign = None if unsigned or key is None else _signer(key)
    if at.release.exists() and _version_of(at.release) not in (version, None):
        with files.replacing_tree(at.release_before) as old:
            _copy_all(at.release, old)
    with files.replacing_tree(at.release) as folder:
        for name in (*manifest.files, layout.MANIFEST):
            _write(folder / name, (at.bundle / name).read_bytes())
        _write(folder / layout.EVIDENCE_FILES, pack(at, checks))
        _write(folder / layout.FACTS, msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n")
        _write(folder / layout.SBOM, sbom.render(manifest, at.name, version, _patches(at, manifest)))
        _attest(at, folder, manifest, checks, sign)
        view = _view(at, facts, manifest, checks, before, folder)
        _write(folder / layout.NOTES, templates.render(at.templates / "notes.md.j2", **view))
        _write(folder / layout.PAGE, templates.render(at.templates / "release.html.j2", **view))
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        _write(folder / layout.SIZES, layout.render_sizes(sizes))
        sums = layout.render_sums({path.name: files.sha256(path) for path in folder.iterdir()}).encode()
        _write(folder / layout.SUMS, sums)
        if sign is not None:
            _write(folder / layout.SIGNATURE, sign(sums))
        # Ship nothing that a user's verification would refuse: a file may have changed since it was checked.
        verdict = verify.verify(folder, None if sign is None else sshsig.Anyone(), allow_failed=True)
        if not verdict.holds:
            raise UserError(
                f"the new release does not verify, so nothing was released\n{verify.table(verdict)}",
                "run doit release again, without a build or a boot test at the same time",
            )
    say(evidence.table(checks))
    if unsigned:
        say("UNSIGNED, as requested: minguest verify accepts it only with --unsigned")
    return layout.load(at.release)


def check(version: str | None, key: Path | None, *, unsigned: bool) -> str:
    """The version, which folders, registries and git accept.

    UserError for any other version, or if version or key is missing or there is no such key. Needs no bundle.
    """
    if version is not None and (not layout.VERSION.fullmatch(version) or version == "latest"):
        raise UserError(
            f"version={version}: not a version",
            "use letters, digits, '.', '_' and '-', beginning with a letter, a digit or '_', at most 128; not `latest`",
        )
    unsaid = key is None and not unsigned
    if version is None or unsaid:
        raise UserError(
            "; ".join(["no version for the release"] * (version is None) + ["no key to sign with"] * unsaid),
            "for example: doit release version=1.0 key=~/.ssh/id_ed25519\n"
            "  key=FILE or $MINGUEST_SIGNING_KEY names an SSH key, or a .pub of one in ssh-agent; with unsigned=yes in "
            "place of a key, every file of the release says that it is unsigned",
        )
    if key is not None:
        sshsig.check_key(key)
    return version


def _check_restricted(manifest: manifests.Manifest, at: Layout, redistribute: Collection[str]) -> None:
    packages = manifest.packages
    restricted = [name for name, package in packages.items() if package.restricted]
    if unknown := sorted(set(redistribute) - set(restricted)):
        raise UserError(
            f"redistribute={','.join(unknown)}: {at.bundle} has no such package whose licence restricts that",
            f"it has: {', '.join(restricted) or 'none'}",
        )
    if left := [name for name in restricted if name not in redistribute]:
        said = "; ".join(f"{name} {packages[name].version} ({packages[name].licence})" for name in left)
        raise UserError(
            f"{at.bundle}: has files of {said}, whose licence sets conditions for passing them on: not released",
            "release a guest without them, and let each user build this one; or, after you have read the licence "
            f"(/usr/share/doc in the package): redistribute={','.join(left)}",
        )


def pack(at: Layout, checks: Sequence[evidence.Check]) -> bytes:
    """The files that prove the checks, as a tar: the same content gives the same bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(name for check in checks for name in check.files):
            path = evidence.sources(at).get(name, at.evidence / name)
            data = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return gzip.compress(content.getvalue(), 9, mtime=0)


def _own_test(checks: Sequence[evidence.Check], manifest: manifests.Manifest) -> None:
    name = runner.own_test(manifest.guest.launch)
    own = next(check for check in checks if check.name == name)
    if own.result != "PASS":
        raise UserError(
            f"{name}: {own.result}, {own.reason}: only a bundle that passed its boot test with exactly these bytes "
            "is released",
            "doit boot-test, then doit release again; doit evidence also runs the other machines and CPU counts",
        )


def _signer(key: Path) -> Callable[[bytes], bytes]:
    return lambda data: sshsig.sign(data, key)


def _version_of(folder: Path) -> str | None:
    try:
        return layout.read_facts(folder).version
    except UserError:
        return None


def _before(at: Layout, version: str, since: Path | None) -> Before | None:
    """The release to compare with: the requested one, else the last one here of another version."""
    places = [since] if since is not None else [at.release, at.release_before]
    for place in places:
        if since is None and _version_of(place) in (version, None):
            continue
        found = layout.load(place)
        manifest = manifests.load(place)
        content = layout.read(place, layout.EVIDENCE, strictjson.LIMIT)
        statement = attest.unseal(content, str(place / layout.EVIDENCE), None)
        predicate = msgspec.convert(statement.predicate, evidence.Predicate)
        return Before(
            found.facts,
            manifest,
            kconfig.parse_config((place / "kernel.config").read_text(encoding="utf-8")),
            _own_seconds(predicate.checks, manifest),
        )
    return None


def _own_seconds(checks: Sequence[evidence.Check], manifest: manifests.Manifest) -> evidence.Seconds | None:
    name = runner.own_test(manifest.guest.launch)
    return next((check.seconds for check in checks if check.name == name), None)


def _copy_all(source: Path, target: Path) -> None:
    for path in sorted(source.iterdir()):
        _write(target / path.name, path.read_bytes())


def _write(path: Path, content: bytes | str) -> None:
    files.write(path, content)
    if path.name == paths.RUN_GUEST:
        path.chmod(path.stat().st_mode | 0o111)


def _patches(at: Layout, manifest: manifests.Manifest) -> dict[str, str]:
    texts = {}
    for patch in manifest.kernel.patches:
        path = at.patches / patch.file
        if not path.is_file() or files.sha256(path) != patch.sha256:
            raise UserError(
                f"{path}: is not the patch that the bundle was built with", "build the bundle again: doit build"
            )
        texts[patch.file] = path.read_text(encoding="utf-8")
    return texts


def _attest(
    at: Layout,
    folder: Path,
    manifest: manifests.Manifest,
    checks: Sequence[evidence.Check],
    sign: Callable[[bytes], bytes] | None,
) -> None:
    made = [*manifest.files, layout.MANIFEST]
    statement = attest.Statement(
        {name: files.sha256(folder / name) for name in made},
        provenance.KIND,
        provenance.predicate(manifest, commit(at.root)),
    )
    _write(folder / layout.PROVENANCE, attest.seal(statement, sign))
    predicate = evidence.Predicate(evidence.SCHEMA, VERSION, tuple(checks))
    statement = attest.Statement(
        {name: files.sha256(folder / name) for name in [*manifest.files, layout.EVIDENCE_FILES]},
        evidence.KIND,
        msgspec.to_builtins(predicate),
    )
    _write(folder / layout.EVIDENCE, attest.seal(statement, sign))


def commit(root: Path) -> str | None:
    """The checkout's commit in git; None if it is not a checkout, or has uncommitted changes."""
    if not (root / ".git").exists():
        return None
    git: list[str | Path] = ["git", "-C", root]
    try:
        status, head = run.run([*git, "rev-parse", "HEAD"], check=False)
        dirty, changes = run.run([*git, "status", "--porcelain"], check=False)
    except MinguestError:
        return None
    return head.strip() if status == 0 == dirty and not changes.strip() else None


# ── what the notes and the page show ──


def _view(
    at: Layout,
    facts: layout.Facts,
    manifest: manifests.Manifest,
    checks: Sequence[evidence.Check],
    before: Before | None,
    folder: Path,
) -> dict[str, Any]:
    config = kconfig.parse_config((folder / "kernel.config").read_text(encoding="utf-8"))
    own = runner.own_test(manifest.guest.launch)
    seen = msgspec.json.decode((at.evidence / own / "report.json").read_bytes(), type=report.Report)
    outcome = msgspec.json.decode((at.evidence / own / "verdict.json").read_bytes(), type=runner.Outcome)
    sizes = {name: file.size for name, file in manifest.files.items()}
    booted = [check for check in checks if check.seconds is not None]
    return {
        "facts": facts,
        "manifest": manifest,
        "checks": checks,
        "own": own,
        "seconds": _own_seconds(checks, manifest),
        "booted": booted,
        "longest": max([0.1, *(check.seconds.whole for check in booted if check.seconds)]),
        "accel": next((check.accel for check in checks if check.name == own), ""),
        "sizes": dict(sorted(sizes.items(), key=lambda row: -row[1])),
        "before": before,
        "changes": changes(before, manifest, config, _own_seconds(checks, manifest)) if before else [],
        "rows": outcome.verdict.checks,
        "pci": seen.pci,
        "bars": bars(seen.pci),
        "cmdline": seen.record("begin").get("cmdline", ""),
        "consoles": {check.name: _screen(at.evidence / check.name / "console.log") for check in booted},
        "options": len([value for value in config.values() if value != "n"]),
        "timeline": timeline(at.bench, manifest),
    }


class _Subject(msgspec.Struct):
    kind: str
    files: dict[str, manifests.File]


class _Measured(msgspec.Struct):
    subjects: dict[str, _Subject]


def timeline(bench: Path, manifest: manifests.Manifest) -> str:
    """The SVG that `bench boot` drew, if it measured a guest of this kernel, initrd and firmware; else empty."""
    try:
        measured = msgspec.json.decode((bench / "boot.json").read_bytes(), type=_Measured)
        drawn = (bench / "boot.svg").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    own = [
        each
        for each in measured.subjects.values()
        if each.kind == "ours" and each.files and each.files.items() <= manifest.files.items()
    ]
    return drawn if own else ""


def _screen(log: Path) -> str:
    """A console as text, without the firmware's escape codes."""
    return printable("\n".join(line.text for line in console.lines(log.read_bytes())).strip(), keep="\n\t")


def bars(devices: Sequence[report.PciDevice]) -> list[dict[str, Any]]:
    """Every memory BAR that has an address, in that order: start and end in bytes, and its device."""
    found = [
        {
            "start": int(bar.start, 16),
            "end": int(bar.start, 16) + bar.size - 1,
            "size": bar.size,
            "device": device.address,
            "index": bar.index,
            "kind": bar.kind,
            "gpu": device.gpu,
        }
        for device in devices
        for bar in device.bars
        if bar.assigned and bar.start and bar.size and bar.kind.startswith("mem")
    ]
    return sorted(found, key=lambda row: row["start"])


def changes(
    before: Before, manifest: manifests.Manifest, config: Mapping[str, str], seconds: evidence.Seconds | None
) -> list[tuple[str, list[str]]]:
    """The changes since the previous release: titles with their lines; titles without lines are left out."""
    old = before.manifest
    found = [
        ("Versions", _moved(_versions(old), _versions(manifest))),
        ("Patches", _moved(_patched(old), _patched(manifest))),
        ("Kernel config", _moved(before.config, config, "n")),
        ("Sizes in bytes", _moved(_sizes(old), _sizes(manifest))),
        ("Boot times in seconds, one noisy machine's", _moved(_times(before.seconds), _times(seconds))),
    ]
    return [(title, lines) for title, lines in found if lines]


def _versions(manifest: manifests.Manifest) -> dict[str, str]:
    packages = {name: package.version for name, package in manifest.packages.items()}
    return {"linux": manifest.kernel.version, "OVMF": manifest.firmware.version, **packages, **manifest.tools}


def _patched(manifest: manifests.Manifest) -> dict[str, str]:
    return {each.file: each.sha256[:12] for each in manifest.kernel.patches}


def _sizes(manifest: manifests.Manifest) -> dict[str, str]:
    return {name: str(file.size) for name, file in manifest.files.items()}


def _times(seconds: evidence.Seconds | None) -> dict[str, str]:
    phases = msgspec.to_builtins(seconds) if seconds else {}
    return {name: f"{value:.2f}" for name, value in phases.items() if value is not None}


def _moved(old: Mapping[str, str], new: Mapping[str, str], absent: str = "none") -> list[str]:
    """A line for each name whose value changed."""
    return [
        f"{name}: {old.get(name, absent)} → {new.get(name, absent)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, absent) != new.get(name, absent)
    ]
