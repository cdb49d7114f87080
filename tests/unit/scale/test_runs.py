# SPDX-License-Identifier: Apache-2.0
"""The four tasks on workers in this process: what a cell does is faked, what comes back is what a run here has."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from minguest.boottest import certify, inject, listed, runner
from minguest.boottest.certify import Whole
from minguest.boottest.records import Row
from minguest.bundle import manifests, reproduce
from minguest.diagnose.catalogue import Injection
from minguest.kernel import variants
from minguest.kernel.kconfig import Option
from minguest.model import Launch
from minguest.scale import cells, runs
from minguest.scale.orders import Done, Order
from minguest.scale.records import Record
from minguest.scale.scheduler import Engine
from minguest.scale.store import Folder, Store
from minguest.util.errors import GuestFailed, ToolError
from tests import ROOT, workshop
from tests.unit.boottest.test_inject import KNOWN
from tests.unit.scale.test_scheduler import client

__all__ = ["client"]
EFI = {"EFI": False}


class Farm:
    """A bundle in miniature and an engine with two workers."""

    def __init__(self, tmp_path: Path, made: Any) -> None:
        self.at, self.said = workshop.build(tmp_path / "project"), list[str]()
        self.engine = Engine(made, Store(Folder(tmp_path / "shared")), 1 << 20, self.said.append)
        guest = runs.Guest(
            "default-4.12", self.at.bundle, ROOT / "configs/pits", Launch(), tmp_path,
            more={"ovmf.deb": self.at.bundle / "OVMF_CODE.fd", "userland": self.at.bundle / "initrd.img"},
        )  # fmt: skip
        self.given = runs.inputs(guest)
        runs.prepare(self.engine, self.given, self.said.append, building=True)
        self.bench = runner.Bench(
            "default-4.12", self.at.bundle, tmp_path / "boot", tmp_path / "kvm.json", evidence=tmp_path / "evidence"
        )
        self.site = inject.Site(
            self.bench, Launch(), KNOWN, tmp_path / "pits", tmp_path / "deb", lambda _: self.at.bundle
        )
        self.shop: Any = SimpleNamespace(tree=SimpleNamespace(tree=SimpleNamespace(identity=b"a tree")))


@pytest.fixture
def farm(tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    monkeypatch.setenv("MINGUEST_STORE", str(tmp_path / "local"))
    monkeypatch.setattr(runs, "seed", lambda *_: None)
    mask = os.umask(0)
    os.umask(mask)
    yield Farm(tmp_path, client)
    os.umask(mask)
    for each in client.cluster.workers.values():
        if hasattr(each, "minguest"):
            del each.minguest


def test_a_matrix_has_each_kernel_once_and_its_consoles(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: list[str] = []

    def injected(site: inject.Site, name: str, each: Injection, manifest: manifests.Manifest) -> Any:
        cell = inject.planned(site, name, each)
        if each.options:
            assert kernels  # its kernel came first
        (site.folder / "runs" / cell.id).mkdir(parents=True)
        (site.folder / "runs" / cell.id / "console.log").write_text(f"console of {cell.id}")
        return msgspec.structs.replace(cell, result="right", got="as it must")

    def kernel(desk: cells.Desk, order: Order) -> cells.Produced:
        kernels.append(bytes(order.what).decode())
        return cells.Produced("", "")

    monkeypatch.setattr(inject, "injected", injected)
    monkeypatch.setattr(cells, "KINDS", {**cells.KINDS, "kernel": kernel})
    known = {name: KNOWN[name] for name in ("efi-off", "msi-off-cmdline")}
    known["efi-too"] = KNOWN["efi-off"]
    site = msgspec.structs.replace(farm.site, known=known)
    monkeypatch.setattr(cells.Desk, "tree", lambda _: None)
    made = inject.run(site, ["efi-off", "efi-too", "msi-off-cmdline"], farm.said.append, runs.pits(
        farm.engine, farm.given, farm.shop
    ))  # fmt: skip
    assert {cell.id: cell.got for cell in made.cells} == dict.fromkeys(
        ("msi-off-cmdline", "efi-off", "efi-too"), "as it must"
    )
    assert kernels == ['{"EFI":false}']
    assert (site.folder / "runs/efi-off/console.log").read_text() == "console of efi-off"
    assert farm.engine.problems == []


def test_cells_of_a_kernel_that_hangs_are_wrong_and_say_why(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(_: Any, orders: Any, then: Any) -> Iterator[Any]:
        for each in orders:
            done = Done(each.id, error="hangs", hung=True)
            assert then(done) == []
            yield done

    monkeypatch.setattr(Engine, "run", dead)
    made = inject.run(farm.site, ["efi-off"], farm.said.append, runs.pits(farm.engine, farm.given, farm.shop))
    assert [(cell.id, cell.result, cell.why) for cell in made.cells] == [("efi-off", "wrong", "hangs")]
    assert farm.engine.problems == ["efi-off: wrong: hangs"]


def test_a_certificate_is_of_one_base(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Whole("CONFIG_ALL=y\n", 10, 1.0, {"userland": frozenset({"epoll"})})
    bases: list[Whole] = []

    def with_all(site: certify.Site, manifest: manifests.Manifest, say: Any) -> Whole:
        say("with all options: 10 bytes")
        return whole

    def left_out(site: certify.Site, manifest: manifests.Manifest, option: Option, base: Whole, say: Any) -> Row:
        bases.append(base)
        run = site.matrix.folder / "runs" / f"{option.name}.own"
        run.mkdir(parents=True)
        (run / "console.log").write_text(option.name)
        return Row(option.name, option.fragment, option.value, option.reason, "row", probe="own", seen="CPUs")

    monkeypatch.setattr(certify, "with_all", with_all)
    monkeypatch.setattr(certify, "left_out", left_out)
    monkeypatch.setattr(cells.Desk, "shop", lambda _: None)
    monkeypatch.setattr(cells.Desk, "tree", lambda _: None)
    asked = {name: Option(name, "y", "10.config", 1, "Why.") for name in ("EPOLL", "FUTEX")}
    monkeypatch.setattr(variants, "requested", lambda *_: asked)
    monkeypatch.setattr(variants, "unasked", lambda *_: [])
    site = certify.Site(
        farm.site,
        farm.shop,
        farm.engine.made.compiler,
        farm.engine.made.qemu,
        farm.at.bundle / "initrd.img",
        tmp_path / "none.json",
    )
    made = certify.run(site, (), farm.said.append, runs.Certificate(farm.engine, farm.given))
    assert [(row.option, row.kind) for row in made.rows] == [("EPOLL", "row"), ("FUTEX", "row")] and made.whole
    assert bases == [whole, whole] and "with all options: 10 bytes" in farm.said
    assert (farm.site.folder / "runs/EPOLL.own/console.log").read_text() == "EPOLL"


def test_evidence_comes_back_and_says_how_it_ended(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(bench: runner.Bench, options: Any, wanted: Launch, say: Any) -> None:
        assert bench.evidence is not None
        folder = bench.evidence / f"boot-test-{options.machine}-{options.cpus}"
        folder.mkdir(parents=True)
        (folder / "verdict.json").write_text("{}")
        (folder / runner.KERNEL_LOG).write_text("of a quiet console")
        say("a table")
        if options.machine == "pc":
            raise GuestFailed("FAIL: CPUs")
        if options.cpus == "8":
            raise ToolError("QEMU said no")

    monkeypatch.setattr(runner, "run", run)
    tests = [each for each in runner.tests(Launch()) if each.name.startswith("boot-test")]
    doer = runs.evidence(farm.engine, farm.given, farm.said.append)
    ended = {each.test: each.ending for each in doer(farm.bench, tests, Launch())}
    assert (ended["boot-test-q35-1"], ended["boot-test-pc-1"], ended["boot-test-q35-8"]) == (
        "passed",
        "failed",
        "failed",
    )
    assert farm.said.count("a table") == len(tests)
    kept = (farm.bench.evidence or Path()) / "boot-test-pc-1"
    assert (kept / "verdict.json").read_text() == "{}"
    assert (kept / runner.KERNEL_LOG).read_text() == "of a quiet console"
    # What only this machine could not do is no result of the cell.
    store, names = farm.engine.store, farm.engine.store.records("cells/")
    found = [each for name in names if (each := store.record(name, Record)) is not None]
    assert {each.cell: each.result for each in found} == {
        f"evidence {each.name}": ended[each.name] for each in tests if each.name != "boot-test-q35-8"
    }
    assert listed.line(listed.Ended("one", "no room", "too large")) == "one is not run: too large"


BUILD = """
import pathlib, shutil, sys
out = pathlib.Path("out/default-4.12/bundle")
shutil.copytree("built", out)
if sys.argv[1] == "leak":
    (out / "initrd.img").write_text(str(pathlib.Path.cwd()))
