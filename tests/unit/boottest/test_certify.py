# SPDX-License-Identifier: Apache-2.0
"""The certificate: what a boot without an option is taken for. The boots themselves are tests/integration's."""

import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from minguest.boottest import certify, inject, necessity, runner, userland
from minguest.boottest.certify import Whole
from minguest.boottest.faults import Parts
from minguest.boottest.records import CERTIFICATE_SCHEMA, Certificate, Row
from minguest.bundle import manifests
from minguest.diagnose import catalogue
from minguest.kernel import variants
from minguest.kernel.kconfig import Option
from minguest.kernel.variants import Without
from minguest.model import Launch
from minguest.util.errors import ToolError, UserError
from minguest.vm import report
from tests import workshop
from tests.unit.boottest.test_inject import KNOWN, trial

BASE = Whole("CONFIG_ALL=y\n", 10000, 100.0, {"userland": frozenset({"epoll", "futex"}), "pc": frozenset({"futex"})})
OPTION = Option("EPOLL", "y", "configs/kernel/10-base.config", 7, "Event loops.")


def image(size: int) -> bytes:
    """A bzImage with a compressed kernel of this size: its boot header's fields, from Documentation/arch/x86/boot.rst,
    and one setup sector."""
    data = bytearray(0x1000)
    data[0x1F1] = 1
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, 0x020F)
    struct.pack_into("<II", data, 0x248, 0x100, size)
    return bytes(data) + bytes(size)


def passed(start: float = 0.1, roots: tuple[str, ...] = ()) -> runner.Trial:
    """A guest that passed and whose kernel took `start` seconds."""
    made = trial("pass", (), roots)
    record = {"record": "times", "start": start, "report": start}
    return msgspec.structs.replace(made, report=report.Report(True, (record,), ()))


