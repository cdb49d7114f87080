# SPDX-License-Identifier: Apache-2.0
"""The command `minguest`: what needs no build, in a checkout and installed alike."""
# ruff: noqa: E402 - an interrupt during the imports must not end in a traceback

from minguest.util import terminal

terminal.end_on_interrupt("minguest: interrupted")

import argparse
import itertools
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from minguest import VERSION
from minguest.util.errors import MinguestError, printable

if TYPE_CHECKING:
    from minguest.commands import Answer

# LATE: takes a moment to import, and is imported when signals are handled: they end in one line, or in a document.

# The commands as --help shows them.
GROUPS: Mapping[str, Mapping[str, str]] = {
    "A guest that fails, or will": {
        "diagnose": "name the known pit that a guest's console shows",
        "doctor": "examine a kernel before its first boot under OVMF",
    },
    "Cards and their host": {
        "plan": "compute whether the BARs of cards fit under OVMF, and what to pass to it",
        "host-check": "check whether this host can give a card to a guest, and say what to do",
        "host-bind": "give cards, with their whole IOMMU groups, to vfio-pci",
        "host-unbind": "put back exactly what host-bind took",
    },
    "Releases": {
        "pull": "get a release and verify it",
        "verify": "check signature, sums, SBOM, provenance and evidence of a release",
        "boot-test": "start a release or a bundle in QEMU, and judge it",
    },
    "Results": {
        "history": "list the cells that changed their result, and with which QEMU, OVMF, kernel or compiler",
    },
    "This command": {
        "cache": "show how much space downloads, trees and kernels use, and prune them",
        "completion": "print the script for tab completion in bash, zsh or fish",
    },
}
# How the values of boot-test's options are shown.
METAVARS = {
    "cpus": "N",
    "memory": "SIZE",
    "gpu": "CARD,…",
    "driver": "NAME",
    "machine": "MACHINE",
    "accel": "ACCEL",
    "console": "full|quiet",
    "timeout": "SECONDS",
    "plug-cpus": "N",
    "unplug-cpus": "N",
    "plug-memory": "SIZE",
}
PIT = "A pit is a known way to fail, with its symptoms, cause, fix, and how to reproduce it."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 only when all holds and could be said, 1 when not, 2 for arguments that it does not know."""
    with terminal.streams() as out:
        return terminal.ending(out, _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    # Before parsing: arguments that cannot be parsed end in a document too.
    as_json, name = _wants_json(argv), next((each for each in argv if not each.startswith("-")), "")
    try:
        terminal.end_on_signals()
        from minguest import settings  # noqa: PLC0415 - see LATE

        parser = _parser(argv)
        if settings.completing():
            import argcomplete  # noqa: PLC0415 - only when a shell asks

            argcomplete.autocomplete(parser)
        options = parser.parse_args(argv)
        answer: Answer = options.run(options, _progress if as_json else _say)
    except (UsageError, SystemExit, MinguestError, OSError, MemoryError, KeyboardInterrupt) as error:
        status, wrong, said = _ending(error)
        if as_json and wrong:
            _document(name, {}, wrong)
        if said:
            print(said, file=sys.stderr)
        return status
    if as_json:
        _document(name, answer.data, answer.wrong)
    elif answer.text:
        _say(answer.text)
    if answer.wrong:
        print(f"minguest: {answer.wrong}", file=sys.stderr)
    return answer.status if answer.wrong else 0


def _ending(error: BaseException) -> tuple[int, str, str]:
    """The exit status, what is wrong, and what stderr says about it."""
    match error:
        case SystemExit(code=int(status)) if status:  # a signal: nothing is printed
            return status, f"ended by {signal.Signals(status - 128).name}", ""
        case SystemExit():  # after --help or --version
            return 0, "", ""
        case UsageError():
            return 2, str(error), f"{error.usage}{error.prog}: error: {error}"
        case KeyboardInterrupt():
            return terminal.INTERRUPTED, "interrupted", "minguest: interrupted"
        case OSError():
            named = printable(str(error.filename)) if error.filename else "the system"
            wrong = f"{named}: {error.strerror or error}"
        case MemoryError():
            wrong = "not enough memory"
        case _:
            wrong = str(error)
    return getattr(error, "exit_status", 1), wrong, f"minguest: {wrong}"


# How a shell completes an argument, by its metavar: argcomplete calls these with the prefix and more.
def _nothing(**_: Any) -> list[str]:
    return []


def _folders(prefix: str, **_: Any) -> list[str]:
    from argcomplete import completers  # noqa: PLC0415 - only when a shell asks

    return list(completers.DirectoriesCompleter()(prefix))


def _toml_or(prefix: str, names: Sequence[str]) -> list[str]:
    from argcomplete import completers  # noqa: PLC0415 - only when a shell asks

    return [*names, *completers.FilesCompleter(["toml"])(prefix)]


def _known_cards(prefix: str, **_: Any) -> list[str]:
    from minguest import paths  # noqa: PLC0415 - see LATE
    from minguest.vm import cards  # noqa: PLC0415 - see LATE

    before, comma, last = prefix.rpartition(",")
    return [f"{before}{comma}{each}" for each in _toml_or(last, cards.known(paths.known_cards()))]


def _known_guests(prefix: str, **_: Any) -> list[str]:
    from minguest import paths  # noqa: PLC0415 - see LATE

    checkout = paths.checkout()
    more = sorted(path.stem for path in (checkout / "configs/guests").glob("*.toml")) if checkout else []
    return _toml_or(prefix, ["default", *more])


def _machines(**_: Any) -> tuple[str, ...]:
    from minguest import model  # noqa: PLC0415 - see LATE

    return get_args(model.Machine)


def _accelerators(**_: Any) -> tuple[str, ...]:
    from minguest import model  # noqa: PLC0415 - see LATE

    return get_args(model.Accel)


COMPLETERS: Mapping[str, Callable[..., Sequence[str]]] = {
    **dict.fromkeys(("N", "SIZE", "SECONDS", "DAYS", "BDF,…", "MODEL,…", "CARD,…", "DOMAIN", "SOURCE"), _nothing),
    **dict.fromkeys(("DIR", "FOLDER", "RELEASE", "STORE"), _folders),
    "NAME,…": _known_cards,
    "NAME|FILE.toml": _known_guests,
    "MACHINE": _machines,
    "ACCEL": _accelerators,
}


class UsageError(Exception):
    """Arguments that cannot be parsed."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        super().__init__(message)
        self.usage = parser.format_usage()
        self.prog = parser.prog


