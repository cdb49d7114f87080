# SPDX-License-Identifier: Apache-2.0
"""A fault changes what it names, and nothing else."""

import gzip
import io
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from minguest.boottest.faults import CRASHES, EATS, ENDS, FAULTS, POWERS_OFF, Parts, program
from minguest.bundle import cpio
from minguest.model import Launch
from minguest.util import archive
from minguest.vm import arguments, launch

INITD = b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\0" + b"initd"
ENTRIES = [cpio.Entry("dev", 0o40755), cpio.Entry("init", 0o100755, INITD), cpio.Entry("etc", 0o100644, b"x")]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    kernel = bytearray(40960)
    kernel[0x3C:0x40] = (0x80).to_bytes(4, "little")
    kernel[0x80:0x86] = b"PE\0\0\x64\x86"
    for name, content in {
        "code": bytes(8192), "variables": b"v" * 4096, "kernel": bytes(kernel),
        "initrd": archive.gzip_bytes(cpio.archive(cpio.merge(ENTRIES))),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    code, variables, image, initrd = (tmp_path / name for name in ("code", "variables", "kernel", "initrd"))
    return Parts(tmp_path, tmp_path / "ovmf.deb", code, variables, image, initrd)


def command(parts: Parts, *faults: str) -> list[str]:
    """QEMU's argv after the fault."""
    for fault in faults:
        FAULTS[fault](parts)
    spec = launch.settle(Launch(), launch.Options(accel="tcg"), 64, ["secondary-vga"], Path("/sys"))
    argv = arguments.argv(spec, code="c", variables="v", kernel="k", initrd="i")
    for edit in parts.edits:
        argv = edit(argv)
    return argv


def members(parts: Parts) -> dict[str, tuple[int, bytes]]:
    found, _ = cpio.parse(gzip.decompress(parts.initrd.read_bytes()))
    return {each.name: (each.mode, each.data) for each in found}


def test_a_module_for_another_kernel_is_one_as_far_as_the_kernel_reads_it(parts: Parts) -> None:
    before = members(parts)
    FAULTS["module=other-kernel"](parts)
    after = members(parts)
    _, module = after.pop("other.ko")
    assert after == before
    elf = ELFFile(io.BytesIO(module))
    assert (elf["e_type"], elf["e_machine"]) == ("ET_REL", "EM_X86_64")
    kinds = {section.name: section["sh_type"] for section in elf.iter_sections()}
    assert kinds == {
        "": "SHT_NULL", ".modinfo": "SHT_PROGBITS", ".gnu.linkonce.this_module": "SHT_PROGBITS",
        ".symtab": "SHT_SYMTAB", ".strtab": "SHT_STRTAB", ".shstrtab": "SHT_STRTAB",
    }  # fmt: skip
    content = {section.name: section.data() for section in elf.iter_sections()}
    assert b"vermagic=1.2.3 SMP mod_unload " in content[".modinfo"].split(b"\0")
    assert content[".gnu.linkonce.this_module"][24:30] == b"other\0"
    assert (content[".symtab"], content[".strtab"]) == (bytes(24), b"\0")


def test_modules_of_another_release_are_all_there_are(parts: Parts) -> None:
    before = members(parts)
    FAULTS["modules=other-release"](parts)
    added = {name for name in members(parts) if name not in before}
    assert added == {"lib", "lib/modules", "lib/modules/1.2.3", "lib/modules/1.2.3/modules.dep"}


@pytest.mark.parametrize(
    ("fault", "gone"),
    [
        ("firmware=seabios", {"-drive"}),
        ("initrd=none", {"-initrd"}),
        ("kernel=none", {"-kernel", "-initrd", "-append"}),
        ("gpu=left-out", {"secondary-vga,id=gpu0"}),
    ],
)
def test_options_are_left_out_with_their_values(parts: Parts, fault: str, gone: set[str]) -> None:
    whole, cut = command(parts), command(parts, fault)
    assert gone <= set(whole) and not gone & set(cut)
    rest = [each for each in cut if each.startswith("-")]
    assert "-serial" in rest and "-chardev" in rest and cut[0] == whole[0]
    # Each option has kept its value: arguments of the whole command, in their order.
    positions = iter(whole)
    assert all(each in positions for each in cut)


def test_parameters_and_devices(parts: Parts) -> None:
    (append,) = [each for each in command(parts, "console=elsewhere") if "panic=-1" in each]
    assert "console=ttyS1" in append and "ttyS0" not in append
    assert command(parts, "gpu=no-such-card")[-2] == "-device"
    command(parts, "nmi")
    assert parts.nmi


def test_an_initrd_gets_another_init_and_keeps_the_rest(parts: Parts) -> None:
    original = parts.initrd
    wanted = {
        "init=missing": None, "init=not-executable": (0o100644, INITD), "init=crashes": (0o100755, program(CRASHES)),
        "init=ends": (0o100755, program(ENDS)), "init=eats-memory": (0o100755, program(EATS)),
        "init=powers-off": (0o100755, program(POWERS_OFF)),
    }  # fmt: skip
    for fault, init in wanted.items():
        parts.initrd = original
        command(parts, fault)
        found = members(parts)
        assert found.pop("init", None) == init
        assert found == {"dev": (0o40755, b""), "etc": (0o100644, b"x")}
    parts.initrd = original
    command(parts, "init=other-machine")
    assert members(parts)["init"][1][18:20] == b"\xb7\0" and members(parts)["init"][1][20:] == INITD[20:]
    assert parts.initrd != original and original.read_bytes()[:2] == b"\x1f\x8b"


def test_files_are_damaged_as_said(parts: Parts) -> None:
    kernel, code, initrd = parts.kernel.read_bytes(), parts.code, parts.initrd.read_bytes()
    command(parts, "kernel=damaged", "firmware=odd-size", "firmware=wrong-variables", "initrd=cut")
    damaged = parts.kernel.read_bytes()
    differs = [at for at, (a, b) in enumerate(zip(kernel, damaged, strict=True)) if a != b]
    assert len(damaged) == len(kernel) and differs == list(range(20480, 24576))
    assert parts.code.stat().st_size == code.stat().st_size - 1000
    assert parts.variables.read_bytes() == b"\xff" * 4096
    assert parts.initrd.read_bytes() == initrd[: len(initrd) // 2]


def test_other_kernels_and_noise(parts: Parts) -> None:
    size = parts.initrd.stat().st_size
    command(parts, "kernel=other-machine", "initrd=noise")
    assert parts.kernel.read_bytes()[0x84:0x86] == b"\x4c\x01"
    assert parts.initrd.stat().st_size == size and parts.initrd.read_bytes()[:2] != b"\x1f\x8b"


@pytest.mark.parametrize(("code", "status"), [(ENDS, 3), (CRASHES, -11)], ids=["ends", "crashes"])
def test_the_small_programs_are_programs(tmp_path: Path, code: bytes, status: int) -> None:
    path = tmp_path / "program"
    path.write_bytes(program(code))
    path.chmod(0o755)
    elf = ELFFile(io.BytesIO(program(code)))
    assert (elf["e_machine"], elf["e_type"], elf.num_segments()) == ("EM_X86_64", "ET_EXEC", 1)
    assert subprocess.run([path], check=False).returncode == status
