# SPDX-License-Identifier: Apache-2.0
"""What the commands of `minguest` do. Each gives an Answer: a text for a person, and the same as data for --json."""

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from minguest import paths, settings
from minguest.bundle import manifests
from minguest.diagnose import answer, catalogue, libvirt, logs, matching
from minguest.host import checks, survey, vfio
from minguest.model import Launch
from minguest.release import sshsig
from minguest.util import pci
from minguest.util.errors import GuestError, UserError, shown_url
from minguest.vm import bar_window, bar_window_text, cards, launch

if TYPE_CHECKING:
    from minguest.diagnose.doctor import Report
    from minguest.kernel.image import Image

# SLOW: a module whose libraries take long to import is imported by the commands that use it: all others start without.

# Most cards of a kind that are planned for. A PCI segment has 256 buses, and a card behind a root port needs one.
COUNT_MAX = 256

Say = Callable[[str], None]
"""Shows progress, at once."""


class Answer(msgspec.Struct, frozen=True):
    """What a command found out."""

    text: str
    """For a person; empty where all was said already."""
    data: Mapping[str, Any]
    """For a program."""
    wrong: str = ""
    """Why the exit status is not 0; empty: it is."""
    status: int = 1
    """The exit status where something is wrong."""


def verify(options: argparse.Namespace, say: Say) -> Answer:
    """Signature, sums and papers of a release."""
    from minguest.publish import pull as publish  # noqa: PLC0415 - see SLOW
    from minguest.release import verify as release  # noqa: PLC0415 - see SLOW

    publish.check_source(options.release)
    with _trusted(options) as trusted:
        cache, configs = settings.cache_folder(), settings.registry_configs()
        with publish.as_folder(options.release, trusted, cache, configs, say) as folder:
            report = release.verify(folder, trusted, allow_failed=options.allow_failed)
    text, data = release.table(report), {"holds": report.holds, "facts": report.facts, "rows": report.rows}
    if not report.holds:
        return Answer(text, data, f"{shown_url(options.release)}: does NOT hold")
    assert report.facts is not None
    unsigned = "" if report.facts.signed else ", UNSIGNED"
    return Answer(f"{text}\n{report.facts.name} {report.facts.version}: holds{unsigned}", data)


def pull(options: argparse.Namespace, say: Say) -> Answer:
    """Get a release and verify it."""
    from minguest import cache  # noqa: PLC0415 - see SLOW
    from minguest.publish import pull as publish  # noqa: PLC0415 - see SLOW
    from minguest.release import verify as release  # noqa: PLC0415 - see SLOW

    with _trusted(options) as trusted:
        place, report = publish.pull(
            options.source,
            options.to,
            trusted,
            settings.cache_folder(),
            settings.registry_configs(),
            allow_failed=options.allow_failed,
            say=say,
        )
    cache.forget_pulled(settings.cache_folder(), time.time())
    return Answer(
        f"{release.table(report)}\n{place}: holds; start it with {place / 'run-guest'}",
        {"folder": place, "holds": report.holds, "facts": report.facts, "rows": report.rows},
    )


def boot_test(options: argparse.Namespace, say: Say) -> Answer:
    """Start a release or a bundle, and judge it. UserError, or ToolError, where it could not be started."""
    from minguest.boottest import runner  # noqa: PLC0415 - see SLOW

    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder", "name a release that was pulled, or a bundle")
    folder: Path = options.folder.resolve()
    manifest = manifests.read(folder)  # the boot test itself checks every byte
    requested = launch.Options(**{name: getattr(options, name) for name in launch.Options.__struct_fields__})
    runner.settled(folder, manifest, requested, manifest.guest.launch)  # before a folder is made
    work: Path = options.work.resolve() if options.work else paths.boot_tested(folder)
    bench = runner.Bench(folder.name, folder, work / "boot-test", work / "kvm.json", paths.known_pits())
    wrong = ""
    try:
        runner.run(bench, requested, manifest.guest.launch, say)
    except GuestError as error:
        wrong = str(error)
    try:
        outcome = msgspec.json.decode((bench.folder / "verdict.json").read_bytes())
    except FileNotFoundError:
        outcome = None
    data = {"folder": bench.folder, "outcome": outcome}
    return Answer("" if wrong else f"console, report and verdict: {bench.folder}", data, wrong)