class Parser(argparse.ArgumentParser):
    """Raises UsageError, where argparse would print to stderr and exit."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument with its completer; one without has argcomplete's, which offers files."""
        added = super().add_argument(*names, **options)
        if added.metavar in COMPLETERS:
            added.completer = COMPLETERS[str(added.metavar)]  # type: ignore[attr-defined]
        return added

    def error(self, message: str) -> NoReturn:
        raise UsageError(self, message)


def _wants_json(argv: Sequence[str]) -> bool:
    """Whether --json is among the options; argparse takes an option's unique beginning too."""
    options = itertools.takewhile(lambda each: each != "--", argv)
    return any("--json".startswith(each) and len(each) > len("--") for each in options)


def _document(command: str, data: Mapping[str, Any], wrong: str) -> None:
    """One JSON document: `command`, `ok`, `error` where it is not, and what the command found out."""
    document: Any = {"command": command, "ok": not wrong, **({"error": wrong} if wrong else {}), **data}
    if data:
        import msgspec  # noqa: PLC0415 - see LATE

        document = msgspec.to_builtins(document, enc_hook=str)
    # In ASCII: what it quotes can be any bytes, and must neither fail to be written nor move a cursor.
    print(json.dumps(document, indent=2))


def _say(text: str) -> None:
    # It may quote a guest: its console, its report.
    print(printable(text, keep="\n\t"), flush=True)


def _progress(text: str) -> None:
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


