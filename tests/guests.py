# SPDX-License-Identifier: Apache-2.0
"""A bundle's kernel and firmware with an initrd of the test's own: how the initrd is made, and how QEMU starts it."""

from collections.abc import Sequence
from pathlib import Path

from minguest.bundle import initrd
from minguest.model import Launch
from minguest.util import run
from minguest.vm import arguments, emulator, launch
from tests import ROOT

TEMPLATE = ROOT / "configs/templates/initrd.list.j2"


def compile_initd(target: Path, defines: Sequence[str] = ()) -> Path:
    """initd as its sources are now, with these options of the compiler."""
    if defines:
        argv = initrd.compiler_argv(sorted((ROOT / "initd").glob("*.c")), target, strict=True)
        run.run([*argv, *defines])
    else:
        initrd.compile_initd(ROOT / "initd", target, target.with_suffix(".log"), strict=True)
    return target


def make_initrd(target: Path, *overlays: Path, initd: Path | None = None) -> Path:
    """An initrd with these overlays; without an `initd`, it is compiled beside the initrd."""
    initrd.build(TEMPLATE, initd or compile_initd(target.with_name("initd")), overlays, target)
    return target


def command(bundle: Path, wanted: Launch, image: Path, folder: Path, series: str) -> tuple[launch.Spec, list[str]]:
    """The launch, settled for software emulation, and QEMU's command for it in `folder`, which gets the firmware's
    variables."""
    models = emulator.display_models() if wanted.gpus else ()
    spec = launch.settle(wanted, launch.Options(accel="tcg"), 64, models, Path("/sys"), series)
    (folder / "OVMF_VARS.fd").write_bytes((bundle / "OVMF_VARS.fd").read_bytes())
    argv = arguments.argv(
        spec,
        code=str(bundle / "OVMF_CODE.fd"),
        variables="OVMF_VARS.fd",
        kernel=str(bundle / "bzImage"),
        initrd=str(image),
    )
    return spec, argv