class Bench:
    """Certifies OPTION with a fake kernel, and trials by the probe's name."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = workshop.build(folder / "root", extra={"bzImage": image(20000)})
        self.kernel = folder / "kernel"
        self.kernel.mkdir()
        (self.kernel / "bzImage").write_bytes(image(10000))
        self.trials: dict[str, runner.Trial] = {}
        self.first: dict[str, runner.Trial] = {}
        self.said: list[str] = []
        self.userland = "userland: epoll: ok\nuserland: futex: ok\n"
        self.userlands: dict[str, str] = {}
        self.without = Without("CONFIG_64BIT=y\nCONFIG_OTHER=y\n", "n", ("EVENTFD",))
        self.refused: ToolError | None = None
        self.probes: list[str] = []
        self.unasked: list[str] = []
        program = folder / "userland"
        program.write_bytes(b"a program")
        bench = runner.Bench("it", self.at.bundle, folder / "boot", folder / "kvm.json")
        matrix = inject.Site(bench, Launch(), KNOWN, folder / "certify", folder / "deb", lambda _: self.kernel)
        tree: Any = SimpleNamespace(tree=SimpleNamespace(identity=b"a tree"))
        shop = variants.Workshop(tree, (), {}, None, folder, folder / "log")  # type: ignore[arg-type]
        (folder / "log").mkdir()
        self.site = certify.Site(matrix, shop, "gcc 12", "7.2.22", program, folder / "necessity.json")

        def build(*_: Any) -> Path:
            if self.refused:
                raise self.refused
            return self.kernel

        monkeypatch.setattr(variants, "without", lambda *_: self.without)
        monkeypatch.setattr(variants, "build", build)
        monkeypatch.setattr(variants, "requested", lambda _: {OPTION.name: OPTION})
        monkeypatch.setattr(variants, "unasked", lambda *_: self.unasked)
        monkeypatch.setattr(inject, "attempt", self.attempt)

    def attempt(
        self, site: inject.Site, each: catalogue.Injection, _: Any, folder: Path, **more: Any
    ) -> tuple[runner.Trial | None, str]:
        assert site.kernels({}) in (self.kernel, self.at.bundle)
        assert more["button"] == (each.name == "button") and bool(more["more"]) == (each.name in ("userland", "pc"))
        self.probes.append(each.name)
        (folder / "console.log").write_text(self.userlands.get(each.name, self.userland))
        if each.name in self.first:
            return self.first.pop(each.name), ""
        return self.trials.get(each.name, passed()), ""

    def row(self, reason: str = OPTION.reason) -> Row:
        option = Option(OPTION.name, OPTION.value, OPTION.fragment, OPTION.line, reason)
        manifest = manifests.load(self.at.bundle)
        return certify.left_out(self.site, manifest, option, BASE, self.said.append)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("probe", "made", "kind", "seen"),
    [
        ("own", trial("lost", (), ("efi-off",)), "not booted", "a reason; pit efi-off"),
        ("own", trial("failed", ("CPUs", "pits"), ("smp-off",)), "row", "CPUs; pit smp-off"),
        ("hotplug", trial("failed", ("pits",), ("msi-off",)), "pit", "msi-off"),
        ("large-bars", trial("failed", ("BARs",)), "row", "BARs"),
        ("own", trial("not started"), "NOT RUN", "QEMU said no"),
    ],
)
def test_the_first_probe_that_shows_something_ends_it(
    bench: Bench, probe: str, made: runner.Trial, kind: str, seen: str
) -> None:
    bench.trials[probe] = made
    row = bench.row()
    assert (row.kind, row.probe, row.seen) == (kind, probe, seen)
    assert (row.instead, row.gone, row.bytes) == ("n", ("EVENTFD",), 0)
    assert bench.probes[-1] == probe
    assert [path.name for path in (bench.site.matrix.folder / "runs").iterdir()] == [f"EPOLL.{probe}"]


def test_what_only_one_of_two_boots_shows_is_not_the_options_doing(bench: Bench) -> None:
    bench.first = {"hotplug": trial("lost"), "nodes": trial("failed", ("NUMA",))}
    row = bench.row()
    assert (row.kind, row.once) == ("unseen", ("not booted: a reason (hotplug)", "row: NUMA (nodes)"))
    assert [bench.probes.count(name) for name in ("own", "hotplug", "nodes")] == [1, 2, 2]


def test_the_second_of_two_boots_counts(bench: Bench) -> None:
    bench.first = {"nodes": trial("lost")}
    bench.trials["nodes"] = trial("failed", ("NUMA",))
    row = bench.row()
    assert (row.kind, row.seen) == ("row", "NUMA")
    bench.first = {"nodes": trial("lost")}
    bench.trials["nodes"] = trial("not started")
    row = bench.row()
    assert (row.kind, row.probe, row.seen, row.once) == ("NOT RUN", "nodes", "QEMU said no", ())


def test_what_a_program_misses_is_a_row(bench: Bench) -> None:
    bench.userland = "userland: epoll: Function not implemented\nuserland: futex: ok\nuserland: more: ok\n"
    row = bench.row()
    assert (row.kind, row.probe, row.seen) == ("row", "userland", "a program's epoll")


def test_a_program_of_which_nothing_is_heard_has_no_console(bench: Bench) -> None:
    bench.userland = "[ 0.1] a message\n"
    assert bench.row().seen == "a program's console"


def test_what_a_machine_does_not_have_is_not_missed_there(bench: Bench) -> None:
    bench.userlands = {"pc": "userland: futex: ok\n"}
    assert bench.row().kind == "unseen"
    bench.userlands = {"pc": "userland: epoll: ok\n"}
    row = bench.row()
    assert (row.kind, row.probe, row.seen) == ("row", "pc", "a program's futex")


@pytest.mark.parametrize(
    ("size", "start", "reason", "kind"),
    [
        (10000 + certify.PACKED, 0.1, "It is for this.", "size"),
        (10000 + certify.PACKED - 1, 0.1, "It is for this.", "unseen"),
        (9000, 0.11, "It is for this.", "time"),
        (9000, 0.1099, "It is for this.", "unseen"),
        (9000, 0.1, "It is for this. Not tested here: a card of NVIDIA's.", "stated"),
        (11000, 0.1, "Not tested here: a card of NVIDIA's.", "size"),
    ],
)
def test_where_no_boot_shows_it_its_cost_does_or_its_comment(
    bench: Bench, size: int, start: float, reason: str, kind: str
) -> None:
    (bench.kernel / "bzImage").write_bytes(image(size))
    bench.trials["counted"] = passed(start)
    row = bench.row(reason)
    assert (row.kind, row.bytes) == (kind, size - 10000)
    assert row.instructions == pytest.approx(start * 1e3 - 100, abs=0.051)
    assert bench.probes == [each.name for each in certify.PROBES]
    if kind == "stated":
        assert row.seen == "a card of NVIDIA's."
    assert list((bench.site.matrix.folder / "runs").iterdir()) == []


def test_a_kernel_without_its_size_is_not_measured(bench: Bench) -> None:
    (bench.kernel / "bzImage").write_bytes(image(0))
    with pytest.raises(UserError, match="bzImage: its boot header names no compressed kernel"):
        certify.packed(bench.kernel)


def test_the_same_config_is_not_booted(bench: Bench) -> None:
    bench.without = Without(BASE.text, "y", ())
    assert (bench.row().kind, bench.probes) == ("unchanged", [])


def test_a_kernel_of_32_bits_is_not_built(bench: Bench) -> None:
    bench.without = Without("# CONFIG_64BIT is not set\n", "n", ())
    row = bench.row()
    assert (row.kind, row.seen, bench.probes) == ("not built", "the kernel would be one of 32 bits", [])


def test_only_what_the_compiler_refuses_is_not_built(bench: Bench) -> None:
    bench.refused = ToolError("make: it stopped\nmore", "read the log")
    log = bench.site.shop.log / "without-EPOLL.log"
    for text, kind, seen in (
        (None, "NOT RUN", "make: it stopped"),
        ("as: No space left on device\n", "NOT RUN", "make: it stopped"),
        ("  CC a.o\nfs/a.c:7:3: error: unknown type name\n", "not built", "fs/a.c:7:3: error: unknown type name"),
        ("ld: a.o: undefined reference to `b'\n", "not built", "ld: a.o: undefined reference to `b'"),
    ):
        if text is not None:
            log.write_text(text)
        row = bench.row()
        assert (row.kind, row.seen, bench.probes) == (kind, seen, [])


def test_a_row_stays_while_all_that_it_depends_on_is_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = len(certify.PROBES)
    shutil.copyfile(bench.at.bundle / "bzImage", bench.kernel / "bzImage")

    def boots() -> int:
        """How many boots a run took beyond those of the kernel with all options."""
        bench.probes.clear()
        assert certify.run(bench.site, (), lambda _: None).whole
        return len(bench.probes) - whole

    assert boots() == whole
    assert boots() == 0
    # Another comment, which may say what no test shows, needs no boot.
    other = Option(OPTION.name, "y", OPTION.fragment, 7, "Not tested here: this.")
    monkeypatch.setattr(variants, "requested", lambda _: {OPTION.name: other})
    assert boots() == 0
    kept = certify.load(bench.site.matrix.folder)
    assert kept is not None
    assert (kept.rows[0].kind, kept.rows[0].seen, kept.rows[0].reason) == ("stated", "this.", other.reason)
    # What could not be tried is tried again.
    bench.refused = ToolError("make: no room")
    bench.site.program.write_bytes(b"another program")
    assert boots() == 0
    bench.refused = None
    assert boots() == whole
    # A row of other bytes is not this bundle's, though only another option is asked for.
    second = Option("FUTEX", "y", OPTION.fragment, 9, "Locks.")
    monkeypatch.setattr(variants, "requested", lambda _: {OPTION.name: other, second.name: second})
    bench.site.program.write_bytes(b"a third program")
    made = certify.run(bench.site, ["FUTEX"], lambda _: None)
    assert [row.option for row in made.rows] == ["FUTEX"] and not made.whole


def test_rows_of_the_checkout_count_where_all_that_they_depend_on_is_the_same(bench: Bench) -> None:
    made = certify.run(bench.site, (), lambda _: None)
    shutil.rmtree(bench.site.matrix.folder)
    other = msgspec.structs.replace(made, key="another", rows=())
    for kept, boots in (((other, made), 0), ((other,), len(certify.PROBES)), ("damaged", len(certify.PROBES))):
        bench.site.published.write_bytes(msgspec.json.encode(kept))
        bench.probes.clear()
        assert certify.run(bench.site, (), lambda _: None).rows == made.rows
        assert len(bench.probes) == len(certify.PROBES) + boots
        shutil.rmtree(bench.site.matrix.folder)


def test_rows_are_of_these_tools_requests_and_tree(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = manifests.load(bench.at.bundle)
    of = certify.key_of(bench.site, manifest)
    other_tree: Any = SimpleNamespace(tree=SimpleNamespace(identity=b"another"))
    shop = msgspec.structs.replace(bench.site.shop, tree=other_tree)
    sites = [
        msgspec.structs.replace(bench.site, **each) for each in ({"qemu": "8"}, {"compiler": "14"}, {"shop": shop})
    ]
    assert len({of, *(certify.key_of(site, manifest) for site in sites)}) == 4
    comment = Option(OPTION.name, OPTION.value, "another.config", 1, "Another reason.")
    monkeypatch.setattr(variants, "requested", lambda _: {OPTION.name: comment})
    assert certify.key_of(bench.site, manifest) == of
    monkeypatch.setattr(variants, "requested", lambda _: {})
    assert certify.key_of(bench.site, manifest) != of


def test_a_guest_that_is_not_healthy_is_no_measure(bench: Bench) -> None:
    bench.trials["nodes"] = trial("failed", ("NUMA",))
    with pytest.raises(UserError, match="with all options: nodes: row: NUMA"):
        certify.run(bench.site, (), lambda _: None)


def test_the_certificate_is_whole_when_every_option_was_tried(bench: Bench) -> None:
    shutil.copy(bench.at.bundle / "bzImage", bench.kernel)
    said: list[str] = []
    made = certify.run(bench.site, (), said.append)
    assert made.whole and [row.kind for row in made.rows] == ["unseen"]
    assert certify.load(bench.site.matrix.folder) == made
    assert said[0] == "with all options: 20,000 bytes compressed, 100.0 M instructions"
    bench.first = {"hotplug": trial("lost")}
    certify.run(bench.site, (), said.append)
    assert "with all options: one of two boots: not booted: a reason (hotplug)" in said
    with pytest.raises(UserError, match="only=EFI: no fragment of this guest asks for it"):
        certify.run(bench.site, ["EFI"], said.append)


def test_what_nobody_asks_for_comes_last_and_is_not_unseen(bench: Bench) -> None:
    bench.unasked = ["HZ_250"]
    shutil.copy(bench.at.bundle / "bzImage", bench.kernel)
    made = certify.run(bench.site, (), lambda _: None)
    assert [(row.option, row.fragment, row.kind) for row in made.rows] == [
        ("EPOLL", OPTION.fragment, "unseen"),
        ("HZ_250", "", "unasked"),
    ]
    bench.site.program.write_bytes(b"another program")
    assert [row.option for row in certify.run(bench.site, ["HZ_250"], lambda _: None).rows] == ["HZ_250"]


def test_an_option_of_the_guests_own_file_is_not_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Option("NR_CPUS", "8", "guest.toml", 0, "override")
    monkeypatch.setattr(variants, "requested", lambda _: {OPTION.name: OPTION, own.name: own})
    assert [each.name for each in certify.options(bench.site.shop, (), print)] == ["EPOLL"]


def test_the_page_has_a_table_for_each_fragment_and_a_column_for_each_series() -> None:
    efi = Row(
        "EFI", "configs/kernel/20-efi.config", "y", "A | reason", "row", "n", ("EFI_STUB",), "own", "CPUs", -49152
    )
    swap = Row("SWAP", "configs/kernel/10-base.config", "n", "No swap.", "size", seen="larger", bytes=900)
    bug = Row(
        "BUG", "configs/kernel/10-base.config", "y", "Not tested here: it stops.", "stated", seen="it stops.", bytes=-10
    )
    cheap = Row("BQL", "", "y", "", "unasked", "n", bytes=-300, once=("row: NUMA (nodes)",))
    dear = Row("VMAP_STACK", "", "y", "", "unasked", "n", bytes=-2000)
    # Another series' fragments ask for this one.
    other = Row("SWAP", "", "y", "", "unasked", "n", bytes=-9000)
    made = [
        Certificate(
            CERTIFICATE_SCHEMA,
            series,
            f"{series}.1",
            {},
            {},
            "gcc 12",
            "7.2",
            "",
            "",
            series == "6.12",
            1000,
            None,
            rows,
        )
        for series, rows in (("4.12", (efi, bug, cheap, other)), ("6.12", (swap, efi, cheap, dear)))
    ]
    text = necessity.page(made)
    assert text.index("## configs/kernel/10-base.config") < text.index("## configs/kernel/20-efi.config")
    assert "| option | without it, 4.12 | without it, 6.12 | what for |\n" in text
    cell = r"row: CPUs (own); with it EFI\_STUB; -49,152 bytes"
    assert f"| `EFI=y` | {cell} | {cell} | A \\| reason |\n" in text
    assert "| `SWAP=n` | unasked; -9,000 bytes | size: larger; +900 bytes | No swap. |\n" in text
    rest = text.partition("## On where nobody asks\n")[2]
    assert rest.index("| `VMAP_STACK=y` |  | unasked; -2,000 bytes |  |") < rest.index("| `BQL=y` |")
    assert "| unasked; -300 bytes; one of two boots: row: NUMA (nodes) |" in rest and "SWAP" not in rest
    assert "gcc 12, QEMU 7.2; with all options 1,000 bytes compressed" in text
    assert "| `BUG=y` | stated; -10 bytes |  | Not tested here: it stops. |" in text
    assert text.count("**Not every option was tried yet.**") == 1


def test_a_series_that_was_not_tried_here_stays_on_the_page() -> None:
    def made(series: str, version: str) -> Certificate:
        return Certificate(CERTIFICATE_SCHEMA, series, version, {}, {}, "gcc 12", "7.2", "", "", True, 1000, None, ())

    old, new, other = made("6.12", "6.12.1"), made("6.12", "6.12.2"), made("4.12", "4.12.1")
    order = ["4.12", "6.12", "6.6"]
    assert necessity.together([new], [old, other], order) == [other, new]
    assert necessity.together([], [old], order) == [old]


def test_disks_have_one_partition(tmp_path: Path) -> None:
    assert struct.unpack("<II", userland.mbr()[446 + 8 : 446 + 16]) == (2048, 2048)
    disk = userland.gpt()
    assert len(disk) == len(userland.mbr()) == 16384 * 512
    for at in (1, 16383):
        header = bytearray(disk[at * 512 : at * 512 + 92])
        (checksum,) = struct.unpack("<I", header[16:20])
        header[16:20] = bytes(4)
        assert header[:8] == b"EFI PART" and zlib.crc32(bytes(header)) == checksum
        (table,) = struct.unpack("<Q", header[72:80])
        assert zlib.crc32(disk[table * 512 : table * 512 + 16384]) == struct.unpack("<I", header[88:92])[0]


def test_what_is_there_is_read_from_the_console(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_bytes(
        b"[ 0.1] x\r\nuserland: epoll: ok\r\nuserland: TCP socket: Address\r\n\xff\n"
    )
    assert userland.found(tmp_path) == {"epoll"}


def _argv(changes: Sequence[Callable[[Parts], None]], folder: Path) -> list[str]:
    parts = Parts(folder, folder, folder, folder, folder, folder)
    for change in changes[1:]:
        change(parts)
    argv: list[str] = ["qemu"]
    for edit in parts.edits:
        argv = edit(argv)
    return argv


def test_the_root_is_the_first_disk(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x")
    argv = _argv(userland.devices(program, {"machine": "pc"}), tmp_path)
    assert not [value for value in argv if "ICH9" in value or "root-port" in value]
    assert [value for value in _argv(userland.devices(program, {}), tmp_path) if "ICH9" in value]
    drives = [value for value in argv if value.startswith("if=virtio")]
    assert [value.rpartition("=")[2] for value in drives] == ["gpt.disk", "mbr.disk"]
    assert (tmp_path / "gpt.disk").read_bytes() == userland.gpt()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"gone": ("FUTEX",)}, "  row         EPOLL                         with it FUTEX"),
        (
            {
                "seen": "a program's epoll",
                "probe": "userland",
                "gone": ("FUTEX",),
                "bytes": -5584,
                "instructions": -3.42,
            },
            "  row         EPOLL                         -5,584 bytes  -3.4 M instructions"
            "  a program's epoll (userland); with it FUTEX",
        ),
        (
            {"probe": "own", "bytes": 1000, "once": ("row: NUMA (nodes)",)},
            "  row         EPOLL                         +1,000 bytes  one of two boots: row: NUMA (nodes)",
        ),
    ],
)
def test_a_row_on_the_terminal_has_what_is_known_of_it(more: dict[str, Any], line: str) -> None:
    row = Row(option="EPOLL", fragment="configs/core.config", value="y", reason="", kind="row", **more)
    assert certify.shown(row) == line
