# SPDX-License-Identifier: Apache-2.0
"""The command `minguest`: for those who use a release. Needs none of what builds one."""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from minguest import VERSION, paths, settings
from minguest.boottest import runner
from minguest.bundle import manifests
from minguest.diagnose import catalogue
from minguest.host import checks, survey, vfio
from minguest.model import Launch
from minguest.release import sshsig
from minguest.util import pci, terminal
from minguest.util.errors import MinguestError, UserError, printable, shown_url
from minguest.vm import launch


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when all holds and could be said, 1 when not, 2 for words that it does not know."""
    with terminal.streams() as out:
        status = _run(argv)
        out.flush()
        if out.lost:
            print(f"minguest: {terminal.complaint(out.lost)}", file=sys.stderr)
    return status or int(bool(out.lost))


def _run(argv: Sequence[str] | None) -> int:
    terminal.end_on_signals()
    try:
        words = _parser().parse_args(argv)
        status: int = words.run(words)
        return status
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except MinguestError as error:
        print(f"minguest: {error}", file=sys.stderr)
    except OSError as error:
        name = printable(str(error.filename)) if error.filename else "the system"
        print(f"minguest: {name}: {error.strerror or error}", file=sys.stderr)
    except MemoryError:
        print("minguest: not enough memory", file=sys.stderr)
    except KeyboardInterrupt:
        print("minguest: interrupted", file=sys.stderr)
        return terminal.INTERRUPTED
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minguest", description="Gets, verifies and tries releases of guests for GPU passthrough."
    )
    parser.add_argument("--version", action="version", version=f"minguest {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "verify",
        help="signature, sums, SBOM, provenance and evidence of a release",
        description="Exit status 0 only when all of it holds. What was not checked is said.",
    )
    command.add_argument("release", help="a folder, oci://REGISTRY/REPOSITORY[:VERSION], or https://…")
    _trust(command)
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "pull",
        help="get a release and verify it",
        description="Leaves a folder with a run-guest in it, or nothing.",
    )
    command.add_argument("source", help="oci://REGISTRY/REPOSITORY[:VERSION], or https://…")
    command.add_argument("--to", type=Path, metavar="DIR", help="the new folder; else NAME-VERSION here")
    _trust(command)
    command.set_defaults(run=_pull)

    command = commands.add_parser(
        "boot-test",
        help="start a release or bundle in QEMU and judge it",
        description="What doit boot-test does, for a folder that was not built here. Needs QEMU.",
    )
    command.add_argument("folder", type=Path, help="a release or bundle")
    command.add_argument("--work", type=Path, metavar="DIR", help="for console and verdict; else FOLDER.boot-test")
    for name, text in runner.OPTIONS.items():
        command.add_argument(f"--{name}", default="", help=text)
    for name, text in runner.FLAGS.items():
        command.add_argument(f"--{name}", action="store_true", help=text)
    command.set_defaults(run=_boot_test)

    command = commands.add_parser(
        "diagnose",
        help="name the known pit that a guest's console tells of",
        description="Of any kernel, however it was started. Exit status 0 whenever the log could be read.",
    )
    command.add_argument("log", type=Path, help="the console, as a serial port carried it to a file")
    command.add_argument("--report", type=Path, metavar="FILE", help="initd's report, or a boot test's report.json")
    command.set_defaults(run=_diagnose)

    command = commands.add_parser(
        "host-check",
        help="whether this host can give a card to a guest, and what to do",
        description="Reads, never writes. Exit status 0 when nothing that a passthrough needs is wrong.",
    )
    command.add_argument("folder", type=Path, nargs="?", help="a release or bundle: its launch is what is requested")
    command.add_argument("--gpu", default="", metavar="BDF,…", help="the host's cards; else those of the launch")
    command.add_argument("--memory", default="", metavar="SIZE", help="of the guest, such as 2G; else the launch's")
    command.set_defaults(run=_host_check)

    command = commands.add_parser(
        "host-bind",
        help="give cards, with all of their IOMMU groups, to vfio-pci",
        description="Shows every write to sysfs, in order, and makes them only with --yes. Whole, or not at all.",
    )
    vfio.add_words(command, vfio.bind)

    command = commands.add_parser(
        "host-unbind",
        help="put back exactly what host-bind took",
        description="Of the cards that are named, or of all; with --yes, else it shows every write to sysfs.",
    )
    vfio.add_words(command, vfio.unbind)

    command = commands.add_parser(
        "cache",
        help="what downloads, trees and kernels take, and clearing them away",
        description="Shows; removes only with --prune. What is removed is fetched or built again when it is wanted.",
    )
    command.add_argument("--prune", action="store_true", help="remove leftovers, and what was not used for long")
    command.add_argument(
        "--older-than", type=float, default=30, metavar="DAYS", help="not used for so long (default 30; 0: everything)"
    )
    command.set_defaults(run=_cache)
    return parser


def _trust(command: argparse.ArgumentParser) -> None:
    who = command.add_mutually_exclusive_group()
    who.add_argument("--key", type=Path, metavar="FILE.pub", help="the public key that must have signed it")
    who.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help=f"allowed signers, as ssh-keygen reads them; else {settings.trusted_keys()}",
    )
    who.add_argument("--unsigned", action="store_true", help="accept an unsigned release: nobody vouches for it")
    command.add_argument("--allow-failed", action="store_true", help="accept checks that its own maker saw fail")


def _verify(words: argparse.Namespace) -> int:
    from minguest.publish import pull  # noqa: PLC0415 - requests is slow to import
    from minguest.release import verify  # noqa: PLC0415 - as above

    pull.check_source(words.release)
    with _trusted(words) as trusted:
        source, cache, configs = words.release, settings.cache_folder(), settings.registry_configs()
        with pull.at_hand(source, trusted, cache, configs, _say) as folder:
            report = verify.verify(folder, trusted, allow_failed=words.allow_failed)
    print(verify.table(report))
    if not report.holds:
        print(f"minguest: {shown_url(words.release)}: does NOT hold", file=sys.stderr)
        return 1
    assert report.facts is not None
    print(f"{report.facts.name} {report.facts.version}: holds{'' if report.facts.signed else ', UNSIGNED'}")
    return 0


def _pull(words: argparse.Namespace) -> int:
    from minguest import cache  # noqa: PLC0415 - as above
    from minguest.publish import pull  # noqa: PLC0415 - as above
    from minguest.release import verify  # noqa: PLC0415 - as above

    with _trusted(words) as trusted:
        place, report = pull.pull(
            words.source,
            words.to,
            trusted,
            settings.cache_folder(),
            settings.registry_configs(),
            allow_failed=words.allow_failed,
            say=_say,
        )
    cache.forget_pulled(settings.cache_folder(), time.time())
    print(verify.table(report))
    print(f"{place}: holds; start it with {place / 'run-guest'}")
    return 0


def _boot_test(words: argparse.Namespace) -> int:
    if not words.folder.is_dir():
        raise UserError(f"{words.folder}: no such folder", "a release that was pulled, or a bundle")
    folder: Path = words.folder.absolute()
    manifest = manifests.load(folder)
    work: Path = (words.work or folder.with_name(f"{folder.name}.boot-test")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    bench = runner.Bench(folder.name, folder, work / "boot-test", work / "kvm.json", paths.known_pits())
    requested = launch.Options(**{name: getattr(words, name) for name in launch.Options.__struct_fields__})
    runner.run(bench, requested, manifest.guest.launch, _say)
    print(f"console, report and verdict: {bench.folder}")
    return 0


def _diagnose(words: argparse.Namespace) -> int:
    seen = catalogue.see(catalogue.read_log(words.log), catalogue.read_report(words.report) if words.report else None)
    _say(catalogue.describe(catalogue.diagnose(catalogue.load(paths.known_pits()), seen)))
    return 0


def _host_check(words: argparse.Namespace) -> int:
    wanted, ovmf, proof = Launch(gpus=()), "", None
    if words.folder is not None:
        folder: Path = words.folder.absolute()
        manifest = manifests.load(folder)
        wanted, ovmf = manifest.guest.launch, manifest.firmware.version
        proof = folder.with_name(f"{folder.name}.boot-test") / "kvm.json"
    if words.memory:
        wanted = msgspec.structs.replace(wanted, memory=words.memory, max_memory="")
    named = list(filter(None, words.gpu.split(","))) or [name for name in wanted.gpus if pci.is_address(name)]
    facts = survey.read(cards=[pci.address(card, "--gpu") for card in named])
    rows = checks.checks(facts, checks.wish(wanted, named, proof, ovmf, facts.release))
    _say(checks.table(rows))
    if wrong := checks.missing(rows):
        print(f"minguest: this host cannot give a card to a guest yet: {', '.join(wrong)}", file=sys.stderr)
        return 1
    return 0


def _cache(words: argparse.Namespace) -> int:
    from minguest import cache  # noqa: PLC0415 - no other command needs it

    if words.older_than < 0:
        raise UserError(f"--older-than {words.older_than:g}: a number of days, 0 or more")
    folder, store = settings.cache_folder(), paths.Store(settings.store_folder())
    now = time.time()
    found = cache.entries(folder, store)
    if words.prune:
        removed = cache.prune(found, store, words.older_than, now, _say)
        print(f"removed {len(removed)}, {sum(each.size for each in removed) / 1e6:,.1f} MB")
        found = cache.entries(folder, store)
    print(f"{folder}" + (f", {store.folder}" if store.folder != folder else ""))
    print(cache.table(found, now))
    return 0


def _trusted(words: argparse.Namespace) -> AbstractContextManager[sshsig.Trusted | None]:
    return sshsig.trusting(words.key, words.trusted_keys or settings.trusted_keys(), unsigned=words.unsigned)


def _say(text: str) -> None:
    # It may quote a guest: its console, its report.
    print(printable(text, keep="\n\t"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
