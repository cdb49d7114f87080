# SPDX-License-Identifier: Apache-2.0
"""Kernels that begin with the objects of another one are the same as from scratch. Twenty minutes of CPU time."""

from pathlib import Path

import msgspec

from minguest.kernel import folders, kbuild, variants
from minguest.paths import Store
from minguest.tasks.project import VARIABLES, Project
from tests import ROOT

# Options that reach far and near, and none.
ONE_BY_ONE: tuple[dict[str, bool], ...] = ({"EFI": False}, {"SMP": False}, {"PCI": False}, {"ACPI": False}, {})


def test_they_are_the_same_bytes(tmp_path: Path) -> None:
    variables = dict.fromkeys(VARIABLES) | {"kernel": "6.12"}
    project = Project(ROOT, ROOT / "configs/guest.toml", variables, chooses=True)
    shop = variants.Workshop(
        tree=project.prepared(),
        fragments=tuple(project.fragments),
        options=project.guest.options,
        store=project.store,
        root=project.root,
        log=tmp_path,
    )
    own = Store(tmp_path / "store")
    own.folder.mkdir()
    own.objects.symlink_to(project.store.objects)
    with folders.Objects(own, print) as objects:
        for options in ONE_BY_ONE:
            scratch = variants.kernel_with(shop, options, print)
            after = variants.kernel_with(msgspec.structs.replace(shop, store=own, objects=objects), options, print)
            assert scratch != after
            for name in kbuild.KEPT:
                assert (scratch / name).read_bytes() == (after / name).read_bytes(), (options, name)
