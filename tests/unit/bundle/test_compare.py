# SPDX-License-Identifier: Apache-2.0
"""What differs is named: the section, the entry, the option; and damaged input is still compared."""

import bz2
import gzip
import json
import lzma
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minguest.bundle import compare, cpio, openers
from minguest.bundle.reproduction import Difference
from minguest.util import run
from minguest.util.errors import ToolError, UserError
from tests.unit.kernel.test_binary import header, with_pe

Compare = Callable[[bytes, bytes], list[Difference]]


@pytest.fixture
def differ(tmp_path: Path) -> Compare:
    """Compares two contents as the file `x` of two folders."""

    def differ(first: bytes, second: bytes) -> list[Difference]:
        for name, data in (("one", first), ("two", second)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "x").write_bytes(data)
        return compare.folders(tmp_path / "one", tmp_path / "two")

    return differ


def places(differences: list[Difference]) -> list[str]:
    return [each.where for each in differences]


@pytest.fixture(scope="session")
def elves(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """One object, and the same with another constant in its code and another text in its data."""
    folder = tmp_path_factory.mktemp("elf")
    made = []
    for number, text in ((7, "left"), (8, "next")):
        (folder / "x.c").write_text(f'char text[] = "{text}";\nint answer(void) {{ return {number}; }}\n')
        subprocess.run(["gcc", "-O1", "-c", "-o", "x.o", "x.c"], cwd=folder, check=True)
        made.append((folder / "x.o").read_bytes())
    return made[0], made[1]


def image(payload: bytes, *, name: bytes = b".text", pe: bool = True, tail: bytes = b"decompressor\0") -> bytes:
    """A bzImage: boot header, perhaps a PE header with one section, a head, the payload, and code behind it."""
    setup = 4 * 512
    body = b"head\0\xff" * 64
    data = bytearray((with_pe(header(), 0x8664, 10) if pe else header())[:setup].ljust(setup, b"\0"))
    data[0x1F1] = 3
    struct.pack_into("<II", data, 0x248, len(body), len(payload))
    body += payload + tail
    if pe:
        struct.pack_into("<H", data, 0x40 + 6, 1)
        struct.pack_into("<8sIIII12xI", data, 0x40 + 24 + 0xA0, name, len(body), setup, len(body), setup, 0x60000020)
    return bytes(data) + body


def with_size(packed: bytes, content: bytes) -> bytes:
    return packed + struct.pack("<I", len(content))


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout


# ── folders ──


def test_the_same_is_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/a").write_bytes(b"\x7fELF and not an ELF file")
        (tmp_path / name / "link").symlink_to("sub")
    os.utime(tmp_path / "one/sub/a", (0, 0))
    (tmp_path / "one/sub/a").chmod(0o600)
    assert compare.folders(tmp_path / "one", tmp_path / "two") == []


def test_a_file_on_one_side_only_is_named(tmp_path: Path) -> None:
    (tmp_path / "one/sub").mkdir(parents=True)
    (tmp_path / "one/sub/a").write_bytes(b"abc")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/b").write_bytes(b"")
    assert compare.folders(tmp_path / "one", tmp_path / "two") == [
        Difference("b", "", "missing", "size 0, sha256 e3b0c44298fc…"),
        Difference("sub/a", "", "size 3, sha256 ba7816bf8f01…", "missing"),
    ]


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one/a").symlink_to(".")
    (tmp_path / "two/a").symlink_to("..")
    (tmp_path / "one/b").symlink_to("a")
    (tmp_path / "two/b").write_text("")
    (tmp_path / "one/long").symlink_to("x" * 2000 + "1")
    (tmp_path / "two/long").symlink_to("x" * 2000 + "2")
    rows = compare.folders(tmp_path / "one", tmp_path / "two")
    assert rows[:2] == [
        Difference("a", "", "link to .", "link to .."),
        Difference("b", "", "link to a", "size 0, sha256 e3b0c44298fc…"),
    ]
    assert [row.file for row in rows[2:]] == ["long"]


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    os.mkfifo(tmp_path / "one/a")
    (tmp_path / "two/a").write_text("")
    for name in ("one", "two"):
        os.mkfifo(tmp_path / name / "b")
    rows = compare.folders(tmp_path / "one", tmp_path / "two")
    pipe = "not a regular file, not compared"
    assert rows == [Difference("a", "", pipe, "size 0, sha256 e3b0c44298fc…"), Difference("b", "", pipe, pipe)]


def test_a_missing_folder_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        compare.folders(tmp_path, tmp_path / "nowhere")


# ── bytes and texts ──


def test_bytes(differ: Compare) -> None:
    assert differ(b"\0abcdef", b"\0abXdeY") == [
        Difference("x", "", "size 7, at 0x3: 63 64 65 66", "size 7, at 0x3: 58 64 65 59 (2 bytes differ)")
    ]
    assert differ(b"\0ab", b"\0abc") == [
        Difference("x", "", "size 3, at 0x3: the end", "size 4, at 0x3: 63 (1 bytes differ)")
    ]


@given(st.binary(max_size=9), st.binary(max_size=9), st.sampled_from([0, compare.CHUNK - 3, 2 * compare.CHUNK]))
def test_bytes_are_counted_right(first: bytes, second: bytes, padding: int) -> None:
    one, two = b"\0" * padding + first, b"\0" * padding + second
    pairs = list(zip(first, second, strict=False))
    count = sum(a != b for a, b in pairs) + abs(len(first) - len(second))
    at = padding + next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    _, left, right = compare._bytes("", one, two)
    assert f"size {len(one)}, at {at:#x}: " in left
    assert right.endswith(f"({count} bytes differ)")


def test_the_first_line_that_differs(differ: Compare) -> None:
    assert differ(b"a\nb\nc\n", b"a\nX\nY\n") == [Difference("x", "line 2", "b", "X")]
    assert differ(b"a\nb", b"a") == [Difference("x", "line 2", "b", "no such line")]


def test_a_long_line_is_shown_where_it_differs(differ: Compare) -> None:
    [row] = differ(b"x" * 500 + b"left" + b"y" * 500, b"x" * 500 + b"next" + b"y" * 500)
    assert "left" in row.first
    assert "next" in row.second
    assert len(row.first) < 80
    [row] = differ(b"x" * 500, b"x" * 500 + b"next")
    assert row.second.endswith("next")


def test_nothing_that_a_terminal_obeys_is_shown(differ: Compare) -> None:
    [row] = differ(b"\x1b[2Jone\r", b"two")
    assert row.first == r"\x1b[2Jone\r"


def test_a_config_by_option(differ: Compare) -> None:
    first = b"#\n# Linux/x86\n#\nCONFIG_EFI=y\n# CONFIG_SMP is not set\nCONFIG_A=1\n\nCONFIG_B=2\n"
    second = b"#\n# Linux/x86\n#\n# CONFIG_EFI is not set\nCONFIG_SMP=y\nCONFIG_A=1\n"
    assert differ(first, second) == [
        Difference("x", "CONFIG_EFI", "y", "n"),
        Difference("x", "CONFIG_SMP", "n", "y"),
        Difference("x", "CONFIG_B", "2", "missing"),
    ]


def test_a_configs_comment_is_a_difference_too(differ: Compare) -> None:
    assert places(differ(b"# of today\nCONFIG_A=1\n", b"# of yesterday\nCONFIG_A=1\n")) == ["line 1"]


def test_json_by_path(differ: Compare) -> None:
    first = {"tools": {"gcc": "12"}, "patches": [{"file": "a"}], "n": 1, "empty": []}
    second = {"tools": {"gcc": "13"}, "patches": [{"file": "a"}, {"file": "b"}], "n": True, "empty": {}}
    assert differ(json.dumps(first).encode(), json.dumps(second).encode()) == [
        Difference("x", "tools.gcc", '"12"', '"13"'),
        Difference("x", "n", "1", "true"),
        Difference("x", "empty", "[]", "{}"),
        Difference("x", "patches[1].file", "missing", '"b"'),
    ]


def test_json_spelled_otherwise_differs_as_text(differ: Compare) -> None:
    assert places(differ(b'{"a": 1}', b'{"a":1}')) == ["line 1"]
    assert places(differ(b"[" * 100000, b"[" * 100000 + b"x")) == ["line 1"]


def test_a_text_with_options_in_it_is_no_config(differ: Compare) -> None:
    assert places(differ(b"set:\nCONFIG_A=1\n", b"set:\nCONFIG_A=2\n")) == ["line 2"]


# ── ELF ──


def test_an_elf_file_by_section(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    rows = differ(*elves)
    assert places(rows) == [".text", ".data"]
    assert "6c 65 66 74" in rows[1].first
    assert "6e 65 78 74" in rows[1].second


def test_a_symbol_by_name(differ: Compare, tmp_path: Path) -> None:
    made = []
    for name, size in (("left", 4), ("next", 8)):
        (tmp_path / "x.c").write_text(f"char both[{size}]; int {name};\n")
        subprocess.run(["gcc", "-c", "-o", "x.o", "x.c"], cwd=tmp_path, check=True)
        made.append((tmp_path / "x.o").read_bytes())
    rows = {each.where: (each.first, each.second) for each in differ(*made)}
    assert rows[".symtab symbol both st_size"] == ("0x4", "0x8")
    assert rows[".symtab symbol left st_size"] == ("0x4", "missing")
    assert rows["section header .bss sh_size"] == ("0x8", "0xc")
    assert ".strtab" in rows


def test_an_elf_header_by_field(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    changed = bytearray(elves[0])
    struct.pack_into("<Q", changed, 0x18, 0x1234)
    assert differ(elves[0], bytes(changed)) == [Difference("x", "ELF header e_entry", "0x0", "0x1234")]


def test_sections_of_one_name_and_without_bytes(differ: Compare, tmp_path: Path) -> None:
    def made(second: str) -> bytes:
        # Two sections named .x, which differ in what they are linked to; and one that has only a size.
        (tmp_path / "x.s").write_text(
            '.section .a,"a"\n.byte 1\n.section .x,"ao",@progbits,.a\n.asciz "left"\n'
            f'.section .b,"a"\n.byte 1\n.section .x,"ao",@progbits,.b\n.asciz "{second}"\n'
            '.section .none,"aw",@nobits\n.skip 16\n'
        )
        subprocess.run(["gcc", "-c", "-o", "x.o", "x.s"], cwd=tmp_path, check=True)
        return (tmp_path / "x.o").read_bytes()

    assert places(differ(made("left"), made("next"))) == [".x #2"]
    parts = openers._elf(made("left"))
    assert parts
    assert ".none" not in parts.contents
    assert parts.fields["section header .none sh_size"] == "0x10"


def test_what_lies_outside_of_all_sections_counts(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    assert places(differ(elves[0], elves[0] + b"signature")) == ["outside of all sections"]


def test_many_differences_of_one_object_are_few_rows(differ: Compare, tmp_path: Path) -> None:
    made = []
    for size in (4, 8):
        (tmp_path / "x.c").write_text("".join(f"char s{number}[{size}];\n" for number in range(100)))
        subprocess.run(["gcc", "-c", "-o", "x.o", "x.c"], cwd=tmp_path, check=True)
        made.append((tmp_path / "x.o").read_bytes())
    rows = differ(*made)
    assert len(rows) < compare.FIELDS + 5
    assert rows[-1].where == "more facts"


# ── what packs ──


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstd])
def test_packed_content_is_opened(differ: Compare, elves: tuple[bytes, bytes], pack: Callable[[bytes], bytes]) -> None:
    packed = [pack(each) for each in elves]
    if pack is gzip.compress:
        packed = [gzip.compress(each, mtime=0) for each in elves]
    assert places(differ(*packed)) == [".text", ".data"]
    # The program zstd takes nothing behind its stream.
    behind = " (packed by zstd, not opened)" if pack is zstd else "after the packed stream"
    assert places(differ(packed[0], packed[0] + b"more\0")) == [behind]


def test_a_gzip_header_by_field(differ: Compare) -> None:
    # Python sets OS to 255, or has zlib set it to 3, as the time is given or not.
    packed = [bytearray(gzip.compress(b"content", mtime=mtime)) for mtime in (0, 86400)]
    packed[0][9] = packed[1][9] = 255
    first, later = map(bytes, packed)
    assert differ(first, later) == [Difference("x", "gzip mtime", "0", "86400")]
    assert differ(first, first[:9] + b"\x07" + first[10:]) == [Difference("x", "gzip OS", "255", "7")]
    named = first[:3] + b"\x08" + first[4:10] + b"init\0" + first[10:]
    assert places(differ(first, named)) == ["gzip flags", "gzip name"]
    assert [each.second for each in differ(first, named)] == ["0x8", "init"]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstd])
