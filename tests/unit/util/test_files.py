# SPDX-License-Identifier: Apache-2.0
"""Writers are atomic: a killed or failed run leaves what was there."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minguest.util import files
from minguest.util.errors import ToolError


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.write(target, "old")
    with pytest.raises(RuntimeError), files.replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.write(target, "old")
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom minguest.util import files\n"
        "with files.replacing(Path(sys.argv[1])) as t:\n"
        "    t.write_text('half'); print('here', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert target.read_text() == "old"


def test_a_tree_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "tree"
    with files.replacing_tree(target) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), files.replacing_tree(target) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    with files.replacing_tree(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tree.lock", "tree"]


def test_what_a_killed_run_left_of_a_tree_is_removed(tmp_path: Path) -> None:
    for name in (".tree.new", ".tree.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with files.replacing_tree(tmp_path / "tree") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tree.lock", "tree"]


@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_a_tree_that_is_interrupted_while_it_is_replaced_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    target = tmp_path / "tree"
    with files.replacing_tree(target) as folder:
        (folder / "old").touch()
    if not exchange:  # as a file system answers that has no RENAME_EXCHANGE
        monkeypatch.setattr(files, "_renameat2", lambda *_: errno.EINVAL)
    for step in range(4):
        calls = 0

        def rename(self: Path, other: Path, real: Callable[..., Path] = Path.rename, stop: int = step) -> Path:
            nonlocal calls
            calls += 1
            if calls == stop + 1:
                raise KeyboardInterrupt
            return real(self, other)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            try:
                with files.replacing_tree(target) as folder:
                    (folder / "new").touch()
            except KeyboardInterrupt:
                pass
        with files.replacing_tree(tmp_path / "tree") as folder:
            # Whatever was interrupted: the old one or the new one is there, whole.
            assert [path.name for path in target.iterdir()] in (["old"], ["new"])
            (folder / "old").touch()


def test_one_that_was_killed_between_two_renames_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".tree.old").mkdir()
    (tmp_path / ".tree.old/old").touch()
    with pytest.raises(RuntimeError), files.replacing_tree(tmp_path / "tree"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["old"]


def test_a_large_tree_is_brought_to_the_disk_too(tmp_path: Path) -> None:
    with files.replacing_tree(tmp_path / "tree") as folder:
        for number in range(files.FEW + 1):
            (folder / str(number)).touch()
    assert len(list((tmp_path / "tree").iterdir())) == files.FEW + 1


def test_a_full_disk_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"a: No space left on device .* MB free"), files.replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "full")


def test_a_full_disk_for_real(tmp_path: Path) -> None:
    with (
        pytest.raises(ToolError, match="No space left"),
        files.disk_errors(tmp_path),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x" * 100_000)


def test_other_os_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.disk_errors(tmp_path):
        raise OSError(errno.EACCES, "no")


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_lock_keeps_a_second_one_out(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with files.lock(tmp_path / "lock", lambda: order.append("waits")):
            order.append("second")

    with files.lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        for _ in range(500):
            if order:
                break
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["waits", "first", "second"]