def diagnose(options: argparse.Namespace, say: Say) -> Answer:
    """What the logs of one boot show: a known pit, lines that look like trouble, or what is seen to be well."""
    given = options.report
    names = list(dict.fromkeys(options.log))
    if not given and (reports := [name for name in names if matching.is_report(name)]):
        given = Path(reports[0])
        names.remove(reports[0])
    if not names and not options.libvirt and not given:
        raise UserError("no log", "minguest diagnose LOG…; - is standard input: dmesg | minguest diagnose -")
    if options.log.count(logs.STDIN) > 1:
        raise UserError("standard input can be read only once", "pass - once")
    pits = catalogue.load(paths.known_pits())
    subsystems = answer.load(paths.known_subsystems())
    read = [logs.read(log) for log in names]
    if options.libvirt:
        read += libvirt.collect(options.libvirt, say)
    report = matching.read_report(given) if given else None
    if report and not read and not report.log:
        raise UserError(
            f"{given}: a report without the kernel's log: its console was not quiet",
            f"minguest diagnose CONSOLE --report {given}",
        )
    diagnosis, seen = matching.diagnose_logs(pits, read, report)
    found = answer.answer(diagnosis, seen, subsystems)
    heads = [f"{each.name}: {', '.join(each.kinds)}" for each in seen] if len(seen) > 1 else []
    text = "\n".join([*heads, answer.describe(found, verbose=options.verbose)])
    return Answer(text, {"logs": [{"log": each.name, "kinds": each.kinds} for each in seen], **_answered(found)})


def _answered(found: answer.Answer) -> dict[str, Any]:
    def hits(several: tuple[matching.Found, ...]) -> list[dict[str, Any]]:
        return [
            {
                "pit": hit.id,
                **{name: getattr(hit.pit, name) for name in ("title", "layer", "cause", "fix", "stack", "look", "ask")},
                "lines": hit.lines,
                "proof": hit.proof,
                "follows": hit.follows,
            }
            for hit in several
        ]

    diagnosis = found.diagnosis
    return {
        "ending": found.ending,
        "roots": hits(diagnosis.roots),
        "follows": hits(diagnosis.follows),
        "unexplained": hits(diagnosis.unexplained),
        "questions": hits(diagnosis.questions),
        "trouble": found.trouble,
        "well": found.well,
        "not_shown": found.unseen,
        "notes": found.notes,
        "stacks": found.stacks,
        "card": found.card,
        "ruled_out": [{"pit": name, "why": why} for name, why in diagnosis.ruled_out],
    }


# The exit statuses for a file that is no kernel for this, and for one that is not there.
NO_KERNEL, NOT_THERE = 3, 2


