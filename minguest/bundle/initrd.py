# SPDX-License-Identifier: Apache-2.0
"""PID 1 and its initrd: initd is compiled from initd/*.c with musl; the initrd is a list rendered from a template,
with the overlays, in newc, compressed by gzip."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minguest import VERSION
from minguest.bundle import cpio, overlay
from minguest.kernel import binary
from minguest.util import archive, files, run, templates
from minguest.util.errors import ToolError


def compiler_argv(sources: Sequence[Path], target: Path, *, strict: bool = False) -> list[str]:
    """The compiler's command; `strict`: a warning is an error. Each function has a section of its own, so that the
    linker drops what is not used."""
    return [
        "musl-gcc",
        "-std=gnu11", "-static", "-Os", "-s",
        "-Wall", "-Wextra", *["-Werror"] * strict,
        "-fno-asynchronous-unwind-tables", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections",
        # The build ID would depend on paths of this machine's C library.
        "-Wl,--build-id=none",
        # Code and constants in one segment, and none that a loader would protect: up to 15 KB of padding less.
        "-Wl,-z,noseparate-code,-z,norelro",
        f'-DINITD_VERSION="{VERSION}"',
        "-o", str(target),
        *map(str, sources),
    ]  # fmt: skip


def compile_initd(folder: Path, target: Path, log: Path, *, strict: bool = False) -> None:
    """Compile initd; ToolError unless the result is a static program for x86-64.

    The tests are `strict`: no warning. For a user it is not an error if a newer compiler warns about more.
    """
    with files.replacing(target) as temporary:
        run.run(compiler_argv(sorted(folder.glob("*.c")), temporary, strict=strict), log=log, bare=True)
        facts = binary.elf(temporary)
        if not facts.static or facts.machine != "x64":
            raise ToolError(
                f"{target}: is {facts}, but PID 1 must be a static x86-64 program", "is musl-gcc's musl whole?"
            )
        temporary.chmod(0o755)


def musl_version() -> str:
    """musl's version, from its loader's output."""
    _, text = run.run(["/lib/ld-musl-x86_64.so.1"], check=False)
    found = re.search(r"Version (\S+)", text)
    return found[1] if found else "unknown"


def build(
    template: Path, initd: Path, overlays: Sequence[Path], target: Path, debs: Mapping[str, Path] | None = None
) -> None:
    """Write the initrd: the template's list, with `initd` as the file of that name, and the overlays' folders.

    `debs`: the Debian packages that the overlays take files from, by their names in sources.toml. UserError where
    two overlays, or one and the list, claim a path differently.
    """
    base = cpio.parse_list(templates.render(template, initd=str(initd)), str(template))
    layers = [layer for folder in overlays for layer in overlay.layers(folder, debs or {})]
    entries = overlay.combine(overlay.Layer(str(template), tuple(base)), layers)
    files.write(target, archive.gzip_bytes(cpio.archive(entries)))