def _overview() -> str:
    width = max(len(name) for group in GROUPS.values() for name in group) + 2
    return "\n\n".join(
        f"{title}:\n" + "\n".join(f"  {name:{width}}{text}" for name, text in group.items())
        for title, group in GROUPS.items()
    )


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands. boot-test gets its options where `argv` has it, as they take long to import."""
    from minguest import commands, settings  # noqa: PLC0415 - see LATE
    from minguest.host import vfio  # noqa: PLC0415 - see LATE

    parser = Parser(
        prog="minguest",
        usage="minguest COMMAND …\n       minguest COMMAND --help",
        description=f"Guests for GPU passthrough: find out what is wrong, prepare the host, get releases. {PIT}",
        epilog=_overview(),
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action="version", version=f"minguest {VERSION}")
    added = parser.add_subparsers(
        required=True, prog="minguest", metavar="COMMAND", dest="command", help=argparse.SUPPRESS
    )

    def command(name: str, does: "Callable[..., Answer]", description: str = "") -> argparse.ArgumentParser:
        text = next(group[name] for group in GROUPS.values() if name in group)
        made = added.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {description}".rstrip())
        made.add_argument("--json", action="store_true", help="one JSON document on standard output")
        made.set_defaults(run=does)
        return made

    each = command(
        "diagnose",
        commands.diagnose,
        f"Works for any kernel, however it was started. {PIT}",
    )
    _logs(each)

    _doctor(
        command(
            "doctor",
            commands.doctor,
            "Reads the files, starts nothing. Exit status 1: the guest or its GPU would not work; 3: not a kernel for"
            " this.",
        )
    )

    each = command("plan", commands.plan, "Shows the arithmetic. Exit status 1 if they do not fit.")
    each.add_argument("--gpu", default="", metavar="BDF,…", help="cards of this host, or bar:SIZE")
    each.add_argument("--card", default="", metavar="NAME,…", help="described cards: FILE.toml, or a name, nvidia-h100")
    each.add_argument("--count", type=int, default=1, metavar="N", help="how many of each (default 1)")
    each.add_argument("--memory", default="", metavar="SIZE", help="the guest's memory, such as 64G")
    each.add_argument("--phys-bits", type=int, metavar="N", help="physical address bits of its CPU")
    each.add_argument("--hotplug", action="store_true", help="the cards are plugged in while the guest runs")
    _guest(each)

    each = command(
        "host-check",
        commands.host_check,
        "Reads, never writes. Exit status 1 if something that a passthrough needs is missing.",
    )
    each.add_argument(
        "folder", type=Path, metavar="FOLDER", nargs="?", help="a release or bundle: the launch to check for"
    )
    each.add_argument("--work", type=Path, metavar="DIR", help="the --work of boot-test, if it had one")
    each.add_argument("--gpu", default="", metavar="BDF,…", help="the host's cards (default: those of the launch)")
    each.add_argument(
        "--memory", default="", metavar="SIZE", help="the guest's memory, such as 2G (default: the launch's)"
    )

    each = command(
        "host-bind",
        commands.host_bind,
        "Shows every write to sysfs, and makes them only with --yes. All of them, or none.",
    )
    vfio.add_options(each)
    each = command(
        "host-unbind",
        commands.host_unbind,
        "For the named cards, or all. Shows every write to sysfs, and makes them only with --yes.",
    )
    vfio.add_options(each)

    each = command("pull", commands.pull, "Leaves a folder with a run-guest in it, or nothing.")
    each.add_argument("source", metavar="SOURCE", help="oci://REGISTRY/REPOSITORY[:VERSION], or https://…")
    each.add_argument("--to", type=Path, metavar="DIR", help="the new folder (default: ./NAME-VERSION)")
    _trust(each)

    each = command("verify", commands.verify, "Exit status 0 only when all of it holds. Lists what was not checked.")
    each.add_argument("release", metavar="RELEASE", help="a folder, oci://REGISTRY/REPOSITORY[:VERSION], or https://…")
    _trust(each)

    each = command(
        "boot-test",
        commands.boot_test,
        "Does what doit boot-test does, for a folder that was not built here. Needs QEMU.",
    )
    if "boot-test" in argv or settings.completing():
        _boot_test(each)

    each = command(
        "history",
        commands.history,
        "Cells are those of doit pits, certify and evidence with scheduler=. Exit status 1 for a poisoned record.",
    )
    each.add_argument("store", metavar="STORE", help="the store= of those runs: a folder, or s3://BUCKET/PREFIX")

    each = command(
        "cache", commands.cache, "Removes only with --prune. What is needed again is fetched or built again."
    )
    each.add_argument("--prune", action="store_true", help="remove leftovers, and what was not used for DAYS")
    each.add_argument(
        "--older-than",
        type=float,
        default=30,
        metavar="DAYS",
        help="with --prune: how long it was not used (default 30; 0 removes everything)",
    )

    each = command(
        "completion",
        commands.completion,
        'bash and zsh: eval "$(minguest completion bash)"; fish: minguest completion fish | source',
    )
    each.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


class _Formatter(argparse.HelpFormatter):
    """Leaves the overview of the commands as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def _logs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "log",
        nargs="*",
        metavar="LOG",
        help="the guest's console, QEMU's messages, libvirt's log, the host's dmesg or journal: one or several of one"
        " boot; also .gz, .xz, .zst; - is standard input",
    )
    command.add_argument(
        "--libvirt", default="", metavar="DOMAIN", help="the logs that this host has of a libvirt domain"
    )
    command.add_argument("--verbose", action="store_true", help="also what was ruled out, and why")
    command.add_argument("--report", type=Path, metavar="FILE", help="initd's report, or a boot test's report.json")


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "image",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="a kernel: bzImage, vmlinuz, UKI, vmlinux, or a .config; several: a table",
    )
    command.add_argument("--config", type=Path, metavar="FILE", help="a .config in place of the one in the image")
    command.add_argument("--cpus", type=int, metavar="N", help="number of CPUs of the launch")
    command.add_argument("--gpu", default="", metavar="MODEL,…", help="its cards, as in a guest's launch.gpus; or none")
    command.add_argument("--driver", choices=("nvidia", "amdgpu", "xe", "i915"), help="the GPU's driver in the guest")
    command.add_argument("--fragment", action="store_true", help="print what is missing as a fragment of a .config")
    command.add_argument(
        "--source",
        type=Path,
        metavar="TREE",
        help="with --fragment: its source tree, to add what the options depend on",
    )
    _guest(command)


