# SPDX-License-Identifier: Apache-2.0
"""One cluster and one Debian for all tests of this folder, and on each series a bundle that starts from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest.util import files
from tests import ROOT, debian
from tests.ceph import cluster
from tests.ceph.cluster import Cluster

# Also for this folder: the tests choose a series, and what they start can be interrupted.
from tests.integration.conftest import can_be_interrupted, doit, keep_the_choice

__all__ = ["can_be_interrupted", "doit", "keep_the_choice"]


@pytest.fixture(scope="session")
def ceph() -> Iterator[Cluster]:
    if absent := cluster.missing_here():
        pytest.exit(cluster.advice(absent), 1)
    # A second run on this checkout waits for the first.
    with files.lock(ROOT / "out/.ceph.run"), cluster.running(ROOT / "out/ceph") as running:
        yield running


@pytest.fixture(scope="session")
def made(ceph: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Debian's disk.img and the ssh key `key`. After the cluster: that one says what is missing."""
    folder = tmp_path_factory.mktemp("debian")
    debian.make(folder)
    return folder
