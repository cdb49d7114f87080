# SPDX-License-Identifier: Apache-2.0
"""Binds a host's card to vfio-pci, with its whole IOMMU group, and back to exactly the drivers from before.

`plan` and `restore` are pure: facts to writes. `bind` and `unbind` show the writes, and make them only with --yes.
Standard library alone; with nothing but python3: `python3 -m minguest.host.vfio bind --gpu 0000:01:00.0`.
"""

import argparse
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from minguest.host import inuse, survey
from minguest.host.survey import VFIO, Device, Facts
from minguest.util import files, pci, terminal
from minguest.util.errors import MinguestError, ToolError, UserError, printable

# For this boot only: after the next one /run is empty, and the devices have their own drivers again.
STATE = Path("/run/minguest/host-bind.json")
DEVICES = f"/sys/{pci.DEVICES}"
DRIVERS = "/sys/bus/pci/drivers"
PROBE = "/sys/bus/pci/drivers_probe"

Writer = Callable[[Path, str], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Write:
    """One write to a file of sysfs, whose path is absolute in the host. An empty value is a bare newline."""

    path: str
    value: str

    def __str__(self) -> str:
        return f"echo {self.value} > {self.path}" if self.value else f"echo > {self.path}"


@dataclass(frozen=True)
class Before:
    """What a device was before the first write to it."""

    bdf: str
    ids: str
    group: str
    driver: str | None
    override: str | None


def plan(facts: Facts, cards: Sequence[str]) -> list[Write]:
    """The writes that bind the cards (full addresses) and all of their groups to vfio-pci; none if it has them.

    UserError, with every reason, if they must not be bound. `facts` must have been read for these cards.
    """
    reasons: list[str] = []
    names: dict[str, None] = {}
    for card in cards:
        device = facts.devices.get(card)
        if device is None:
            reasons.append(f"{card}: this host has no such PCI device")
        elif device.bridge:
            reasons.append(f"{device}: a bridge; only devices behind it can be given to a guest")
        elif card not in facts.members(card):
            reasons.append(f"{card}: it is in no IOMMU group: the IOMMU is off, or the host has none")
        else:
            reasons += [f"{card}, group {device.group}: {each}" for each in survey.obstacles(facts, card)]
            names |= dict.fromkeys(facts.endpoints(card))
    if reasons:
        text = "\n  ".join(["cannot be bound to vfio-pci:", *dict.fromkeys(reasons)])
        raise UserError(text, "host-check says more")
    pending = [facts.devices[name] for name in names if facts.devices[name].driver != VFIO]
    if pending and VFIO not in facts.drivers:
        raise UserError("this kernel has no driver vfio-pci now", "modprobe vfio-pci")
    writes = []
    for device in pending:
        if device.override != VFIO:
            writes.append(Write(f"{DEVICES}/{device.bdf}/driver_override", VFIO))
        if device.driver:
            writes.append(Write(f"{DRIVERS}/{device.driver}/unbind", device.bdf))
        writes.append(Write(PROBE, device.bdf))
    return writes


def restore(facts: Facts, records: Sequence[Before], *, strict: bool = True) -> list[Write]:
    """The writes that bring devices back to their records, last bound first; a device that is gone needs none.

    Any present state will do. `strict`: UserError if a guest has one of them, or its driver is gone.
    """
    writes, reasons = [], []
    for record in reversed(records):
        device = facts.devices.get(record.bdf)
        if device is None or device.ids != record.ids:
            continue
        override = device.override
        if device.driver != record.driver:
            # It may have another driver since then: then the host may need it.
            needs = device.uses if device.driver != VFIO else ()
            reasons += [f"{record.bdf} {each}" for each in (*needs, *device.held)]
            if device.driver:
                writes.append(Write(f"{DRIVERS}/{device.driver}/unbind", record.bdf))
            if record.driver:
                if record.driver not in facts.drivers:
                    reasons.append(f"{record.bdf}: its driver {record.driver} is not loaded now (modprobe)")
                # Bind by the driver's name: which one a probe would choose depends on what is loaded now. With an
                # override only the driver of that name may bind, so another override is written after the bind.
                meanwhile = record.override if record.override in (None, record.driver) else record.driver
                if override != meanwhile:
                    writes.append(Write(f"{DEVICES}/{record.bdf}/driver_override", meanwhile or ""))
                    override = meanwhile
                writes.append(Write(f"{DRIVERS}/{record.driver}/bind", record.bdf))
        if override != record.override:
            writes.append(Write(f"{DEVICES}/{record.bdf}/driver_override", record.override or ""))
    if reasons and strict:
        text = "\n  ".join(["cannot be taken back now:", *reasons])
        raise UserError(text, "end what has it open, then try again")
    return writes


def as_before(facts: Facts, record: Before) -> bool:
    """Whether a device is as it was, or gone."""
    device = facts.devices.get(record.bdf)
    return (
        device is None
        or device.ids != record.ids
        or (device.driver, device.override)
        == (
            record.driver,
            record.override,
        )
    )


def sysfs_write(path: Path, value: str) -> None:
    """One write(2) to a file that must exist already."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value.encode())
    finally:
        os.close(handle)


class Host:
    """The host: the root of /sys and /proc, the state file, and the function that writes."""

    def __init__(
        self,
        root: Path = Path("/"),
        state: Path = STATE,
        *,
        writer: Writer = sysfs_write,
        busy: Callable[[Path], bool] = inuse.claimed,
        user: int | None = None,
    ) -> None:
        self.root = root
        self.state = state
        self.writer = writer
        self.busy = busy
        self.user = os.geteuid() if user is None else user

    def read(self, cards: Sequence[str] = ()) -> Facts:
        return survey.read(self.root, cards, self.busy)

    def records(self, boot: str) -> list[Before]:
        """What the state file has from this boot."""
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
            if found["boot"] != boot:
                return []
            records = [Before(**each) for each in found["devices"]]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.state}: not what host-bind writes: {error!r}", "look, and remove it") from None
        for record in records:
            names = (record.driver or "-", record.override or "-")
            # They become parts of paths that root writes to.
            if pci.address(record.bdf, str(self.state)) != record.bdf or not all(map(_is_name, names)):
                raise UserError(f"{self.state}: not what host-bind writes: {record}", "look, and remove it")
        return records

    def keep(self, boot: str, records: Sequence[Before]) -> None:
        if records:
            state = {"boot": boot, "devices": [asdict(record) for record in records]}
            files.write(self.state, json.dumps(state, indent=1) + "\n")
        else:
            self.state.unlink(missing_ok=True)

    def apply(self, writes: Sequence[Write]) -> None:
        """Make the writes; ToolError at the first that fails, and before all of them if a file does not exist."""
        for write in writes:
            if not self._place(write).exists():
                raise ToolError(
                    f"{write.path}: does not exist: nothing was written", "host-check shows VFIO and drivers"
                )
        for write in writes:
            try:
                self.writer(self._place(write), f"{write.value}\n")
            except OSError as error:
                raise ToolError(f"{write}: {error.strerror or error}", "dmesg may say why") from error

    def put_back(self, records: Sequence[Before]) -> tuple[list[Before], list[str]]:
        """Put devices back as far as possible; returns those that are not back, and what failed."""
        failed = []
        for write in restore(self.read(), records, strict=False):
            try:
                self.writer(self._place(write), f"{write.value}\n")
            except OSError as error:
                failed.append(f"{write}: {error.strerror or error}")
        facts = self.read()
        return [record for record in records if not as_before(facts, record)], failed

    def lock(self) -> AbstractContextManager[int]:
        return files.lock(self.state.with_name(f".{self.state.name}.lock"))

    def _place(self, write: Write) -> Path:
        return self.root / write.path.lstrip("/")


def bind(host: Host, names: Sequence[str], *, act: bool, say: Say) -> list[Write]:
    """Bind cards and their groups to vfio-pci; without `act` only say how. All of them, or none.

    Returns the writes, shown or made.
    """
    cards = _cards(names)
    if not cards:
        raise UserError("no card", "--gpu 0000:01:00.0 names one; lspci -Dd ::0300/ff00 and ::0302 list cards")
    _may(host, "bind", cards, act)
    writes = _planned(host, cards, say)
    if not writes:
        say(f"{', '.join(cards)}: bound to vfio-pci already, with all of the group")
    elif not act:
        say(f"dry run, nothing was written; this does it: {command(host, 'bind', cards)}")
    else:
        with host.lock():
            return _bind(host, cards, say)
    return writes


def _bind(host: Host, cards: Sequence[str], say: Say) -> list[Write]:
    # Once more: things may have changed while another process had the lock.
    facts = host.read(cards)
    writes = plan(facts, cards)
    if not writes:
        say(f"{', '.join(cards)}: bound to vfio-pci meanwhile")
        return writes
    names = dict.fromkeys(name for card in cards for name in facts.endpoints(card))
    kept = host.records(facts.boot)
    known = {record.bdf: record for record in kept}
    changed = [name for name in names if facts.devices[name].driver != VFIO]
    records = [_before(facts.devices[name], known.get(name)) for name in changed]
    others = [record for record in kept if record.bdf not in changed]
    host.keep(facts.boot, [*others, *records])
    try:
        host.apply(writes)
        now = host.read()
        for name in changed:
            # A probe that fails, or finds no driver, does not fail the write (bus_rescan_devices_helper).
            if now.devices[name].driver != VFIO:
                has = now.devices[name].driver or "no driver"
                raise ToolError(f"{name}: every write succeeded, but it has {has}, not vfio-pci", "dmesg says why")
    except BaseException as error:
        # Even when interrupted: a group that is partly bound works neither for the host nor for a guest.
        with _undisturbed():
            left, failed = host.put_back(records)
            host.keep(facts.boot, [*others, *left])
        if left:
            text = "\n  ".join([str(error), *failed])
            raise ToolError(
                f"{text}\n  NOT put back: {', '.join(record.bdf for record in left)}; {host.state} records them",
                f"{command(host, 'unbind', ())} tries again",
            ) from error
        say("everything was put back as it was")
        raise
    say(f"bound to vfio-pci: {', '.join(changed)}; {host.state} records what they were")
    return writes


def unbind(host: Host, names: Sequence[str], *, act: bool, say: Say) -> list[Write]:
    """Put back what `bind` took, in whole groups: the cards' groups, or all; without `act` only say how.

    Returns the writes, shown or made.
    """
    cards = _cards(names)
    _may(host, "unbind", cards, act)
    if not act:
        return _unbind(host, cards, act=False, say=say)
    with host.lock():
        return _unbind(host, cards, act=True, say=say)


def _unbind(host: Host, cards: Sequence[str], *, act: bool, say: Say) -> list[Write]:
    facts = host.read()
    kept = host.records(facts.boot)
    unknown = [card for card in cards if card not in [record.bdf for record in kept]]
    if unknown:
        there = [f"{facts.devices[card]}" for card in cards if card in facts.devices]
        raise UserError(
            "\n  ".join([f"{', '.join(unknown)}: not bound by host-bind since this boot", *there]),
            f"host-bind has {', '.join(record.bdf for record in kept) or 'nothing'}; undo others with what bound them",
        )
    if not kept:
        say("nothing to put back: host-bind has bound nothing since this boot")
        return []
    groups = {record.group for record in kept if not cards or record.bdf in cards}
    records = [record for record in kept if record.group in groups]
    facts = host.read([record.bdf for record in records])
    writes = restore(facts, records)
    _say_hidden(facts, say)
    for write in writes:
        say(str(write))
    if not act:
        say(f"dry run, nothing was written; this does it: {command(host, 'unbind', cards)}")
        return writes
    with _undisturbed():
        left, failed = host.put_back(records)
        host.keep(facts.boot, [record for record in kept if record not in records or record in left])
    if left:
        raise ToolError(
            "\n  ".join([f"NOT put back: {', '.join(record.bdf for record in left)}", *failed]),
            f"dmesg may say why; {host.state} still records them, so the same command tries again",
        )
    say("\n".join(f"{_was(record)} again" for record in records))
    return writes


def _planned(host: Host, cards: Sequence[str], say: Say) -> list[Write]:
    facts = host.read(cards)
    writes = plan(facts, cards)
    for name in dict.fromkeys(name for card in cards for name in facts.members(card)):
        device = facts.devices[name]
        stays = " (a bridge: it stays as it is)" if device.bridge else ""
        override = f", driver_override {device.override}" if device.override else ""
        say(f"group {device.group}: {device}{override}{stays}")
    _say_hidden(facts, say)
    for write in writes:
        say(str(write))
    return writes


def _say_hidden(facts: Facts, say: Say) -> None:
    if facts.hidden:
        say("not known: whether programs of other users have it open; root can see that")


def _before(device: Device, known: Before | None) -> Before:
    """A device's record: the one of a run that was killed, as long as that run's override is still there."""
    if known and known.ids == device.ids and device.override == VFIO != known.override:
        return known
    return Before(device.bdf, device.ids, device.group or "", device.driver, device.override)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals do not end what puts devices back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _was(record: Before) -> str:
    override = f", driver_override {record.override}" if record.override else ""
    return f"{record.bdf}: {record.driver or 'no driver'}{override}"


def _cards(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(pci.address(name) for name in names))


def command(host: Host, verb: str, cards: Sequence[str]) -> str:
    """The command line that does it as root: with full paths, because sudo looks for programs only in its secure_path,
    which has neither a venv nor pipx (sudoers(5))."""
    program = Path(sys.argv[0]).absolute()
    argv = [str(program), f"host-{verb}"]
    if program.name != "minguest" or not os.access(program, os.X_OK):
        argv = [sys.executable, "-m", "minguest.host.vfio", verb]
    argv += ["--gpu", ",".join(cards)] if cards else []
    argv += ["--state", str(host.state.absolute())] if host.state != STATE else []
    argv += ["--root", str(host.root.absolute())] if host.root != Path("/") else []
    return shlex.join([*(["sudo"] if host.user != 0 else []), *argv, "--yes"])


def _may(host: Host, verb: str, cards: Sequence[str], act: bool) -> None:
    if act and host.user != 0:
        raise UserError(
            "only root can change a device's driver", f"{command(host, verb, cards)}\n  dry runs need no root"
        )


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[\w.+ -]+", text) is not None


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of host-bind and host-unbind to a parser."""
    command.add_argument("--gpu", default="", metavar="BDF,…", help="PCI addresses, for example 0000:01:00.0")
    command.add_argument("--yes", action="store_true", help="do it; the default is to show the writes")
    command.add_argument("--state", type=Path, default=STATE, metavar="FILE", help=f"the record; default {STATE}")
    command.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a tree in place of /")


def _say(text: str) -> None:
    print(printable(text, keep="\n\t"), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`bind` and `unbind` without the rest of minguest; 0 if it is done or shown, 1 if not."""
    parser = argparse.ArgumentParser(prog="python3 -m minguest.host.vfio", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, does, text in (
        ("bind", bind, "bind cards and their IOMMU groups to vfio-pci"),
        ("unbind", unbind, "put back what bind took"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(does=does)
        add_options(command)
    options = parser.parse_args(argv)
    with terminal.streams() as out:
        return terminal.ending(out, _run(options))


def _run(options: argparse.Namespace) -> int:
    # A signal raises an exception, so that what was begun is put back.
    terminal.end_on_signals()
    try:
        cards = [name for name in options.gpu.split(",") if name]
        options.does(Host(options.root, options.state), cards, act=options.yes, say=_say)
        return 0
    except MinguestError as error:
        print(f"minguest: {error}", file=sys.stderr)
    except OSError as error:
        print(f"minguest: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("minguest: interrupted", file=sys.stderr)
        return terminal.INTERRUPTED
    return 1


if __name__ == "__main__":
    sys.exit(main())