def _guest(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--guest",
        default="",
        metavar="NAME|FILE.toml",
        help="the guest whose launch it is: FILE.toml, or in a checkout a NAME (default: default)",
    )


def _boot_test(command: argparse.ArgumentParser) -> None:
    from minguest.boottest import runner  # noqa: PLC0415 - see LATE

    command.add_argument("folder", type=Path, metavar="FOLDER", help="a release or bundle")
    command.add_argument("--work", type=Path, metavar="DIR", help="for console and verdict (default: FOLDER.boot-test)")
    for name, text in runner.OPTIONS.items():
        command.add_argument(f"--{name}", default="", metavar=METAVARS[name], help=text)
    for name, text in runner.FLAGS.items():
        command.add_argument(f"--{name}", action="store_true", help=text)


def _trust(command: argparse.ArgumentParser) -> None:
    from minguest import settings  # noqa: PLC0415 - see LATE

    who = command.add_mutually_exclusive_group()
    who.add_argument("--key", type=Path, metavar="FILE.pub", help="the public key that must have signed it")
    who.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="FILE",
        help=f"allowed signers, as ssh-keygen reads them (default: {settings.trusted_keys()})",
    )
    who.add_argument("--unsigned", action="store_true", help="accept an unsigned release: nobody vouches for it")
    command.add_argument("--allow-failed", action="store_true", help="accept checks that its own maker saw fail")


if __name__ == "__main__":
    sys.exit(main())
