# SPDX-License-Identifier: Apache-2.0
"""A guest in miniature, as if it had been built and boot-tested, for the tests of releases; real keys."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from minguest.boottest import runner, verdict
from minguest.bundle import manifests
from minguest.model import Launch, Machine
from minguest.paths import Layout
from minguest.release import assemble, layout
from minguest.util import files
from minguest.vm import cards, launch, report, scripts
from tests import ROOT

LAUNCH = Launch()
REPORT = report.Report(
    complete=True,
    records=({"record": "begin", "protocol": 1, "cmdline": "console=ttyS0", "uptime": 0.75},),
    pci=(
        report.PciDevice(
            "0000:00:01.0", "1234", "1111", "038000", True, (report.Bar(0, "0x80000000", 1 << 24, "mem32", True),)
        ),
    ),
)
MODULES = {
    "format": 1, "name": "cards", "source": "7" * 64,
    "kernel": {"format": 1, "release": "4.12.14", "vermagic": "4.12.14 SMP ", "build_id": "ab" * 20,
               "symvers": "8" * 64, "config": "9" * 64, "compiler": "gcc 12"},
    "modules": [{
        "name": "my_card", "file": "my-card.ko", "version": "1.2", "licence": "Dual MIT/GPL", "sha256": "6" * 64,
        "size": 10, "vermagic": "4.12.14 SMP ", "depends": [], "firmware": [], "aliases": [], "softdeps": [],
        "parameters": [], "signed": False,
    }],
}  # fmt: skip
# With what a URL has to have encoded: a colon in the version, a plus.
PACKAGE = {
    "version": "1:2-3+b1", "sha256": "1" * 64, "urls": ["https://example.org/tool_2-3+b1_amd64.deb"],
    "licence": "GPL-2.0-only AND LGPL-2.1-or-later",
    "source": [{"urls": ["https://example.org/tool_2-3.dsc"], "sha256": "2" * 64},
               {"urls": ["https://example.org/tool_2%2B0.tar.xz", "https://example.net/3"], "sha256": "3" * 64}],
}  # fmt: skip


def quiet(_: str) -> None:
    """Takes what would be said."""


def key(folder: Path, name: str = "key", passphrase: str = "") -> Path:
    """A new Ed25519 key; its public half is beside it as NAME.pub."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "a test", "-f", folder / name], check=True
    )
    return folder / name


def patch() -> str:
    """The first of the project's own patches for 4.12."""
    return next(f"4.12/{path.name}" for path in sorted((ROOT / "configs/kernel/patches/4.12").glob("*.patch")))


def facts(modules: Sequence[Any] = (), drivers: Mapping[str, Any] | None = None, **kernel: Any) -> dict[str, Any]:
    """What a manifest says beside its files."""
    return {
        "guest": {"name": "default", "kernel": ["4.12"], "launch": msgspec.to_builtins(LAUNCH)},
        "kernel": {
            "wanted": ["4.12"], "series": "4.12", "version": "4.12.14", "reason": "in the cache",
            "origin": "sha256:" + "a" * 64, "urls": ["https://example.org/linux-4.12.14.tar.xz"],
            "licence": "GPL-2.0-only WITH Linux-syscall-note", "signature": "not verified: a test",
            "patches": [{"file": patch(), "sha256": files.sha256(ROOT / "configs/kernel/patches" / patch()),
                         "reason": "it has one"}],
            "inspected": {},
            **kernel,
        },
        "config": {"problems": [], "requested": 3, "fragments": {"20-efi.config": "b" * 64}},
        "initrd": {"initd": {"sha256": "c" * 64, "size": 75000}, "template": "d" * 64,
                   "overlays": {"base/etc/passwd": "e" * 64}, "packages": {"tool": PACKAGE},
                   "modules": modules},
        "drivers": drivers,
        "firmware": {"version": "2025.02-8+deb13u1", "sha256": "f" * 64, "urls": ["http://example.org/ovmf.deb"],
                     "licence": "BSD-2-Clause-Patent"},
        "tools": {"gcc": "12.2.0", "binutils": "2.40", "glibc": "2.36", "musl": "1.2.3"},
    }  # fmt: skip


