# SPDX-License-Identifier: Apache-2.0
"""Every path of the project, in one class; and the data folder of an installed minguest."""

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
# Below the cache folder: files that pull downloaded, by SHA-256, as fetch keeps them (`sha256/DIGEST`, .part, .lock). A
# file's time is that of its last use. Sources of kernels and firmware are elsewhere, so that this can be pruned alone.
PULLED = "pulled"
# The launch files of a bundle and of a release: for QEMU and for libvirt.
RUN_GUEST = "run-guest"
DOMAIN = "domain.xml"


def checkout() -> Path | None:
    """The checkout that this minguest runs from; None for an installed one."""
    return None if (PACKAGE / "data").is_dir() else PACKAGE.parent


def known_pits() -> Path:
    """The pits in the package of an installed minguest; else configs/pits/ of the checkout."""
    packed = PACKAGE / "data" / "pits"
    return packed if packed.is_dir() else PACKAGE.parent / "configs" / "pits"


def known_cards() -> Path:
    """The described cards, likewise."""
    packed = PACKAGE / "data" / "cards"
    return packed if packed.is_dir() else PACKAGE.parent / "configs" / "cards"


def _known_to_diagnose() -> Path:
    packed = PACKAGE / "data" / "diagnose"
    return packed if packed.is_dir() else PACKAGE.parent / "configs" / "diagnose"


def known_subsystems() -> Path:
    """Who complains in a log, likewise."""
    return _known_to_diagnose() / "subsystems.toml"


def known_drivers() -> Path:
    """What GPU drivers need, likewise."""
    return _known_to_diagnose() / "drivers.toml"


def boot_tested(folder: Path) -> Path:
    """Where `minguest boot-test` tests a bundle or a release, by its resolved path."""
    return folder.with_name(f"{folder.name}.boot-test")


def kvm_records(folder: Path) -> list[Path]:
    """The files in which boot tests of a bundle or a release record whether KVM runs the firmware on this machine:
    `minguest boot-test`'s, and `doit boot-test`'s for one of a checkout (Layout.kvm)."""
    return [boot_tested(folder) / "kvm.json", folder.parent.parent / "kvm.json"]


@dataclass(frozen=True)
class Store:
    """Results kept by content for all checkouts, below `folder`. All can be deleted while no build runs."""

    folder: Path

    @property
    def trees(self) -> Path:
        """One folder per tree, with a hash of its content in its name."""
        return self.folder / "trees"

    @property
    def configs(self) -> Path:
        """Results of Kconfig, by a hash of the requested options."""
        return self.folder / "configs"

    @property
    def kernels(self) -> Path:
        """One folder per kernel, by the hash of all its inputs."""
        return self.folder / "kernels"

    @property
    def firmware(self) -> Path:
        """One folder per firmware that was built, by the hash of all its inputs."""
        return self.folder / "firmware"

    @property
    def making(self) -> Path:
        """O= folders, while make runs in them."""
        return self.folder / "making"

    @property
    def reproduce(self) -> Path:
        """Two stores for `doit reproduce`, which builds from scratch in each."""
        return self.folder / "reproduce"

    @property
    def cells(self) -> Path:
        """What runs with `scheduler=local:N` share: inputs, kernels, and a record of every cell."""
        return self.folder / "cells"

    @property
    def desks(self) -> Path:
        """Where workers of minguest/scale put a run's inputs, and work."""
        return self.folder / "desks"

    @property
    def objects_compiled(self) -> Path:
        """How many objects earlier builds compiled."""
        return self.folder / "objects.json"

    @property
    def objects(self) -> Path:
        """ccache's folder."""
        return self.folder / "ccache"


@dataclass(frozen=True)
class Layout:
    """Paths below the project's `root`, for one `guest` and one `series`. All of out/ can be deleted at any time."""

    root: Path
    guest: str
    series: str

    @property
    def configs(self) -> Path:
        return self.root / "configs"

    @property
    def fragments(self) -> Path:
        return self.configs / "kernel"

    @property
    def platform(self) -> Path:
        """The description of the firmware that is built, and its patches."""
        return self.configs / "firmware"

    @property
    def patches(self) -> Path:
        return self.fragments / "patches"

    @property
    def pits(self) -> Path:
        return self.configs / "pits"

    @property
    def templates(self) -> Path:
        return self.configs / "templates"

    @property
    def initrd_template(self) -> Path:
        return self.templates / "initrd.list.j2"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def choice(self) -> Path:
        return self.out / f"choice-{self.guest}.json"

    @property
    def kvm(self) -> Path:
        """Whether KVM runs the firmware on this machine, determined once."""
        return self.out / "kvm.json"

    @property
    def initd(self) -> Path:
        return self.out / "initd" / "initd"

    def firmware(self, version: str) -> Path:
        return self.out / "firmware" / version

    @property
    def name(self) -> str:
        return f"{self.guest}-{self.series}"

    @property
    def work(self) -> Path:
        return self.out / self.name

    @property
    def tree(self) -> Path:
        """The record of this guest's tree in the store."""
        return self.work / "tree.json"

    @property
    def config(self) -> Path:
        return self.work / "config"

    @property
    def kernel(self) -> Path:
        return self.work / "kernel"

    @property
    def modules(self) -> Path:
        """One folder per NAME of `doit modules name=NAME`, each an overlay."""
        return self.work / "modules"

    @property
    def drivers(self) -> Path:
        return self.work / "drivers.img"

    @property
    def initrd(self) -> Path:
        return self.work / "initrd.img"

    @property
    def bundle(self) -> Path:
        return self.work / "bundle"

    @property
    def boot_test(self) -> Path:
        return self.work / "boot-test"

    @property
    def rehearse(self) -> Path:
        return self.work / "rehearse"

    @property
    def rehearsed(self) -> Path:
        return self.work / "rehearsal.json"

    @property
    def evidence(self) -> Path:
        """One folder per check, with its evidence for the release."""
        return self.work / "evidence"

    @property
    def reproduced(self) -> Path:
        return self.work / "reproduce.json"

    @property
    def matrices(self) -> Path:
        """The fault matrices of all guests and series, and their page."""
        return self.out / "pits"

    @property
    def certified(self) -> Path:
        """certificate.json, and a folder for each boot that showed something."""
        return self.out / "certify" / self.name

    @property
    def matrix(self) -> Path:
        return self.matrices / self.name

    @property
    def bench(self) -> Path:
        """What the benchmark measured: a file a part, and the timeline of its boots."""
        return self.out / "bench"

    @property
    def release(self) -> Path:
        return self.work / "release"

    @property
    def release_before(self) -> Path:
        """The last release of another version in `release`: the notes of the next one compare with it."""
        return self.work / "release-before"

    def log(self, step: str) -> Path:
        return self.work / "log" / f"{step}.log"
