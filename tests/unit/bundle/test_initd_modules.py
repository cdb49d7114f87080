# SPDX-License-Identifier: Apache-2.0
"""initd's loading of modules, on a kernel that is only a function: what is loaded, in which order, and what is said.

The modules are files whose content says what the kernel does with them.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from minguest.bundle import initrd
from tests import ROOT

RELEASE = os.uname().release
# In place of finit_module(2): syscall() of this file wins over musl's. It writes down what it was given.
MAIN = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "initd.h"

static void write_new(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT, 0644);

    if (write(fd, text, strlen(text)) < 0)
        abort();
    close(fd);
}

long syscall(long number, ...)
{
    char what[64] = "";
    const char *parameters;
    va_list args;
    int fd, log;

    va_start(args, number);
    fd = va_arg(args, int);
    parameters = va_arg(args, const char *);
    va_end(args);
    if (number != SYS_finit_module || read(fd, what, sizeof(what) - 1) < 0)
        abort();
    log = open("/log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    dprintf(log, "%s|%s\n", what + strcspn(what, " ") + 1, parameters);
    if (!strcmp(what, "0 bus")) {    /* it brings a device */
        mkdir("/sys/bus/new", 0755);
        mkdir("/sys/bus/new/devices", 0755);
        mkdir("/sys/bus/new/devices/1", 0755);
        write_new("/sys/bus/new/devices/1/modalias", "new:1\n");
    }
    if (!strncmp(what, "hang", 4))
        for (;;)
            pause();
    if (!strncmp(what, "crash", 5))
        raise(SIGKILL);
    errno = atoi(what);
    return errno ? -1 : 0;
}

int main(int argc, char **argv)
{
    struct options options = { .modules = argc > 1 ? argv[1] : NULL, .modules_seconds = 1 };
    struct json j = { 0 };
    sigset_t term;
    int i;

    if (chroot(".") && (unshare(CLONE_NEWUSER) || chroot(".")))
        return 77;
    if (!access("/order", F_OK)) {    /* SIGTERM comes, and waits, as PID 1 has it */
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        sigprocmask(SIG_BLOCK, &term, NULL);
        raise(SIGTERM);
    }
    load_modules(&options);
    if (!access("/handed-over", F_OK))
        stop_loading();
    for (i = 2; i < argc; i++)
        load_for(argv[i]);
    report_modules(&j);
    fwrite(j.text, 1, j.len, stdout);
    return 0;
}
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "main.c").write_text(MAIN)
    command = initrd.compiler_argv([folder / "main.c", *sorted((ROOT / "initd").glob("*.c"))], folder / "program")
    subprocess.run([*command, "-I", str(ROOT / "initd"), "-Wl,--allow-multiple-definition"], check=True)
    return folder / "program"


class Went:
    """One run: records by name, what was loaded in order as `MODULE|PARAMETERS`, and what initd said."""

    def __init__(self, out: str, said: str, log: Path) -> None:
        self.records: dict[str, dict[str, Any]] = {each["name"]: each for each in map(json.loads, out.splitlines())}
        self.order = log.read_text().splitlines() if log.exists() else []
        self.said = said.splitlines()

    def results(self) -> Mapping[str, str]:
        return {name: each["result"] for name, each in self.records.items()}

    def of(self, name: str) -> dict[str, Any]:
        return self.records[name]


Load = Callable[..., Went]


@pytest.fixture
def load(program: Path, tmp_path: Path) -> Load:
    """Loads modules of a root with these files below /lib/modules/RELEASE; `ko`: what the kernel does, by module."""
    folder = tmp_path / "root/lib/modules" / RELEASE

    def run(
        wanted: str = "",
        *modalias: str,
        ko: Mapping[str, str] | Iterable[str] = (),
        dep: str | None = None,
        alias: str | None = None,
        softdep: str | None = None,
        cmdline: str = "",
        devices: Mapping[str, str] | None = None,
        only_others: bool = False,
    ) -> Went:
        folder.mkdir(parents=True, exist_ok=True)
        done = ko if isinstance(ko, Mapping) else dict.fromkeys(ko, "0")
        for name, what in done.items():
            (folder / f"{name}.ko").write_text(f"{what} {name}")
        rows = dep if dep is not None else "".join(f"{name}.ko:\n" for name in done)
        for file, text in (("dep", rows), ("alias", alias), ("softdep", softdep)):
            if text is not None:
                (folder / f"modules.{file}").write_text(text)
        root = tmp_path / "root"
        if only_others:
            shutil.rmtree(folder)
        for device, text in (devices or {}).items():
            place = root / "sys/bus" / device
            place.mkdir(parents=True)
            (place / "modalias").write_text(f"{text}\n")
        (root / "proc").mkdir(exist_ok=True)
        (root / "proc/cmdline").write_text(f"{cmdline}\n")
        went = subprocess.run(
            [program, wanted, *modalias], capture_output=True, text=True, cwd=root, timeout=60, check=False
        )
        if went.returncode == 77:
            pytest.skip("NOT RUN: this machine lets nobody but root chroot()")
        assert went.returncode == 0, went.stderr
        return Went(went.stdout, went.stderr, root / "log")

    return run


def test_what_is_named_is_loaded_after_what_it_needs(load: Load) -> None:
    # As depmod writes it: the nearest first.
    went = load("my-card", ko=["my-card", "near", "far"], dep="my-card.ko: near.ko far.ko\nnear.ko: far.ko\nfar.ko:\n")
    assert went.order == ["far|", "near|", "my-card|"]
    assert went.results() == {"my_card": "loaded", "near": "loaded", "far": "loaded"}
    card = went.of("my_card")
    assert card["file"] == f"/lib/modules/{RELEASE}/my-card.ko"
    assert (card["errno"], card["signal"], card["version"], card["messages"]) == (None, None, None, [])
    assert 0 <= card["seconds"] < 1
    assert went.said[-1].startswith("initd: module my_card: loaded in 0.")


def test_each_is_loaded_once_whatever_its_spelling(load: Load) -> None:
    went = load("a_b,,a-b,c,a_b", ko=["a-b", "c"], dep="a-b.ko:\nc.ko: a-b.ko\n")
    assert went.order == ["a-b|", "c|"]


def test_without_anything_nothing_is_loaded_or_said(load: Load) -> None:
    went = load()
    assert (went.order, went.records, went.said) == ([], {}, [])


def test_a_path_is_loaded_as_it_is(load: Load, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/own.ko").write_text("0 own")
    went = load("/own.ko,/none.ko")
    assert went.order == ["own|"]
    assert went.results() == {"own": "loaded", "none": "absent"}
    assert (went.of("none")["file"], went.of("none")["errno"]) == ("/none.ko", "ENOENT")
    assert went.said[-1] == "initd: module none: absent: /none.ko"


def test_what_depmod_did_not_see_and_what_is_not_there_are_absent(load: Load) -> None:
    went = load("one,two", dep="two.ko:\n")
    assert went.results() == {"one": "absent", "two": "absent"}
    assert (went.of("one")["file"], went.of("one")["errno"], went.of("one")["seconds"]) == (None, None, None)
    assert went.said == [
        "initd: module one: absent: modules.dep does not have it",
        f"initd: module two: absent: /lib/modules/{RELEASE}/two.ko",
    ]


def test_what_the_kernel_has_built_in_counts_as_loaded(load: Load, tmp_path: Path) -> None:
    (tmp_path / "root/sys/module/virtio_pci").mkdir(parents=True)
    (tmp_path / "root/sys/module/virtio_pci/version").write_text("1\n")
    went = load("virtio-pci,card", ko=["card"], dep="card.ko: virtio-pci.ko\n")
    assert went.results() == {"virtio_pci": "loaded", "card": "loaded"}
    assert (went.of("virtio_pci")["file"], went.of("virtio_pci")["version"]) == (None, "1")


@pytest.mark.parametrize(
    ("number", "name"),
    [(8, "ENOEXEC"), (2, "ENOENT"), (19, "ENODEV"), (126, "ENOKEY"), (129, "EKEYREJECTED"), (99, "99")],
)
def test_an_error_is_named_and_the_next_one_is_tried(load: Load, number: int, name: str) -> None:
    went = load("bad,good", ko={"bad": str(number), "good": "0"})
    assert went.results() == {"bad": "failed", "good": "loaded"}
    assert (went.of("bad")["errno"], went.of("bad")["signal"]) == (name, None)
    assert any(line.startswith(f"initd: module bad: failed: {name} (") for line in went.said)


def test_one_that_is_loaded_already_is_loaded(load: Load) -> None:
    assert load("there", ko={"there": "17"}).results() == {"there": "loaded"}  # EEXIST


def test_a_crash_ends_the_child_alone(load: Load) -> None:
    went = load("bad,good", ko={"bad": "crash", "good": "0"})
    assert went.results() == {"bad": "failed", "good": "loaded"}
    assert (went.of("bad")["errno"], went.of("bad")["signal"]) == (None, 9)
    assert "initd: module bad: failed: the kernel ended its loading with signal 9" in went.said


def test_one_that_hangs_has_so_long_and_no_longer(load: Load) -> None:
    start = time.monotonic()
    went = load("bad,good", ko={"bad": "hang", "good": "0"})
    assert time.monotonic() - start < 5
    assert went.results() == {"bad": "timeout", "good": "loaded"}
    assert 1 <= went.of("bad")["seconds"] < 3
    assert "initd: module bad: not loaded within 1 s, and left alone" in went.said


def test_what_needs_one_that_failed_is_not_tried(load: Load) -> None:
    went = load(
        "top", ko={"top": "0", "near": "0", "far": "8"}, dep="top.ko: near.ko far.ko\nnear.ko: far.ko\nfar.ko:\n"
    )
    assert went.order == ["far|"]
    assert went.results() == {"top": "failed", "near": "failed", "far": "failed"}
    assert went.of("near")["messages"] == ["initd: not tried, because it needs far"]
    assert went.of("top")["messages"] == [f"initd: not tried, because it needs {name}" for name in ("far", "near")]
    assert went.of("top")["seconds"] is None


def test_a_circle_ends(load: Load) -> None:
    went = load("a", ko=["a", "b"], dep="a.ko: b.ko\nb.ko: a.ko\n")
    assert went.order == []
    assert went.results() == {"a": "failed", "b": "failed"}
    assert "initd: modules.dep: a needs itself" in went.said


def test_a_long_chain_ends_at_the_limit(load: Load) -> None:
    rows = "".join(f"m{n}.ko: m{n + 1}.ko\n" for n in range(200))
    went = load("m0,m1", ko=["m0"], dep=rows)
    assert len(went.records) == 128
    assert set(went.results().values()) == {"failed"}
    assert [line for line in went.said if "is the limit" in line] == [
        "initd: module m128: not loaded, nor are others: 128 is the limit"
    ]


def test_soft_dependencies_come_before_and_after_and_may_be_missing(load: Load) -> None:
    soft = "softdep other pre: never\nsoftdep card pre: first gone post: last\nsoftdep card post: very-last\n"
    went = load("card", ko=["card", "first", "last", "very-last", "never"], softdep=soft)
    assert went.order == ["first|", "card|", "last|", "very-last|"]
    assert went.of("gone")["result"] == "absent"


@pytest.mark.parametrize("suffix", ["xz", "zst", "gz"])
def test_a_packed_module_is_named_and_not_tried(load: Load, suffix: str) -> None:
    went = load("card", dep=f"card.ko.{suffix}:\n")
    assert went.order == []
    assert went.results() == {"card": "failed"}
    why = f"initd: only plain .ko files are loaded; unpack /lib/modules/{RELEASE}/card.ko.{suffix}"
    assert went.of("card")["messages"] == [why]
    assert went.said == [f"initd: module card: failed: {why}"]


def test_parameters_come_from_the_kernels_command_line(load: Load) -> None:
    line = (
        'quiet my-card.size=3 other.size=4 my_card.text="a b" "my_card.flag=c d" my_card.bare my_card=x -- my_card.no=1'
    )
    went = load("my_card", ko=["my-card"], cmdline=line)
    assert went.order == ['my-card|size=3 text="a b" "flag=c d" bare ']


@pytest.mark.parametrize(
    ("pattern", "modalias", "loaded"),
    [
        ("pci:v00001234d00001111sv*sd*bc*sc*i*", "pci:v00001234d00001111sv00001AF4sd00001100bc03sc80i00", True),
        ("pci:v00001234d00001111sv*sd*bc*sc*i*", "pci:v00001234d00001112sv00001AF4sd00001100bc03sc80i00", False),
        ("pci:v000010DEd*sv*sd*bc03sc0[0-2]i00*", "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc02i00", True),
        ("pci:v000010DEd*sv*sd*bc03sc0[0-2]i00*", "pci:v000010DEd00002330sv000010DEsd000016C1bc03sc03i00", False),
        ("acpi*:QEMU000[13x]:*", "acpi:QEMU0003:PNP0A03:", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("*", "", True),
        ("", "", False),
        ("a*", "a", True),
        ("a", "ab", False),
        ("ab", "a", False),
        ("*ab", "aab", True),
        ("a[", "a[", False),
        ("a[b", "ab", True),
        ("*" * 60 + "x", "y" * 4000, False),
    ],
)
def test_a_devices_modalias_names_its_module(load: Load, pattern: str, modalias: str, loaded: bool) -> None:
    went = load("", modalias, ko=["card"], alias=f"# Aliases\nalias {pattern} card\nalias {pattern}\nnoise\n")
    assert went.order == ["card|"] * loaded


def test_every_bus_is_looked_at(load: Load) -> None:
    devices = {"pci/devices/0000:00:01.0": "pci:x", "virtio/devices/virtio0": "virtio:y", "acpi/devices/none": "acpi:z"}
    alias = "alias pci:* one\nalias pci:x two\nalias virtio:* three\n"
    went = load(ko=["one", "two", "three"], alias=alias, devices=devices)
    assert sorted(went.order) == ["one|", "three|", "two|"]
    assert went.order.index("one|") < went.order.index("two|")


def test_a_driver_of_a_bus_brings_devices_and_they_their_drivers(load: Load) -> None:
    alias = "alias new:* device\nalias pci:* bus\n"
    went = load(ko=["bus", "device"], alias=alias, devices={"pci/devices/a": "pci:x"})
    assert went.order == ["bus|", "device|"]


def test_a_guest_that_is_to_end_loads_nothing_more(load: Load, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/order").touch()
    went = load("card", ko=["card"])
    assert (went.order, went.records, went.said) == ([], {}, [])


@pytest.mark.parametrize(("handed_over", "order"), [(False, ["first|", "later|"]), (True, ["first|"])])
def test_after_the_handover_the_roots_own_init_loads_modules(
    load: Load, tmp_path: Path, handed_over: bool, order: list[str]
) -> None:
    (tmp_path / "root").mkdir()
    if handed_over:
        (tmp_path / "root/handed-over").touch()
    assert load("first", "pci:later", ko=["first", "later"], alias="alias pci:later later\n").order == order


def test_what_is_named_comes_first(load: Load) -> None:
    went = load("named", ko=["matched", "named"], alias="alias pci:* matched\n", devices={"pci/devices/a": "pci:x"})
    assert went.order == ["named|", "matched|"]


def test_a_list_beyond_its_bound_is_not_read(load: Load, tmp_path: Path) -> None:
    place = tmp_path / "root/lib/modules" / RELEASE / "modules.dep"
    place.parent.mkdir(parents=True)
    load("card", ko=["card"])
    with place.open("r+b") as file:
        file.truncate((16 << 20) + 1)
    (tmp_path / "root/log").unlink()
    went = load("card", ko=["card"], dep=place.read_text())
    assert went.results() == {"card": "absent"}
    assert went.order == []
    assert went.said[0] == f"initd: /lib/modules/{RELEASE}/modules.dep: not a file of at most 16 MiB; not used"


def test_modules_for_other_kernels_only_are_named(load: Load, tmp_path: Path) -> None:
    others = tmp_path / "root/lib/modules"
    (others / "1.2.3").mkdir(parents=True)
    assert load().said == []  # this kernel's are there too
    shutil.rmtree(others / RELEASE)
    went = load(only_others=True)
    assert went.said == ["initd: /lib/modules has no modules for this kernel, but for 1.2.3"]


@pytest.mark.parametrize("name", ["n" * 64, "/", ".ko", "/x/"])
def test_what_is_no_name_is_said(load: Load, name: str) -> None:
    went = load(name)
    assert went.records == {}
    assert went.said == [f"initd: module {name}: not a module's name"]


def test_hostile_lists_end_nothing(load: Load) -> None:
    noise = "\x01\xff: : :\n:\n: a.ko\ncard.ko:  \t card.ko  \nsoftdep\nalias\n" + "x" * 100_000 + "\n"
    went = load("card", "pci:x", ko=["card"], dep=noise, alias=noise + "alias pci:x card\n", softdep=noise)
    assert went.results()["card"] in ("failed", "loaded")