def doctor(options: argparse.Namespace, say: Say) -> Answer:
    """What kernels would do under OVMF, before their first boot."""
    from minguest.boottest import facts as known  # noqa: PLC0415 - see SLOW
    from minguest.diagnose import doctor as examination  # noqa: PLC0415 - see SLOW
    from minguest.kernel import image  # noqa: PLC0415 - see SLOW

    if options.config and len(options.image) > 1:
        raise UserError(f"--config {options.config}: there are {len(options.image)} kernels", "pass one kernel with it")
    if options.source and not options.fragment:
        raise UserError(f"--source {options.source}: only with --fragment", "add --fragment")
    wanted = _launch(options.guest) if options.guest else examination.PLAIN
    if options.cpus is not None:
        settings.check_cpus(options.cpus, "--cpus")
        wanted = msgspec.structs.replace(wanted, cpus=options.cpus, max_cpus=options.cpus)
    if options.gpu:
        names = () if options.gpu == "none" else tuple(options.gpu.split(","))
        wanted = msgspec.structs.replace(wanted, gpus=names)
    requested = known.of_launch(launch.planned(wanted))
    pits, needs = catalogue.load(paths.known_pits()), examination.load(paths.known_drivers())
    given = image.read(options.config.expanduser()) if options.config else None
    if given and given.config is None:
        raise UserError(f"--config {options.config}: a {given.kind} that carries no config", "pass the .config itself")
    reports, refused = [], {}
    for path in options.image:
        try:
            looked = image.read(path.expanduser(), examination.look_for())
        except UserError as error:
            refused[path] = error
        else:
            config, said = _config_of(looked, path.expanduser(), given)
            report = examination.examine(looked, config, pits, wanted, requested, needs, options.driver)
            reports.append(msgspec.structs.replace(report, notes=(*said, *report.notes)))
    data = {
        "kernels": [
            {
                "path": report.image.path, "kind": report.image.kind, "version": report.image.version,
                "works": not report.wrong, "findings": report.findings, "boots_from": report.boots_from,
                "notes": report.notes,
            }
            for report in reports
        ],
        "refused": {str(path): error.message for path, error in refused.items()},
    }  # fmt: skip
    if options.fragment:
        text = examination.fragment(reports, _needed(options.source, reports)).rstrip("\n")
    elif len(options.image) > 1:
        text = examination.table(reports) if reports else ""
    else:
        text = "\n".join(map(examination.describe, reports))
    if refused:
        status = NO_KERNEL if all(path.expanduser().exists() for path in refused) else NOT_THERE
        return Answer(text, data, "\n".join(map(str, refused.values())), status)
    return Answer(text, data, _would_not_work(reports, fragment=options.fragment))


def _would_not_work(reports: Sequence["Report"], *, fragment: bool) -> str:
    """What keeps kernels from working, and what to do; empty for nothing. `fragment`: whether that is printed."""
    from minguest.diagnose import doctor as examination  # noqa: PLC0415 - see SLOW

    roots = [each for report in reports for each in report.wrong if not each.follows]
    if not roots:
        return ""
    remedies = []
    if not fragment and any(map(examination.missing, reports)):
        remedies.append("--fragment prints the options to set")
    if pits := list(dict.fromkeys(each.pit for each in roots if each.pit)):
        names = pits[0] if len(pits) == 1 else f"{{{','.join(pits)}}}"
        remedies.append(f"cause and fix of each: {paths.known_pits()}/{names}.toml")
    wrong = f"under OVMF it would not work: {', '.join(dict.fromkeys(each.pit or each.option for each in roots))}"
    return f"{wrong}\n  remedy: {'; '.join(remedies)}" if remedies else wrong


def _needed(tree: Path | None, reports: Sequence["Report"]) -> dict[str, dict[str, str]]:
    """What the missing options depend on in a source tree, which is read for each config."""
    from minguest.diagnose import doctor as examination  # noqa: PLC0415 - see SLOW
    from minguest.kernel import explain  # noqa: PLC0415 - see SLOW

    found: dict[str, dict[str, str]] = {}
    for report in reports if tree else ():
        if tree and report.config is not None:
            text = "".join(f"CONFIG_{option}={value}\n" for option, value in report.config.items() if value != "n")
            options = [each.option for each in examination.missing(report) if each.want == "y"]
            found |= explain.needed(tree.expanduser(), text, options)
    return found


