# SPDX-License-Identifier: Apache-2.0
"""Kernels of a tree in miniature: built once, whole or not at all, whatever ends the build that makes them."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from minguest.kernel import kbuild, linked, source
from minguest.paths import Store
from minguest.util import files
from minguest.util.errors import ToolError
from tests import ROOT
from tests.damage import Damage, each_way

TREE = ROOT / "tests/data/fakelinux"
CONFIG = "CONFIG_PACKET=y\n"
# Shell: the argument after -o.
FIND_OUT = 'OUT=; last=; for each; do [ "$last" = -o ] && OUT=$each; last=$each; done'


def quiet(_: str) -> None:
    """Takes what would be said."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def prepared(tmp_path: Path, text: str | None = None) -> source.Prepared:
    """The toy tree as `source.prepare` leaves one; `text` is another net/packet/af_packet.c."""
    place = tmp_path / f"tree-{abs(hash(text))}"
    if not place.exists():
        shutil.copytree(TREE, place)
        if text is not None:
            (place / "net/packet/af_packet.c").write_text(text)
    tree = source.Tree("6.12", "6.12.1", f"own:{source.content(place)}", "not verified: a test", ())
    return source.Prepared(str(place), tree)


def build(tmp_path: Path, store: Store, config: str = CONFIG, text: str | None = None) -> tuple[dict[str, str], bool]:
    """Hashes of what is kept, and whether make ran for it."""
    ran: list[bool] = []
    kept, _ = kbuild.build(
        prepared(tmp_path, text), config, store, log=tmp_path / "log", say=quiet, building=lambda: ran.append(True)
    )
    return {name: files.sha256(kept / name) for name in kbuild.KEPT}, bool(ran)