def test_what_is_packed_and_cut_short_is_bytes(differ: Compare, pack: Callable[[bytes], bytes]) -> None:
    whole = pack(bytes(range(256)) * 50)
    [row] = differ(whole, whole[:-9])
    assert row.first == f"size {len(whole)}, at {len(whole) - 9:#x}: {whole[-9:-1].hex(' ')}"
    assert "packed differently" not in row.where


def test_the_same_content_packed_otherwise(differ: Compare) -> None:
    text = b"".join(b"%d\n" % number for number in range(1000))
    rows = differ(gzip.compress(text, 0, mtime=0), gzip.compress(text, 5, mtime=0))
    assert [each.where for each in rows if "gzip" not in each.where] in (
        [], [" (the contents are the same, packed differently)"],
    )  # fmt: skip
    [row] = differ(bz2.compress(text, 1), bz2.compress(text, 9))
    assert row.where == " (the contents are the same, packed differently)"


def test_without_the_program_zstd_it_says_so(differ: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(b"one"), zstd(b"two")
    assert places(differ(*packed)) == ["line 1"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert places(differ(*packed)) == [" (packed by zstd, not opened)"]


def test_what_is_not_opened_is_said(differ: Compare) -> None:
    assert places(differ(b"\x02\x21\x4c\x18\xff1", b"\x02\x21\x4c\x18\xff2")) == [" (packed by lz4, not opened)"]
    assert places(differ(b"\x02\x21\x4c\x18\xff1", b"\x28\xb5\x2f\xfd\xff2")) == [""]


def test_lz4_is_opened_where_the_program_is(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    argv = ["lz4", "-l", "-9", "-", "-"]
    packed = [subprocess.run(argv, input=each, capture_output=True, check=True).stdout for each in elves]
    assert places(differ(*packed)) == [".text", ".data"]
    rows = differ(*(image(with_size(each, whole)) for each, whole in zip(packed, elves, strict=True)))
    assert "compressed payload > .text" in places(rows)


# ── initrd ──


def test_an_initrd_by_entry(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    first = [cpio.Entry("init", stat.S_IFREG | 0o755, elves[0]), cpio.Entry("old", stat.S_IFREG | 0o644)]
    second = [cpio.Entry("init", stat.S_IFREG | 0o700, elves[1]), cpio.Entry("x", stat.S_IFCHR | 0o600, device=(5, 1))]
    rows = differ(*(gzip.compress(cpio.archive(each), mtime=0) for each in (first, second)))
    assert places(rows)[:4] == ["/init > .text", "/init > .data", "/old", "/x"]
    assert Difference("x", "/init mode", "100755", "100700") in rows
    assert Difference("x", "/x device", "missing", "(5, 1)") in rows


def test_the_order_of_entries(differ: Compare) -> None:
    entries = [cpio.Entry(name, stat.S_IFREG | 0o644) for name in "ab"]
    rows = differ(cpio.archive(entries), cpio.archive(entries[::-1]))
    assert places(rows) == ["order", "/a inode", "/b inode"]
    assert rows[0].first == r"/a\n/b"


def test_what_gnu_cpio_keeps_of_the_machine(differ: Compare, tmp_path: Path) -> None:
    made = []
    for seconds in (1, 2):
        (tmp_path / "init").write_text("#!/bin/sh\n")
        os.utime(tmp_path / "init", (seconds, seconds))
        argv = ["cpio", "-o", "--quiet", "-H", "newc"]
        made.append(subprocess.run(argv, cwd=tmp_path, input=b"init\n", capture_output=True, check=True).stdout)
    assert differ(*made) == [Difference("x", "/init mtime", "1", "2")]
    assert places(differ(made[0], made[0] + b"another")) == ["after the trailer"]
    # The trailer's own header is not part of an entry.
    at = made[0].rindex(b"070701") + 40
    assert "packed differently" in differ(made[0], made[0][:at] + b"7" + made[0][at + 1 :])[0].where


# ── bzImage ──


@pytest.mark.parametrize("pe", [True, False])
@pytest.mark.parametrize("pack", [zstd, lzma.compress, bz2.compress])
def test_a_kernel_by_section(
    differ: Compare, elves: tuple[bytes, bytes], pack: Callable[[bytes], bytes], pe: bool
) -> None:
    rows = differ(*(image(with_size(pack(each), each), pe=pe) for each in elves))
    found = [each.where for each in rows if each.where.startswith("compressed")]
    assert found == ["compressed payload > .text", "compressed payload > .data"]


def test_a_kernel_packed_with_gzip(differ: Compare, elves: tuple[bytes, bytes]) -> None:
    # The same size packed, and so nothing else may differ.
    packed = [gzip.compress(each, 0, mtime=0) for each in elves]
    assert places(differ(*map(image, packed))) == ["compressed payload > .text", "compressed payload > .data"]


@pytest.mark.parametrize("pe", [True, False])
def test_the_rest_of_a_kernel(differ: Compare, pe: bool) -> None:
    payload = gzip.compress(b"kernel", mtime=0)
    whole = image(payload, pe=pe)

    def changed(at: int) -> list[str]:
        data = bytearray(whole)
        data[at] ^= 1
        return places(differ(whole, bytes(data)))

    code = "PE section .text" if pe else "protected-mode code"
    assert changed(0x260) == ["setup header init_size"]
    assert changed(0x300) == ["setup code", "kernel version"]
    assert changed(0x1000 - 0x800 + 1) == [code]
    assert changed(len(whole) - 1) == [code]
    if pe:
        assert changed(0x48) == ["PE header TimeDateStamp"]
        assert changed(0x40 + 24 + 0xA0 + 12) == ["PE section .text VirtualAddress"]
    assert places(differ(whole, image(payload, pe=pe)[:-1] + b"X" + b"behind"))[0] == code


def test_a_payload_that_is_no_place(differ: Compare) -> None:
    whole = bytearray(image(gzip.compress(b"kernel", mtime=0)))
    struct.pack_into("<I", whole, 0x24C, 0xFFFFFFFF)
    assert differ(bytes(whole), bytes(whole) + b"x")


def test_an_unopened_payload_is_said(differ: Compare) -> None:
    rows = differ(*(image(b"\x02\x21\x4c\x18" + each + b"size") for each in (b"\xff1", b"\xff2")))
    assert places(rows) == ["compressed payload (packed by lz4, not opened)"]


# ── damage ──


@pytest.fixture(scope="session")
def wholes(elves: tuple[bytes, bytes]) -> list[bytes]:
    archive = cpio.archive([cpio.Entry("init", stat.S_IFREG | 0o755, elves[0])])
    return [
        elves[0],
        image(gzip.compress(elves[0], mtime=0)),
        image(with_size(lzma.compress(elves[0]), elves[0])),
        gzip.compress(archive, mtime=0),
        archive,
        b'{"a": [1, 2, {"b": null}]}',
        b"CONFIG_A=1\n# CONFIG_B is not set\n",
    ]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_a_difference_and_no_failure(wholes: list[bytes], data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(wholes))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Often in the header, where sizes and offsets are.
        at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, min(0x300, len(whole) - 1)))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]) | st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.just(len(whole)) | st.integers(0, len(whole)))])
    rows = compare._rows("", whole, cut, compare.DEEPEST)
    assert bool(rows) == (whole != cut)


