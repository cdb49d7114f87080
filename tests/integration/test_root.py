# SPDX-License-Identifier: Apache-2.0
"""A guest goes on from its initrd to a root disk: found by every name, mounted, its init run as PID 1; and without."""

import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from minguest.model import Disk, Launch, Root
from minguest.util.run import require
from minguest.vm import qemu, report
from tests import guests

# The root's init: it writes what it sees to the root, and powers off.
INIT = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>

static void copy(FILE *to, const char *from)
{
	char line[512];
	FILE *f = fopen(from, "r");

	while (f && fgets(line, sizeof(line), f))
		fprintf(to, "%s: %s", from, line);
}

int main(int argc, char **argv)
{
	FILE *out = fopen("/seen", "w");
	struct dirent *entry;
	DIR *proc = opendir("/proc");
	char path[300];
	int i;

	if (!out)
		out = stderr;
	fprintf(out, "pid: %d\nterminal: %d\n", getpid(), isatty(0) && isatty(1) && isatty(2));
	for (i = 0; i < argc; i++)
		fprintf(out, "argument: %s\n", argv[i]);
	copy(out, "/proc/mounts");
	copy(out, "/proc/sys/kernel/printk");
	copy(out, "/run/initd/report.jsonl");
	while (proc && (entry = readdir(proc))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		copy(out, path);
	}
	if (out != stderr)
		fclose(out);
	sync();
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	sleep(1);		/* the report's port has its bytes */
	reboot(RB_POWER_OFF);
	return 1;
}
"""
LABEL, FS_UUID = "a root", "0a1b2c3d-0000-4000-8000-00000000cafe"
DISK_UUID, PART_UUID, PART_LABEL = (
    uuid.UUID("11111111-2222-4333-8444-555555555555"), uuid.UUID("66666666-7777-4888-9999-aaaaaaaaaaaa"), "the part",
)  # fmt: skip
START, SIZE = 2048, 16 << 11  # of the partition, in blocks of 512 bytes


@pytest.fixture(scope="session")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    (folder / "init.c").write_text(INIT)
    subprocess.run(["musl-gcc", "-static", "-Os", "-o", folder / "init", folder / "init.c"], check=True)
    return folder / "init"


def make_disk(disk: Path, init: Path | bytes | None, *, inside: str = "sbin/init") -> None:
    """An ext4 with this init, as a normal user can make it."""
    tree = disk.with_name("tree")
    (tree / inside).parent.mkdir(parents=True)
    if init is not None:
        (tree / inside).write_bytes(init if isinstance(init, bytes) else init.read_bytes())
        (tree / inside).chmod(0o755)
    with disk.open("wb") as file:
        file.truncate(SIZE * 512)
    command = [require("mke2fs"), "-q", "-t", "ext4", "-L", LABEL, "-U", FS_UUID, "-d", str(tree), str(disk)]
    subprocess.run(command, check=True)


def gpt(disk: Path) -> None:
    """Put the file system into the first partition of a GPT (UEFI 2.10, 5.3)."""
    blocks = START + SIZE + 34
    entry = struct.pack(
        "<16s16sQQQ72s",
        uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709").bytes_le,
        PART_UUID.bytes_le, START, START + SIZE - 1, 0, PART_LABEL.encode("utf-16-le"),
    )  # fmt: skip
    entries = entry + bytes(128 * 128 - len(entry))

    def header(crc: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART", 0x10000, 92, crc, 0, 1, blocks - 1, 34, blocks - 34,
            DISK_UUID.bytes_le, 2, 128, 128, zlib.crc32(entries),
        )  # fmt: skip

    protective = bytes(446) + struct.pack("<8B2I", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, blocks - 1) + bytes(48)
    first = protective + b"\x55\xaa" + header(zlib.crc32(header(0))).ljust(512, b"\0") + entries
    whole = first.ljust(START * 512, b"\0") + disk.read_bytes() + bytes(34 * 512)
    disk.write_bytes(whole)


def mbr(disk: Path) -> None:
    """Put the file system into the first partition of an MBR whose disk signature is cafe0123."""
    entry = struct.pack("<8B2I", 0, 0, 2, 0, 0x83, 0xFF, 0xFF, 0xFF, START, SIZE)
    sector = bytes(440) + struct.pack("<I", 0xCAFE0123) + bytes(2) + entry + bytes(48) + b"\x55\xaa"
    disk.write_bytes(sector.ljust(START * 512, b"\0") + disk.read_bytes())


Went = tuple[qemu.Run, report.Report]


@pytest.fixture
def go(series: str, bundle: Path, tmp_path: Path) -> Callable[..., Went]:
    """Boots a guest with this root and disk until it ends."""

    def go(root: Root, disk: Path | None, *, read_only: bool = False, more: tuple[str, ...] = ()) -> Went:
        disks = (Disk(file=str(disk), read_only=read_only),) if disk else ()
        wanted = Launch(cpus=2, max_cpus=2, gpus=(), disks=disks, root=root, cmdline=more)
        _, argv = guests.command(bundle, wanted, guests.make_initrd(tmp_path / "initrd.img"), tmp_path, series)
        run = qemu.boot(argv, tmp_path, 90, linger=60)
        return run, report.parse(run.report)

    return go


def seen(disk: Path, offset: int = 0) -> dict[str, list[str]]:
    """What INIT wrote, by the name before the first colon."""
    place = f"{disk}?offset={offset}" if offset else str(disk)
    text = subprocess.run([require("debugfs"), "-R", "cat /seen", place], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in text.stdout.splitlines():
        name, _, value = line.partition(": ")
        found.setdefault(name, []).append(value)
    return found


def handed_over(found: report.Report, run: qemu.Run) -> msgspec.Raw | None:
    lines = [line for line in run.report.splitlines() if line.startswith(b'{"record":"handover"')]
    return msgspec.Raw(lines[0]) if len(lines) == 1 and found.complete else None


def test_the_roots_init_becomes_pid_1(go: Callable[..., Went], init: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, init)
    run, found = go(Root(disk=f"LABEL={LABEL}"), disk, more=("single",))
    assert run.ending == "power-off", run.console.decode(errors="replace")[-2000:]
    assert found.root is not None
    assert (found.root.result, found.root.device, found.root.type) == ("found", "/dev/vda", "ext4")
    assert handed_over(found, run)
    saw = seen(disk)
    assert saw["pid"] == ["1"] and saw["terminal"] == ["1"]
    # 4.12's decompressor reads nokaslr, and its kernel takes it for an argument of init.
    assert [each for each in saw["argument"] if each != "nokaslr"] == ["/sbin/init", "single"]
    mounted = {line.split()[1]: line.split()[2] for line in saw["/proc/mounts"]}
    assert {mounted[place] for place in ("/dev", "/proc", "/sys", "/run")} == {"devtmpfs", "proc", "sysfs", "tmpfs"}
    assert mounted["/"] == "ext4" and "/sysroot" not in mounted
    assert saw["/run/initd/report.jsonl"][-1].startswith('{"record":"handover"')
    assert ["initd-hotplug"] in saw.values()


@pytest.mark.parametrize(
    ("name", "table", "device"),
    [
        (f"UUID={FS_UUID.upper()}", None, "/dev/vda"),
        (f"PARTUUID={PART_UUID}", gpt, "/dev/vda1"),
        (f"PARTLABEL={PART_LABEL}", gpt, "/dev/vda1"),
        ("PARTUUID=cafe0123-01", mbr, "/dev/vda1"),
        ("/dev/vda1", mbr, "/dev/vda1"),
    ],
)
def test_a_root_is_found_by_each_of_its_names(
    name: str, table: Callable[[Path], None] | None, device: str, go: Callable[..., Went], init: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, init, inside="bin/start")
    if table is not None:
        table(disk)
    run, found = go(Root(disk=name, init="/bin/start"), disk)
    assert run.ending == "power-off", run.console.decode(errors="replace")[-2000:]
    assert found.root is not None and (found.root.result, found.root.device) == ("found", device)
    assert seen(disk, START * 512 if table else 0)["pid"] == ["1"]


def test_a_disk_that_cannot_be_written_is_a_root_too(go: Callable[..., Went], init: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_disk(disk, init)
    whole = disk.read_bytes()
    run, found = go(Root(), disk, read_only=True)
    assert found.root is not None and (found.root.result, found.root.read_only) == ("found", True)
    assert b"pid: 1" in run.console and run.ending == "power-off"
    assert disk.read_bytes() == whole


ELF = b"\x7fELF"
# A program that wants a loader that this root does not have: PT_INTERP (gABI, chapter 5).
LOADER = b"/lib64/ld-none.so\0"
DYNAMIC = (
    ELF + b"\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x400000, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(LOADER), len(LOADER), 1) + LOADER
)  # fmt: skip


@pytest.mark.parametrize(
    ("root", "content", "result", "why", "ending"),
    [
        (Root(disk="LABEL=other", seconds=1), "init", "absent", "there is /dev/vda: ext4, LABEL=a root", "power-off"),
        (Root(seconds=1, onfail="reboot"), None, "absent", "there is no block device", "reset"),
        (Root(), b"", "no-filesystem", "holds no file system that initd knows", "power-off"),
        (Root(init="/sbin/other"), "init", "no-init", "/sbin/other: No such file or directory", "power-off"),
        (Root(init="/lost+found"), "init", "no-init", "/lost+found is not an executable file", "power-off"),
        (Root(), ELF + b"\2\1\1" + bytes(9) + b"\2\0\xb7\0" + bytes(44), "wrong-init", "another machine", "power-off"),
        (Root(), DYNAMIC, "wrong-init", "needs /lib64/ld-none.so: No such file", "power-off"),
        (Root(), b"a text", "wrong-init", "neither an ELF program nor a script", "power-off"),
    ],
)
def test_what_is_missing_is_reported_and_the_guest_ends(
    root: Root, content: str | bytes | None, result: str, why: str, ending: str, go: Callable[..., Went], init: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    disk = tmp_path / "disk"
    if content == b"":
        disk.write_bytes(bytes(1 << 20))
    elif content is not None:
        make_disk(disk, init if content == "init" else content)  # type: ignore[arg-type]
    run, found = go(root, None if content is None else disk)
    console = run.console.decode(errors="replace")
    assert run.ending == ending, console[-2000:]
    assert found.complete and found.root is not None and found.root.result == result
    assert "initd: no root: " in console and why in console
    assert found.shutdown is not None and found.shutdown.why == "initd.onfail"
