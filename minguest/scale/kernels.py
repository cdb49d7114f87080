# SPDX-License-Identifier: Apache-2.0
"""Built kernels in the store, by kbuild's own key: tree, config, compiler and recipe are in it."""

import shutil
import tempfile
from pathlib import Path

import msgspec

from minguest.kernel import kbuild
from minguest.scale.store import Missing, Poisoned, Store
from minguest.util import files
from minguest.util.errors import ToolError


class Built(msgspec.Struct, frozen=True):
    """A kernel's record: kernels/KEY."""

    files: dict[str, str]
    """SHA-256 by name."""
    worker: str
    made: str


class Kernels:
    """variants.Shared, of one worker. What is wrong with the store stops no build: it is in `problems`."""

    def __init__(self, store: Store, worker: str, made: str) -> None:
        self._store, self._worker, self._made = store, worker, made
        self.problems: list[str] = []
        self._refuted: set[str] = set()

    def fetch(self, folder: Path) -> None:
        """Make the folder from the store; it stays missing if the store's kernel cannot be used."""
        try:
            built = self._record(folder.name)
            if built is None:
                return
            with tempfile.TemporaryDirectory(prefix="minguest-kernel-") as name:
                for each in kbuild.KEPT:
                    self._store.get(built.files[each], Path(name) / each)
                with files.replacing_tree(folder) as new:
                    for each in kbuild.KEPT:
                        shutil.copyfile(Path(name) / each, new / each)
                    kbuild.seal(new, kbuild.KEPT)
        except (Poisoned, Missing) as error:
            self._refuted.add(folder.name)
            self.problems.append(f"{error.message}: kernel {folder.name} is built again")
        except (ToolError, KeyError) as error:
            self.problems.append(str(error))

    def keep(self, folder: Path) -> None:
        """Put the folder's kernel into the store, and compare it with one that is there."""
        mine = {name: files.sha256(folder / name) for name in kbuild.KEPT}
        try:
            there = None if folder.name in self._refuted else self._record(folder.name)
            if there is not None and there.files == mine:
                return
            if there is not None:
                self.problems.append(
                    f"kernel {folder.name}: {self._worker} has other bytes than {there.worker} for the same inputs: "
                    f"{', '.join(name for name in mine if mine[name] != there.files.get(name))}"
                )
                return
            for name in kbuild.KEPT:
                self._store.put(folder / name)
            self._store.put_record(f"kernels/{folder.name}", Built(mine, self._worker, self._made))
        except ToolError as error:
            self.problems.append(str(error))

    def _record(self, key: str) -> Built | None:
        try:
            return self._store.record(f"kernels/{key}", Built)
        except Poisoned as error:
            self.problems.append(f"{error.message}: kernel {key} is built again")
            self._refuted.add(key)
            return None