def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A gcc that is found before the real one, at $REAL; $OUT is what it is to write. No ccache."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    real = shutil.which("gcc")
    (tools / "gcc").write_text(f"#!/bin/sh\nREAL={real}\n{FIND_OUT}\n{body}\n")
    (tools / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(kbuild, "through_ccache", list)


def test_a_kernel_is_built_once_and_kept(tmp_path: Path, store: Store) -> None:
    first, ran = build(tmp_path, store)
    assert ran
    assert build(tmp_path, store) == (first, False)
    assert [path.name for path in store.making.iterdir() if path.is_dir()] == []
    other, ran = build(tmp_path, store, "# CONFIG_PACKET is not set\n")
    assert ran and other["System.map"] != first["System.map"]


def test_ccache_and_none_make_the_same_bytes(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = build(tmp_path, store)
    assert store.objects.is_dir()
    shutil.rmtree(store.kernels)
    assert build(tmp_path, store) == (first, True)
    shutil.rmtree(store.kernels)
    monkeypatch.setattr(kbuild, "through_ccache", list)
    assert build(tmp_path, store) == (first, True)


def test_a_kept_kernel_that_was_damaged_is_built_again(tmp_path: Path, store: Store) -> None:
    first, _ = build(tmp_path, store)
    for name in (*kbuild.KEPT, kbuild.SUMS):
        (folder,) = (path for path in store.kernels.iterdir() if path.is_dir())
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        assert build(tmp_path, store) == (first, True), name
    (folder / "System.map").unlink()
    assert build(tmp_path, store) == (first, True)


def test_what_a_kernel_is_made_of_is_known_by_content(tmp_path: Path, store: Store) -> None:
    """A tree that changed, and whose files look as old as ever, is another tree: nothing of the old one is linked."""
    first, _ = build(tmp_path, store)
    place = Path(prepared(tmp_path).path, "net/packet/af_packet.c")
    times = place.stat()
    place.write_text(place.read_text().replace("17", "18"))
    os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed, ran = build(tmp_path, store)
    assert ran and changed["bzImage"] != first["bzImage"]
    clean, _ = build(tmp_path, Store(tmp_path / "another-store"))
    assert changed == clean


KILLED = """
import sys
from pathlib import Path
import msgspec
from minguest.kernel import kbuild, source
from minguest.paths import Store
tree = msgspec.json.decode(sys.argv[1], type=source.Prepared)
kbuild.through_ccache = list
kbuild.build(tree, sys.argv[2], Store(Path(sys.argv[3])), log=Path(sys.argv[4]), say=print)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("tool", ["gcc", "ld", "nm", "objcopy"])
def test_a_build_that_was_cut_is_made_again_from_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tool: str, number: signal.Signals
) -> None:
    clean, _ = build(tmp_path, Store(tmp_path / "another-store"))
    tools = tmp_path / "slow"
    tools.mkdir()
    # Its output is begun, and empty, when it is cut.
    hang = f'[ -z "$OUT" ] || : >"$OUT"; : >{tmp_path}/begun; sleep 60'
    slow = f'case "$*" in *af_packet.c*|*built-in.o*|*vmlinux*) {hang};; esac'
    (tools / tool).write_text(f'#!/bin/sh\n{FIND_OUT}\n{slow}\nexec {shutil.which(tool)} "$@"\n')
    (tools / tool).chmod(0o755)
    argv = [sys.executable, "-c", KILLED, msgspec.json.encode(prepared(tmp_path)).decode(), CONFIG,
            str(store.folder), str(tmp_path / "log")]  # fmt: skip
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(6000):
            if (tmp_path / "begun").exists():
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"{tool} never ran")
        process.send_signal(number)
        process.wait(30)
    monkeypatch.setattr(kbuild, "through_ccache", list)
    assert build(tmp_path, store) == (clean, True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (': >"$OUT"', r"cut short: net/packet/af_packet\.o"),
        ('head -c 300 "$OUT" >"$OUT.cut"; mv "$OUT.cut" "$OUT"', r"cut short: net/packet/af_packet\.o|exit status 2"),
    ],
)
def test_an_object_that_is_not_whole_is_never_kept(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, spoil: str, message: str
) -> None:
    """make says that all is well: this is what a compiler does that was killed, and what is there afterwards."""
    compiler(tmp_path, monkeypatch, f'$REAL "$@" || exit\ncase "$*" in *af_packet.c*) {spoil};; esac')
    with pytest.raises(ToolError, match=message):
        build(tmp_path, store)
    assert [path for path in store.kernels.iterdir() if path.is_dir()] == []


def made(tmp_path: Path) -> tuple[Path, Path]:
    """The toy kernel built by hand: its tree and its O= folder."""
    tree, out = Path(prepared(tmp_path).path), tmp_path / "out"
    out.mkdir()
    (out / ".config").write_text(CONFIG)
    subprocess.run(kbuild.make_argv(tree, out, 1, "bzImage"), check=True, stdout=subprocess.DEVNULL)
    return tree, out


def faults(tree: Path, out: Path) -> list[str]:
    return linked.faults(tree, out, out / kbuild.IMAGE, {"PACKET": "y"})


def test_what_was_linked_is_looked_at(tmp_path: Path) -> None:
    tree, out = made(tmp_path)
    assert faults(tree, out) == []
    table = (out / "System.map").read_text()
    (out / "System.map").write_text("".join(f"{line}\n" for line in table.splitlines() if "packet_init" not in line))
    (fault,) = faults(tree, out)
    assert fault == "CONFIG_PACKET is y, but net/packet/af_packet.o's symbols (packet_init) are not in System.map"
    (out / "System.map").write_text(table.replace("0000000001", "0000000002"))
    (fault,) = faults(tree, out)
    assert fault.startswith("System.map belongs to another vmlinux: ")


def test_an_image_of_another_vmlinux_is_found(tmp_path: Path) -> None:
    tree, out = made(tmp_path)
    image = (out / kbuild.IMAGE).read_bytes()
    (tree / "init/main.c").write_text((tree / "init/main.c").read_text().replace("[0]", "[3]"))
    subprocess.run(kbuild.make_argv(tree, out, 1, "bzImage"), check=True, stdout=subprocess.DEVNULL)
    assert faults(tree, out) == []
    (out / kbuild.IMAGE).write_bytes(image)
    assert faults(tree, out) == ["bzImage was made from another vmlinux: .text"]


@pytest.mark.parametrize(
    ("content", "whole"),
    [(b"", False), (b"\x7fELF\x02", False), (b"!<arch>\n", True), (b"!<thin>\n", True), (b"#!/bin/sh\n", False)],
)
def test_what_is_a_whole_object(tmp_path: Path, content: bytes, whole: bool) -> None:
    (tmp_path / "a.o").write_bytes(content)
    assert linked.whole(tmp_path / "a.o") is whole


@pytest.mark.parametrize("bits", ["-m64", "-m32"])
def test_an_object_is_whole_to_its_last_byte(tmp_path: Path, bits: str) -> None:
    (tmp_path / "a.c").write_text("int a = 1;\n")
    subprocess.run(["gcc", bits, "-c", "-o", tmp_path / "a.o", tmp_path / "a.c"], check=True)
    assert linked.whole(tmp_path / "a.o")
    content = (tmp_path / "a.o").read_bytes()
    (tmp_path / "a.o").write_bytes(content[:-1])
    assert not linked.whole(tmp_path / "a.o")


# ── the config ──


def resolve(tmp_path: Path, store: Store, requested: str = CONFIG) -> str:
    return kbuild.resolve(prepared(tmp_path), requested, store, tmp_path / "config.log", quiet)


def test_a_config_is_made_once(tmp_path: Path, store: Store) -> None:
    text = resolve(tmp_path, store)
    assert "CONFIG_PACKET=y\n" in text
    (tmp_path / "config.log").unlink()
    assert resolve(tmp_path, store) == text
    assert not (tmp_path / "config.log").exists()
    (kept,) = store.configs.iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"PACKET", b"PACKED"))
    assert resolve(tmp_path, store) == text
    assert (tmp_path / "config.log").exists()


def test_two_configs_at_once_do_not_meet(tmp_path: Path, store: Store) -> None:
    prepared(tmp_path)
    requested = [f"CONFIG_PACKET=y\nCONFIG_NUMBER={number}\n" for number in range(6)]
    got: dict[str, str] = {}

    def one(text: str) -> None:
        got[text] = kbuild.resolve(prepared(tmp_path), text, store, tmp_path / f"{len(text)}.log", quiet)

    threads = [threading.Thread(target=one, args=(text,)) for text in requested]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(got[text].startswith(text) for text in requested)


def test_a_temporary_folder_that_is_not_there_changes_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resolve(tmp_path, store)
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    compiler(tmp_path, monkeypatch, '[ -d "$TMPDIR" ] || { echo 4.0.0; exit 1; }\nexec $REAL "$@"')
    assert resolve(tmp_path, Store(tmp_path / "another-store")) == text


def test_a_compiler_that_kconfig_took_for_an_older_one_is_an_error(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path, monkeypatch, '[ "$#" = 1 ] && { echo 4.9.0; exit; }\nexec $REAL "$@"')
    with pytest.raises(ToolError, match=r"Kconfig took gcc for version 40900, but it is \d+\.\d"):
        resolve(tmp_path, store)
    assert not list(store.configs.glob("*"))


@each_way
def test_damaged_sums_are_of_no_whole_kernel(tmp_path: Path, damage: Damage) -> None:
    for name in kbuild.KEPT:
        (tmp_path / name).write_text(name)
    (tmp_path / kbuild.SUMS).write_bytes(
        msgspec.json.encode({name: files.sha256(tmp_path / name) for name in kbuild.KEPT})
    )
    assert kbuild.whole(tmp_path)
    damage(tmp_path / kbuild.SUMS)
    assert not kbuild.whole(tmp_path)


@each_way
def test_a_damaged_config_is_none(tmp_path: Path, damage: Damage) -> None:
    kept = tmp_path / "kept.json"
    digest = hashlib.sha256(CONFIG.encode()).hexdigest()
    kept.write_bytes(msgspec.json.encode((digest, CONFIG)))
    assert kbuild._kept_text(kept) == CONFIG
    damage(kept)
    assert kbuild._kept_text(kept) is None
