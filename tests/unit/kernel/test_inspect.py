# SPDX-License-Identifier: Apache-2.0
"""Kernels that are not what their config says, and configs that are not what was requested, are refused by name."""

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest import settings
from minguest.kernel import binary, contract, folders, kbuild, kconfig, source
from minguest.model import Launch
from minguest.paths import Store
from minguest.util import files, progress
from minguest.util.errors import ToolError, UserError
from tests import ROOT

TREE = ROOT / "tests/data/fakelinux"
ON = "CONFIG_PACKET=y\n"
OLD = 1e9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def prepared(place: Path, changes: dict[str, tuple[str, str]] | None = None, series: str = "6.12") -> source.Prepared:
    """The toy tree in the folder `place`, with `changes` of one text to another by file."""
    shutil.copytree(TREE, place)
    for name, (old, new) in (changes or {}).items():
        text = (place / name).read_text()
        assert old in text
        (place / name).write_text(text.replace(old, new))
    tree = source.Tree(series, f"{series}.1", f"own:{source.content(place)}", "not verified: a test", ())
    return source.Prepared(str(place), tree)


def build(
    tree: source.Prepared, store: Store, text: str, said: list[str] | None = None
) -> tuple[Path, kbuild.Inspected]:
    log = store.folder.with_name("kernel.log")
    return kbuild.build(tree, text, store, log=log, say=(said if said is not None else []).append)


# ── what make is given ──


def test_make_gets_all_that_makes_two_builds_the_same() -> None:
    assert kbuild.make_argv(Path("/tree"), Path("/out"), 3, "tinyconfig", "bzImage") == [
        "make", "-C", "/tree", "O=/out", "-j3", "ARCH=x86",
        "KCFLAGS=-fmacro-prefix-map=/tree/= -mstringop-strategy=libcall", "KAFLAGS=-fmacro-prefix-map=/tree/=",
        "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970", "KBUILD_BUILD_USER=minguest",
        "KBUILD_BUILD_HOST=minguest", "KBUILD_BUILD_VERSION=1", "LOCALVERSION=",
        "RUSTC=no-rustc", "BINDGEN=no-bindgen", "PAHOLE=no-pahole",
        "tinyconfig", "bzImage",
    ]  # fmt: skip