def build(
    root: Path,
    config: str = "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_EFI=y\n",
    extra: Mapping[str, bytes] | None = None,
    **kernel: Any,
) -> Layout:
    """A bundle of small files below `root`, which has the project's real configs/; `extra` has other content."""
    root.mkdir(exist_ok=True)
    if not (root / "configs").exists():
        (root / "configs").symlink_to(ROOT / "configs")
    at = Layout(root, "default", "4.12")
    parts = root / "parts"
    parts.mkdir(exist_ok=True)
    for name in ("bzImage", "initrd.img", "OVMF_CODE.fd", "OVMF_VARS.fd", "System.map"):
        (parts / name).write_bytes(f"{name}: {config}".encode() * 7)
    (parts / "kernel.config").write_text(config)
    for name, content in (extra or {}).items():
        (parts / name).write_bytes(content)
    said = facts(**kernel)
    manifests.write(at.bundle, {path.name: path for path in sorted(parts.iterdir())}, said, launch_files(at, said))
    return at


def launch_files(at: Layout, said: Mapping[str, Any], sysfs: Path = Path("/sys")) -> dict[str, str]:
    """run-guest and domain.xml of LAUNCH, as a machine with this /sys makes them."""
    about = scripts.About(at.name, said["kernel"]["version"], said["firmware"]["version"])
    return scripts.render(at.templates, about, LAUNCH, launch.shipped(LAUNCH, at.series, sysfs, ""))


def tested(at: Layout, machine: Machine = "q35", cpus: int = 4, result: str = "pass") -> None:
    """Evidence that a boot test left, of the bundle as it is."""
    manifest = manifests.load(at.bundle)
    spec = launch.Spec(
        machine, "tcg", "max", cpus, 64, 1 << 30, (cards.Gpu("gpu0", "secondary-vga", model="secondary-vga"),), (), 60
    )
    judged = verdict.Verdict(
        result=result,  # type: ignore[arg-type]
        reason="three views agree" if result == "pass" else "CPUs: 1 of 4",
        checks=(verdict.Check("CPUs", str(cpus), str(cpus), str(cpus), result == "pass"),),
        phases=verdict.Phases(2.0, 1.0, 0.01, 3.1),
        ending="power-off",
    )
    outcome = runner.Outcome(manifest.files, LAUNCH, spec, "7.2", "tcg as requested", ("qemu",), judged)
    folder = at.evidence / f"boot-test-{machine}-{cpus}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "console.log").write_text("Linux version 4.12\n<b>no markup</b>\n")
    (folder / "report.json").write_bytes(msgspec.json.encode(REPORT))
    (folder / "verdict.json").write_bytes(msgspec.json.encode(outcome))


def make(at: Layout, signing: Path | None, version: str = "1.0", since: Path | None = None) -> layout.Release:
    """doit release, quietly; without a key an unsigned one, as requested."""
    return assemble.make(at, version, signing, since, unsigned=signing is None, say=quiet)


def checkout(at: Layout) -> None:
    """Make what `build` made a checkout: doit runs in its root, with `doit_argv`."""
    for name in ("dodo.py", "pyproject.toml"):
        shutil.copyfile(ROOT / name, at.root / name)
    for name in ("initd", "overlays"):
        (at.root / name).symlink_to(ROOT / name)
    tree = at.root / "tree"
    tree.mkdir()
    (tree / "Makefile").write_text("VERSION = 4\nPATCHLEVEL = 12\nSUBLEVEL = 14\nEXTRAVERSION =\n")


def doit_argv(*arguments: str) -> list[str]:
    """doit for one step of a `checkout`: without the steps before it (-s), and with a kernel that needs no network."""
    return [sys.executable, "-m", "doit", "-s", *arguments, "source=tree"]


def doit_env(**more: str) -> dict[str, str]:
    """The environment for it: this minguest."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}
