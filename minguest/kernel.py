# SPDX-License-Identifier: Apache-2.0
"""The kernel: its config from fragments, verified before anything is compiled; its build; its inspection."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from minguest import binary, contract, files, kconfig, run, settings
from minguest.errors import ToolError, UserError
from minguest.model import Launch
from minguest.progress import Progress

# What would tell two builds of the same input apart. The date is any fixed one: the kernel prints it in its banner.
REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "minguest",
    "KBUILD_BUILD_HOST": "minguest",
    "KBUILD_BUILD_VERSION": "1",
    # Set, though empty: setlocalversion adds no "+" for a tree inside of a git checkout then.
    "LOCALVERSION": "",
}

# Tools that 6.12's Kconfig asks for their version, which it writes into the config, and so into the image; nothing here
# is built with them. Where a builder has them makes no difference if they go by names that nobody has.
UNASKED = {"RUSTC": "no-rustc", "BINDGEN": "no-bindgen", "PAHOLE": "no-pahole"}


class Configured(msgspec.Struct, frozen=True):
    """How a config was verified: beside kernel.config as config.json."""

    requested: int
    """How many options the fragments and the guest ask for."""
    problems: tuple[str, ...]
    """What verification found, only ever kept with contract=ignore."""


class Inspected(msgspec.Struct, frozen=True):
    """What the built image is: beside bzImage as kernel.json."""

    vmlinux: binary.Elf
    bzimage: binary.BzImage


def make_argv(tree: Path, out: Path, jobs: int, *targets: str) -> list[str]:
    """The make command for a build of `tree` in the folder `out`."""
    # 4.12 knows its tree by an absolute path where O= is elsewhere; __FILE__ would carry it into the image.
    prefix_map = f"-fmacro-prefix-map={tree}/="
    return [
        "make",
        "-C", str(tree),
        f"O={out}",
        f"-j{jobs}",
        "ARCH=x86",
        f"KCFLAGS={prefix_map}",
        f"KAFLAGS={prefix_map}",
        *(f"{name}={value}" for name, value in (REPRODUCIBLE | UNASKED).items()),
        *targets,
    ]  # fmt: skip


def configure(
    tree: Path,
    line: str,
    fragments: Sequence[Path],
    overrides: Mapping[str, str | int | bool],
    rules: Sequence[contract.Rule],
    launch: Launch,
    target: Path,
    *,
    root: Path,
    guest_file: str,
    others: Mapping[str, Path],
    ignore: bool,
    log: Path,
    say: Callable[[str], None],
) -> Configured:
    """Write `target`/kernel.config from the fragments; UserError stops here, before anything is compiled.

    The kernel's own tools merge and resolve; what they made is verified: every request is in it, and the contract
    of the launch holds. With `ignore` these two are said and kept, and do not stop. `others` are trees of other
    lines, to tell an option of theirs from a typing error.
    """
    requested = kconfig.merge(kconfig.read(fragments, root), overrides, guest_file)
    symbols = kconfig.known_symbols(tree)
    if any(name not in symbols for name in requested):
        elsewhere = {other: kconfig.known_symbols(path) for other, path in others.items()}
        kconfig.refuse(kconfig.unknown(requested, line, symbols, elsewhere))
    work = target / "work"
    work.mkdir(parents=True, exist_ok=True)
    merged = work / "merged.config"
    merged.write_text(kconfig.render(requested))
    run.run(make_argv(tree, work, 1, "tinyconfig"), log=log.with_suffix(".tinyconfig.log"), bare=True)
    run.run(
        [tree / "scripts/kconfig/merge_config.sh", "-m", "-O", work, work / ".config", merged],
        cwd=tree,
        log=log.with_suffix(".merge.log"),
        bare=True,
    )
    run.run(make_argv(tree, work, 1, "olddefconfig"), log=log, bare=True)
    text = (work / ".config").read_text()
    config = kconfig.parse_config(text)
    breaches = contract.check(rules, config, launch, line)
    unmet = kconfig.unmet(requested, config)
    problems = [contract.describe(breaches)] if breaches else []
    if unmet:
        from minguest import explain  # noqa: PLC0415 - kconfiglib is slow to import

        why = explain.explain_all(tree, text, [each.option.name for each in unmet])
        problems.append(kconfig.describe(unmet, why))
    if problems and not ignore:
        raise UserError(
            f"the config of linux {line} is not what was asked for, nothing was compiled\n" + "\n".join(problems),
            "mend the fragments named above, or the guest's [options]; contract=ignore builds it all the same",
        )
    for problem in problems:
        say(f"contract=ignore: {problem}")
    result = Configured(len(requested), tuple(problems))
    files.write(target / "config.json", msgspec.json.format(msgspec.json.encode(result)))
    files.write(target / "kernel.config", text)
    return result


def build(tree: Path, config: Path, out: Path, *, version: str, log: Path, say: Callable[[str], None]) -> Inspected:
    """Build bzImage in `out`, resuming what an earlier run left there, and inspect it."""

    def waiting() -> None:
        say(f"waiting for another build in {out}")

    # make keeps a copy of the lock: if this process is killed, the next one waits until make and its children are gone.
    with files.lock(out.with_name(f".{out.name}.lock"), waiting) as held:
        # An O= folder belongs to one tree.
        belongs = out / ".tree"
        if out.exists() and (not belongs.exists() or belongs.read_text() != str(tree)):
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        belongs.write_text(str(tree))
        dot_config = out / ".config"
        text = config.read_text()
        if not dot_config.exists() or dot_config.read_text() != text:
            files.write(dot_config, text)
        with Progress(f"linux {version}") as progress:
            run.run(
                make_argv(tree, out, settings.jobs(), "bzImage"),
                log=log,
                on_line=progress.step,
                bare=True,
                pass_fds=(held,),
            )
        if dot_config.read_text() != text:
            raise ToolError(f"{dot_config}: make changed the verified config", f"see {log}")
        inspected = inspect(out, kconfig.parse_config(text))
        files.write(out / "kernel.json", msgspec.json.format(msgspec.json.encode(inspected)))
        return inspected


def image(out: Path) -> Path:
    """Where a build leaves its bzImage."""
    return out / "arch/x86/boot/bzImage"


def inspect(out: Path, config: Mapping[str, str]) -> Inspected:
    """Compare what was built with the config that it was built from; ToolError names what disagrees."""
    vmlinux, bzimage = binary.elf(out / "vmlinux"), binary.bzimage(image(out))
    wrong = []
    if (vmlinux.machine, vmlinux.bits, vmlinux.static) != ("x64", 64, True):
        wrong.append(f"vmlinux is {vmlinux.machine}, {vmlinux.bits} bits, static {vmlinux.static}")
    if "kernel-64" not in bzimage.xloadflags:
        wrong.append(f"bzImage has no 64-bit entry: xloadflags {', '.join(bzimage.xloadflags) or 'none'}")
    wants_stub = config.get("EFI_STUB") == "y"
    if bzimage.efi_stub != wants_stub:
        wrong.append(f"EFI_STUB is {'y' if wants_stub else 'n'}, but the image {'lacks' if wants_stub else 'has'} it")
    if bzimage.relocatable != (config.get("RELOCATABLE") == "y"):
        wrong.append(f"RELOCATABLE is {config.get('RELOCATABLE', 'n')}, but the header says {bzimage.relocatable}")
    if config.get("IKCONFIG") == "y":
        carried = binary.embedded_config(out / "vmlinux")
        if carried is None or kconfig.parse_config(carried) != config:
            wrong.append("the config that the image carries is not the one that it was to be built from")
    if wrong:
        raise ToolError(f"{image(out)} is not what its config says: " + "; ".join(wrong), "delete out/ and build again")
    return Inspected(vmlinux, bzimage)