def test_contents_are_not_opened_for_ever(differ: Compare) -> None:
    packed = [b"one", b"two"]
    for _ in range(compare.DEEPEST + 2):
        packed = [gzip.compress(each, mtime=0) for each in packed]
    [row] = differ(*packed)
    assert row.first.startswith("size ")


# ── for a person ──


def test_a_description_is_bounded_and_shared_out() -> None:
    rows = [Difference("bzImage", f"section {number}", "a", "b") for number in range(500)]
    rows.append(Difference("kernel.config", "CONFIG_EFI", "y", "n"))
    lines = compare.describe(rows).splitlines()
    assert len(lines) == compare.ROWS // 2 + 2
    assert lines[0] == "bzImage: section 0: a | b"
    assert lines[-2] == "bzImage: and 480 more"
    assert lines[-1] == "kernel.config: CONFIG_EFI: y | n"
    many = compare.describe(Difference(str(number), "", "a", "b") for number in range(99)).splitlines()
    assert many[-1] == "and 59 files more"
    assert len(many) == compare.ROWS + 1
    assert compare.describe([]) == ""


# ── diffoscope ──


def fake(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name, as not every machine has the real one."""
    (folder / "bin").mkdir()
    (folder / "bin/diffoscope").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/diffoscope").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin", prepend=":")


@pytest.mark.parametrize(("status", "made"), [(0, True), (1, True), (2, False)])
def test_diffoscope_writes_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, made: bool) -> None:
    report = tmp_path / "report.txt"
    script = f'while [ "$1" != --text ]; do shift; done; echo "$3 $4" >"$2"; exit {status}'
    fake(tmp_path, script, monkeypatch)
    assert compare.diffoscope(Path("/one"), Path("/two"), report) is made
    assert report.exists() is made
    if made:
        assert report.read_text() == "/one /two\n"
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("bin", "report.txt")] == []


def test_without_diffoscope_there_is_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not compare.diffoscope(tmp_path, tmp_path, tmp_path / "report.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_diffoscope_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def late(*_: object, deadline: float, **__: object) -> tuple[int, str]:
        seen.append(deadline)
        raise ToolError("diffoscope: not done")

    fake(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setattr(run, "run", late)
    assert not compare.diffoscope(tmp_path, tmp_path, tmp_path / "report.txt")
    assert seen == [120]
    assert not (tmp_path / "report.txt").exists()