def _config_of(looked: "Image", path: Path, given: "Image | None") -> tuple[Mapping[str, str] | None, list[str]]:
    """The config that was passed, else the one beside an image that carries none; and what to say about it."""
    from minguest.kernel import image, pairing  # noqa: PLC0415 - see SLOW

    if given is not None and given.config is not None:
        if why := pairing.mismatch(looked, given.config, given.version):
            raise UserError(f"--config {given.path}: of another kernel than {path}: {why}", "pass the image's own")
        return given.config, []
    found = pairing.beside(path) if looked.config is None else None
    if found is None:
        return None, []
    try:
        own = image.read(found)
    except UserError as error:
        return None, [f"the config beside it is not used: {error.message}"]
    if own.config is None or (why := pairing.mismatch(looked, own.config, own.version)):
        return None, [f"{found} beside it is not used: {why or 'no config'}"]
    return own.config, [f"with the config beside it, {found}"]


def plan(options: argparse.Namespace, say: Say) -> Answer:
    """Whether the BARs of cards find room under OVMF, and what QEMU has to pass to it."""
    from minguest.boottest import runner  # noqa: PLC0415 - see SLOW

    wanted = _launch(options.guest)
    bits, vendor = bar_window.cpu(wanted.cpu, wanted.accel, runner.CPUINFO.read_text(encoding="utf-8"))
    bits = bits if options.phys_bits is None else options.phys_bits
    memory = settings.size(options.memory or wanted.memory, "--memory")
    most = settings.size(wanted.max_memory, "launch.max_memory") if wanted.max_memory else 0
    found = _cards(options, wanted)

    def at(bits: int) -> bar_window.Plan:
        return bar_window.plan(
            found, memory, bits, max_memory=most, slots=wanted.slots, vendor=vendor, hotplug=options.hotplug
        )

    made = at(bits)
    wrong = "" if made.fits else f"the cards do not fit at {bits} physical address bits; the warning says what helps"
    data = {"plan": made, "warnings": bar_window_text.warnings(made)}
    return Answer(bar_window_text.describe(made, at), data, wrong)


def _cards(options: argparse.Namespace, wanted: Launch) -> list[cards.Card]:
    """The cards that the command line names, else the guest's own; --count of each."""
    from minguest.boottest import runner  # noqa: PLC0415 - see SLOW

    if not 1 <= options.count <= COUNT_MAX:
        raise UserError(f"--count {options.count}: must be from 1 to {COUNT_MAX}")
    hosts, saved = _names(options.gpu), _names(options.card)
    if not hosts and not saved:
        hosts = [name for name in wanted.gpus if pci.is_address(name) or name.startswith("bar:")]
    if not hosts and not saved:
        known = ", ".join(cards.known(paths.known_cards()))
        raise UserError(
            "no card", f"--gpu BDF,… for cards of this host; --card FILE.toml for any other, or --card NAME: {known}"
        )
    if options.count > 1 and any(pci.is_address(name) for name in hosts):
        raise UserError(f"--count {options.count}: each card of this host has its own address", "--gpu BDF,BDF,…")
    found = cards.named(hosts, runner.SYSFS) + [cards.described(name, paths.known_cards()) for name in saved]
    return [card for card in found for _ in range(options.count)]


def host_check(options: argparse.Namespace, say: Say) -> Answer:
    """Whether this host can give a card to a guest."""
    wanted, ovmf = Launch(gpus=()), ""
    proofs = [options.work / "kvm.json"] if options.work else []
    if options.folder is not None:
        folder: Path = options.folder.resolve()
        manifest = manifests.read(folder)
        wanted, ovmf = manifest.guest.launch, manifest.firmware.version
        proofs = proofs or paths.kvm_records(folder)
    if options.memory:
        settings.size(options.memory, "--memory")
        wanted = msgspec.structs.replace(wanted, memory=options.memory, max_memory="")
    named = _names(options.gpu) or [name for name in wanted.gpus if pci.is_address(name)]
    facts = survey.read(cards=[pci.address(card, "--gpu") for card in named])
    rows = checks.checks(facts, checks.wish(wanted, named, proofs, ovmf, facts.release))
    missing = checks.missing(rows)
    wrong = f"this host cannot give a card to a guest yet: {', '.join(missing)}" if missing else ""
    return Answer(checks.table(rows), {"rows": rows, "missing": missing}, wrong)