"""


@pytest.mark.parametrize("leak", ["none", "leak"])
def test_two_builds_on_two_workers_are_compared(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leak: str
) -> None:
    root = tmp_path / "checkout"
    (root / "configs").mkdir(parents=True)
    digest = "5" * 64
    (root / "configs/sources.toml").write_text(f'sha256 = "{digest}"\n')
    (root / "build.py").write_text(BUILD)
    (root / "built").mkdir()
    for path in farm.at.bundle.iterdir():
        (root / "built" / path.name).write_bytes(path.read_bytes())
        (root / "built" / path.name).chmod(path.stat().st_mode)
    (tmp_path / "cache/sha256").mkdir(parents=True)
    (tmp_path / "cache/sha256" / digest).write_text("a download")
    monkeypatch.setenv("MINGUEST_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(reproduce, "COMMAND", (sys.executable, "build.py", leak))
    record = runs.reproduction(
        farm.engine, root, tmp_path / "work", ["guest=x"], farm.at.bundle, [], tmp_path / "cache", farm.said.append
    )
    assert record.result == ("same" if leak == "none" else "different")
    if leak == "none":
        assert record.files == manifests.load(farm.at.bundle).files
    assert (tmp_path / "elsewhere/sha256" / digest).read_text() == "a download"
    built = [line for line in farm.said if " build: done by " in line]
    assert sorted(line.partition(" ")[0] for line in built) == ["first", "second"]
    assert record.not_varied["date"] == "two workers built at the same time, or nearly"