def test_make_and_ccache_write_where_they_are_meant_to(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.PASSED:
        monkeypatch.delenv(name, raising=False)
    assert kbuild.make_environment(store, Path("/out")) == {
        "TMPDIR": "/out",
        "HOME": "/out",
        "CCACHE_DIR": str(store.objects),
        "CCACHE_CONFIGPATH": "/dev/null",
        "CCACHE_COMPILERCHECK": "content",
        "CCACHE_NOINODECACHE": "1",
        "CCACHE_MAXSIZE": "4G",
    }
    # What the user has set for ccache wins, and nothing else of it gets there.
    own = {"CCACHE_DIR": "/mine", "CCACHE_REMOTE_STORAGE": "http://127.0.0.1:9", "CCACHE_PREFIX": "distcc",
           "DISTCC_HOSTS": "127.0.0.1", "CCACHE_DISABLE": "1"}  # fmt: skip
    for name, value in {**own, "CCACHE_COMPILERCHECK": "none", "CCACHE_SLOPPINESS": "time_macros"}.items():
        monkeypatch.setenv(name, value)
    found = kbuild.make_environment(store, Path("/out"))
    assert {name: found[name] for name in own} == own
    assert found["CCACHE_COMPILERCHECK"] == "content" and "CCACHE_SLOPPINESS" not in found


def test_ccache_is_used_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kbuild.through_ccache() == []
    (tmp_path / "ccache").write_text("#!/bin/sh\n")
    (tmp_path / "ccache").chmod(0o755)
    assert kbuild.through_ccache() == ["CC=ccache gcc", "HOSTCC=ccache gcc"]


def test_nothing_of_the_users_environment_gets_to_make(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither to the config nor to the kernel: KCONFIG_ALLCONFIG, for one, would change the config."""
    monkeypatch.setenv("KCONFIG_ALLCONFIG", "1")
    refusing = {
        "Makefile": ("srctree :=", "ifdef KCONFIG_ALLCONFIG\n$(error it got there)\nendif\nsrctree :="),
        "scripts/kconfig/merge_config.sh": ("cat ", '[ -z "$KCONFIG_ALLCONFIG" ] || exit 1\ncat '),
    }
    tree = prepared(tmp_path / "tree", refusing)
    text = kbuild.resolve(tree, ON, store, tmp_path / "config.log", lambda _: None)
    build(tree, store, text)


# ── the folder that make works in ──


def test_a_slot_is_an_empty_folder_with_a_name_that_stays(store: Store) -> None:
    for _ in range(2):
        with folders.slot(store, lambda _: None) as (work, held):
            assert work == store.making / "0"
            assert list(work.iterdir()) == []
            assert os.fstat(held).st_ino == (store.making / ".0.lock").stat().st_ino
            (work / "left").write_text("")
            with folders.slot(store, lambda _: None) as (other, _):
                assert other == store.making / "1"
        assert not work.exists()
    (store.making / "0/left").mkdir(parents=True)  # a build that was killed leaves its folder
    with folders.slot(store, lambda _: None) as (work, _):
        assert list(work.iterdir()) == []


def test_a_build_waits_where_all_slots_are_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SLOTS", 1)
    said: list[str] = []
    waits, done = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    def second() -> None:
        with folders.slot(store, say):
            done.set()

    with folders.slot(store, lambda _: None):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30) and not done.is_set()
    thread.join(30)
    assert done.is_set() and said == ["waiting: 1 kernels are being built"]


def test_a_build_takes_whichever_slot_becomes_free(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SLOTS", 2)
    waits, found = threading.Event(), list[str]()

    def third() -> None:
        with folders.slot(store, lambda _: waits.set()) as (work, _):
            found.append(work.name)

    with folders.slot(store, lambda _: None):
        with folders.slot(store, lambda _: None):
            thread = threading.Thread(target=third)
            thread.start()
            assert waits.wait(30)
        thread.join(30)
        assert found == ["1"]


def test_objects_that_are_kept_leave_the_slots_free(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker of a run keeps two folders, and configures its next kernel in another one."""
    monkeypatch.setattr(folders, "SLOTS", 1)
    tree, said = prepared(tmp_path / "tree"), list[str]()
    with contextlib.ExitStack() as ends:
        for _ in range(3):
            objects = ends.enter_context(folders.Objects(store, said.append))
            ends.enter_context(objects.of(tree, "", lambda *_: None))
        with folders.slot(store, said.append) as (work, _):
            assert work.name == "0"
    assert said == []


# ── the build ──


def test_what_is_kept_of_a_kernel(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is used is not pruned as old: the kernel, and the objects that ccache keeps.
    monkeypatch.setattr(kbuild, "through_ccache", list)
    store.objects.mkdir(parents=True)
    os.utime(store.objects, (OLD, OLD))
    tree, text = prepared(tmp_path / "tree"), "CONFIG_PACKET=y\n# CONFIG_OTHER is not set\n"
    kept, inspected = build(tree, store, text)
    assert kept.parent == store.kernels and re.fullmatch(r"[0-9a-f]{32}", kept.name)
    assert {path.name for path in kept.iterdir()} == {*kbuild.KEPT, kbuild.SUMS}
    assert (kept / "kernel.config").read_text() == text
    assert msgspec.json.decode((kept / "kernel.json").read_bytes(), type=kbuild.Inspected) == inspected
    assert inspected.vmlinux == binary.Elf("x64", 64, 0x1000000, True, (), inspected.vmlinux.symbols)
    assert inspected.bzimage == binary.bzimage(kept / "bzImage")
    assert inspected.bzimage.xloadflags == ("kernel-64",)
    sums = msgspec.json.decode((kept / kbuild.SUMS).read_bytes())
    assert sums == {name: files.sha256(kept / name) for name in kbuild.KEPT}
    assert store.objects.stat().st_mtime > OLD
    os.utime(kept, (OLD, OLD))
    assert build(tree, store, text) == (kept, inspected)
    assert kept.stat().st_mtime > OLD


def test_each_input_of_a_kernel_makes_another_one(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = prepared(tmp_path / "tree")
    first, _ = build(tree, store, ON)
    second, _ = build(tree, store, ON + "# CONFIG_OTHER is not set\n")
    real = source.compiler_tools()
    monkeypatch.setattr(source, "compiler_tools", lambda: {**real, "gcc": "1.2.3"})
    third, _ = build(tree, store, ON)
    assert len({first, second, third}) == 3


# A line of kbuild for each object, and other lines.
LOUD = {"Makefile": ("\tmkdir -p $(@D)\n\t$(CC)", "\t@echo '  CC      $@'\n\t@echo '  GEN'\n\tmkdir -p $(@D)\n\t$(CC)")}


def test_the_progress_counts_the_objects_that_were_compiled(tmp_path: Path, store: Store) -> None:
    build(prepared(tmp_path / "tree", LOUD), store, ON)
    kept = msgspec.json.decode(store.objects_compiled.read_bytes())
    assert kept == {"6.12": [{"options": 1, "objects": 2}]}


def test_the_progress_is_against_the_builds_before(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET", 0)
    store.folder.mkdir()
    store.objects_compiled.write_text(
        '{"6.12": [{"options": 3, "objects": 12}], "4.12": [{"options": 1, "objects": 7}]}'
    )
    build(prepared(tmp_path / "tree", LOUD), store, ON)
    shown = re.findall(r"^linux 6\.12\.1: (.*), \d+ s$", capsys.readouterr().err, re.MULTILINE)
    assert shown == ["1 of about 4 objects (25 %)", "2 of about 4 objects (50 %)"]


def test_a_second_build_of_a_kernel_waits_for_the_first(tmp_path: Path, store: Store) -> None:
    tree = prepared(tmp_path / "tree")
    kept, _ = build(tree, store, ON)
    said: list[str] = []
    waits = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    def second() -> None:
        kbuild.build(tree, ON, store, log=tmp_path / "second.log", say=say)

    with files.lock(kept.with_name(f".{kept.name}.busy")):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(30)
    thread.join(30)
    assert not thread.is_alive() and said == ["waiting for another build of this kernel"]


def test_a_config_that_make_changes_is_an_error(tmp_path: Path, store: Store) -> None:
    changing = {"Makefile": ("\tmkdir -p $(@D)\n\tobjcopy", "\techo >>$(O)/.config\n\tmkdir -p $(@D)\n\tobjcopy")}
    with pytest.raises(ToolError, match=r"make changed the verified config of linux 6\.12\.1") as raised:
        build(prepared(tmp_path / "tree", changing), store, ON)
    assert raised.value.remedy == f"read {tmp_path / 'kernel.log'}"
    assert not [path for path in store.kernels.iterdir() if path.is_dir()]


# ── the inspection ──


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The toy tree and an O= folder that it was built in."""
    folder = tmp_path_factory.mktemp("inspect")
    tree, out = Path(prepared(folder / "tree").path), folder / "out"
    out.mkdir()
    (out / ".config").write_text(ON)
    subprocess.run(kbuild.make_argv(tree, out, 1, "bzImage"), check=True, stdout=subprocess.DEVNULL)
    return tree, out


def refusal(built: tuple[Path, Path], config: dict[str, str]) -> str:
    """What an inspection finds, between what all of its errors begin with and the remedy."""
    tree, out = built
    with pytest.raises(ToolError) as raised:
        kbuild.inspect(out, {"PACKET": "y", **config}, tree)
    assert raised.value.remedy == "run the same command again: it builds from scratch"
    begin, _, rest = raised.value.message.partition(": ")
    assert begin == "the built kernel does not match its config, and was not kept"
    return rest


@pytest.mark.parametrize(
    ("vmlinux", "bzimage", "config", "why"),
    [
        ({"machine": "x86"}, {}, {}, "vmlinux is x86, 64 bits, static True"),
        ({"bits": 32}, {}, {}, "vmlinux is x64, 32 bits, static True"),
        ({"static": False}, {}, {}, "vmlinux is x64, 64 bits, static False"),
        ({}, {"xloadflags": ()}, {}, "bzImage has no 64-bit entry: xloadflags none"),
        ({}, {"xloadflags": ("above-4g", "5level")}, {},
         "bzImage has no 64-bit entry: xloadflags above-4g, 5level"),
        ({}, {}, {"EFI_STUB": "y"}, "EFI_STUB is y, but the image lacks it"),
        ({}, {"efi_stub": True}, {}, "EFI_STUB is n, but the image has it"),
        ({}, {}, {"RELOCATABLE": "y"}, "RELOCATABLE is y, but the header says False"),
        ({}, {"relocatable": True}, {}, "RELOCATABLE is n, but the header says True"),
        ({}, {}, {"IKCONFIG": "y"}, "the config in the image is not the config it should be built from"),
        ({}, {"efi_stub": True}, {"RELOCATABLE": "y"},
         "EFI_STUB is n, but the image has it; RELOCATABLE is y, but the header says False"),
    ],
)  # fmt: skip
def test_an_image_that_contradicts_its_config_is_refused(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, vmlinux: dict[str, Any], bzimage: dict[str, Any],
    config: dict[str, str], why: str,
) -> None:  # fmt: skip
    elf = msgspec.structs.replace(binary.elf(built[1] / "vmlinux"), **vmlinux)
    image = msgspec.structs.replace(binary.bzimage(built[1] / kbuild.IMAGE), **bzimage)
    monkeypatch.setattr(binary, "elf", lambda _: elf)
    monkeypatch.setattr(binary, "bzimage", lambda _: image)
    assert refusal(built, config) == why


def test_an_image_that_is_what_its_config_says_is_taken(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, out = built
    found = kbuild.inspect(out, {"PACKET": "y"}, tree)
    assert found == kbuild.Inspected(binary.elf(out / "vmlinux"), binary.bzimage(out / kbuild.IMAGE))
    image = msgspec.structs.replace(found.bzimage, efi_stub=True, relocatable=True)
    monkeypatch.setattr(binary, "bzimage", lambda _: image)
    assert kbuild.inspect(out, {"PACKET": "y", "EFI_STUB": "y", "RELOCATABLE": "y"}, tree).bzimage == image


def test_what_linked_finds_is_a_refusal_too(built: tuple[Path, Path], tmp_path: Path) -> None:
    tree, out = built
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "net/packet/af_packet.o").write_bytes(b"")
    assert refusal((tree, copy), {}) == "cut short: net/packet/af_packet.o"


@pytest.mark.parametrize(("carried", "same"), [("", True), ("CONFIG_OTHER=y\n", False)])
def test_the_config_that_an_image_carries_is_its_own(tmp_path: Path, store: Store, carried: str, same: bool) -> None:
    """As kernel/configs.c puts it there: gzip between two marks."""
    text = "CONFIG_IKCONFIG=y\nCONFIG_PACKET=y\n"
    packed = b"IKCFG_ST" + gzip.compress((text + carried).encode()) + b"IKCFG_ED"
    numbers = ", ".join(map(str, packed))
    array = f"const unsigned char kernel_config_data[] = {{ {numbers} }};\nint start(void);"
    tree = prepared(tmp_path / "tree", {"init/main.c": ("int start(void);", array)})
    if same:
        kept, _ = build(tree, store, text)
        assert kbuild.whole(kept)
    else:
        with pytest.raises(ToolError, match="the config in the image is not the config"):
            build(tree, store, text)
        assert not [path for path in store.kernels.iterdir() if path.is_dir()]


# ── the config ──

# Kconfig drops an option silently, as it does where a dependency is off.
DROPPING = {
    "Makefile": ("\tprintf", "\tsed -i 's/^CONFIG_PACKET=y/# CONFIG_PACKET is not set/' $(O)/.config\n\tprintf")
}
RULE = contract.Rule("SMP", "25-smp", "one CPU runs", pit="smp-off")


class Request:
    """kbuild.configure with a fragment of the user's."""

    def __init__(self, root: Path, store: Store, fragment: str = f"# Sockets.\n{ON}") -> None:
        self.root, self.store, self.target = root, store, root / "config"
        self.fragment = root / "20-net.config"
        self.fragment.write_text(f"# Packets.\n\n{fragment}")
        self.said: list[str] = []

    def configure(self, tree: source.Prepared, *rules: contract.Rule, ignore: bool = False,
                  **options: str | int | bool) -> kbuild.Configured:  # fmt: skip
        return kbuild.configure(
            tree, "6.12", [self.fragment], options, rules, Launch(), self.target, root=self.root,
            guest_file="guest.toml", store=self.store, ignore=ignore, log=self.root / "log/config.log",
            say=self.said.append,
        )  # fmt: skip


def test_a_config_is_what_was_requested(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store)
    result = request.configure(prepared(tmp_path / "tree"), contract.Rule("PACKET", "20-net", "no sockets"))
    assert result == kbuild.Configured(1, ())
    assert msgspec.json.decode((request.target / "config.json").read_bytes(), type=kbuild.Configured) == result
    config = kconfig.parse_config((request.target / "kernel.config").read_text())
    assert config["PACKET"] == "y" and set(config) == {"PACKET", "GCC_VERSION"}
    assert request.said == []
    logs = {path.name for path in (tmp_path / "log").iterdir()}
    assert logs == {"config.log", "config.tinyconfig.log", "config.merge.log"}
    (kept,) = store.configs.iterdir()
    os.utime(kept, (OLD, OLD))
    assert request.configure(prepared(tmp_path / "again")) == result
    assert kept.stat().st_mtime > OLD


def test_the_guests_options_win(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store)
    request.configure(prepared(tmp_path / "tree"), PACKET=False)
    assert "# CONFIG_PACKET is not set" in (request.target / "kernel.config").read_text()


def test_an_option_that_no_kernel_has_is_refused(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store, "# Sockets.\nCONFIG_PACKETS=y\n")
    with pytest.raises(UserError, match=r"20-net\.config:4: linux 6\.12 has no CONFIG_PACKETS") as raised:
        request.configure(prepared(tmp_path / "tree"), ignore=True)
    assert raised.value.remedy == "nearest: CONFIG_PACKET"
    assert not request.target.exists() and not store.configs.exists()


def test_an_option_of_another_series_is_known_as_one(tmp_path: Path, store: Store) -> None:
    """By the trees that are in the store; the guest's own series is not looked at again."""
    for series, option in (("4.12", "PACKETS"), ("6.12", "PACKETS")):
        other = prepared(
            store.trees / f"linux-{series}.1-0", {"Kconfig": ("config PACKET", f"config {option}")}, series
        )
        (Path(other.path) / source.STAMP).write_bytes(msgspec.json.encode(other.tree))
    request = Request(tmp_path, store, "# Sockets.\nCONFIG_PACKETS=y\n")
    with pytest.raises(UserError, match=r"linux 6\.12 has no CONFIG_PACKETS") as raised:
        request.configure(prepared(tmp_path / "tree"))
    assert raised.value.remedy == "only linux 4.12 has it: move it to 20-net.4.12.config"


def test_an_option_that_kconfig_drops_is_an_error(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store)
    with pytest.raises(UserError) as raised:
        request.configure(prepared(tmp_path / "tree", DROPPING))
    first, second = raised.value.message.splitlines()[:2]
    assert first == "the config of linux 6.12 is not what was requested; nothing was compiled"
    assert second == "CONFIG_PACKET: requested y, got n (20-net.config:4: Sockets.)"
    assert "contract=ignore" in str(raised.value.remedy)
    assert not request.target.exists()


def test_a_config_that_breaks_the_contract_is_an_error(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store)
    with pytest.raises(UserError) as raised:
        request.configure(prepared(tmp_path / "tree"), RULE)
    lines = raised.value.message.splitlines()
    assert lines[1] == "the kernel's config breaks the contract of this launch in 1 place:"
    assert "CONFIG_SMP" in lines[2] and "pit smp-off" in lines[2]
    assert not request.target.exists()


def test_with_contract_ignore_both_are_printed_and_kept(tmp_path: Path, store: Store) -> None:
    request = Request(tmp_path, store)
    result = request.configure(prepared(tmp_path / "tree", DROPPING), RULE, ignore=True)
    broken, dropped = result.problems
    assert "breaks the contract" in broken and "CONFIG_PACKET: requested y, got n" in dropped
    assert request.said == [f"contract=ignore: {broken}", f"contract=ignore: {dropped}"]
    assert msgspec.json.decode((request.target / "config.json").read_bytes(), type=kbuild.Configured) == result
    assert "# CONFIG_PACKET is not set" in (request.target / "kernel.config").read_text()


@pytest.mark.parametrize("tool", ["gcc", "binutils"])
def test_a_tool_that_kconfig_takes_for_another_version_is_an_error(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    """GCC_VERSION and LD_VERSION have two digits for each number behind the first."""
    real = {**source.compiler_tools(), "gcc": "12.2.3", "binutils": "2.40.9"}
    monkeypatch.setattr(source, "compiler_tools", lambda: real)
    tree = prepared(tmp_path / "tree", {"Makefile": (
        "\tprintf", "\tprintf 'CONFIG_GCC_VERSION=120203\\nCONFIG_LD_VERSION=24009\\n' >>$(O)/.config\n\ttrue printf"
    )})  # fmt: skip
    kbuild.resolve(tree, ON, store, tmp_path / "config.log", lambda _: None)
    real[tool] = "3.1"
    found = {"gcc": "120203", "binutils": "24009"}[tool]
    with pytest.raises(ToolError, match=f"took {tool} for version {found}, but it is 3.1, so the config is wrong"):
        kbuild.resolve(tree, ON, store, tmp_path / "config.log", lambda _: None)