def host_bind(options: argparse.Namespace, say: Say) -> Answer:
    """Give cards, with their whole IOMMU groups, to vfio-pci."""
    writes = vfio.bind(vfio.Host(options.root, options.state), _names(options.gpu), act=options.yes, say=say)
    return Answer("", {"done": options.yes, "writes": writes})


def host_unbind(options: argparse.Namespace, say: Say) -> Answer:
    """Put back what host-bind took."""
    writes = vfio.unbind(vfio.Host(options.root, options.state), _names(options.gpu), act=options.yes, say=say)
    return Answer("", {"done": options.yes, "writes": writes})


def cache(options: argparse.Namespace, say: Say) -> Answer:
    """What downloads, trees and kernels take; with --prune, remove what was not used."""
    from minguest import cache as kept  # noqa: PLC0415 - no other command needs it

    if not 0 <= options.older_than < math.inf:  # nan is neither
        raise UserError(f"--older-than {options.older_than:g}: must be a number of days, 0 or more")
    folder, store = settings.cache_folder(), paths.Store(settings.store_folder())
    now = time.time()
    text, found, removed = [], kept.entries(folder, store), []
    if options.prune:
        removed = kept.prune(found, store, options.older_than, now, say)
        text = [f"removed {len(removed)}, {sum(each.size for each in removed) / 1e6:,.1f} MB"]
        found = kept.entries(folder, store)
    text += [f"{folder}" + (f", {store.folder}" if store.folder != folder else ""), kept.table(found, now)]

    def rows(entries: list[Any]) -> list[dict[str, Any]]:
        return [{"kind": each.kind, "path": each.path, "size": each.size, "used": each.used} for each in entries]

    return Answer("\n".join(text), {"entries": rows(found), "removed": rows(removed)})


def history(options: argparse.Namespace, say: Say) -> Answer:
    """Which cells of a store changed their result."""
    from minguest.scale import history as made  # noqa: PLC0415 - see SLOW
    from minguest.scale import store as shared  # noqa: PLC0415 - see SLOW

    name = shared.check(options.store)
    if not name.startswith("s3:") and not Path(name).is_dir():
        raise UserError(f"{options.store}: no such folder", "name the store= of a run with scheduler=")
    found = made.read(shared.opened(name))
    wrong = "; ".join(found.poisoned)
    return Answer(made.table(found), msgspec.structs.asdict(found), wrong)


def completion(options: argparse.Namespace, say: Say) -> Answer:
    """The script that makes a shell complete this command's arguments."""
    from argcomplete import shell_integration  # noqa: PLC0415 - see SLOW

    # Without bash's own default: it would offer files for a number.
    script = shell_integration.shellcode(["minguest"], use_defaults=False, shell=options.shell)
    return Answer(script.rstrip("\n"), {"shell": options.shell, "script": script})


def _launch(guest: str) -> Launch:
    """The launch of a guest. The default is a checkout's configs/guest.toml; an installed minguest has it built in."""
    checkout = paths.checkout()
    if checkout is None:
        if guest in ("", "default"):
            return Launch()
        if not guest.endswith(".toml"):
            raise UserError(
                f"--guest {guest}: an installed minguest has no guest of that name, because it has no configs/guests/",
                "--guest FILE.toml names the file of a guest; without --guest the launch is the built-in one",
            )
    path = settings.guest_file(checkout or Path(), guest or None)
    return settings.guest(path).launch if guest or path.is_file() else Launch()


def _names(listed: str) -> list[str]:
    return [name for name in listed.split(",") if name]


def _trusted(options: argparse.Namespace) -> AbstractContextManager[sshsig.Trusted | None]:
    return sshsig.trusting(options.key, options.trusted_keys or settings.trusted_keys(), unsigned=options.unsigned)
