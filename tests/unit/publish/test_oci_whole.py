# SPDX-License-Identifier: Apache-2.0
"""A whole release and a real registry: a repository of any name, and a publication that is killed at any moment."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from minguest.paths import Layout
from minguest.publish import destination, oci, pull
from minguest.publish.credentials import Credentials
from minguest.publish.registry import Repository
from minguest.release import layout, verify
from minguest.util.errors import UserError
from tests import faults, registry, workshop

PUBLISH = "import sys; from pathlib import Path; from minguest.publish import destination; "
PUBLISH += "print(destination.publish(Path(sys.argv[1]), sys.argv[2], print))"
# How many moments are tried, of about seventy.
MOMENTS = 10


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A release, not signed."""
    made = workshop.build(
        tmp_path_factory.mktemp("project") / "p", extra={"bzImage": random.Random(1).randbytes(1 << 20)}
    )
    workshop.tested(made)
    workshop.make(made, None)
    return made


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Proxy]:
    with registry.registry(tmp_path_factory.mktemp("registry")) as address, faults.proxy(address) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody(front: faults.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the logins of the user who runs the tests."""
    front.reset()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


class Killer:
    """Kills a process at one of its requests, by number, and goes on as the network then does."""

    def __init__(self, number: int, how: faults.Fault, process: subprocess.Popen[bytes]) -> None:
        self.number = number
        self.how = how
        self.process = process

    def __call__(self, number: int, seen: faults.Seen) -> faults.Fault | None:
        if number != self.number:
            return None
        self.process.kill()
        return self.how


def holds(place: str, tmp_path: Path) -> bool:
    with pull.as_folder(place, None, tmp_path / "cache", [], workshop.quiet) as folder:
        return verify.verify(folder, None).holds


@pytest.mark.parametrize(
    "repository",
    [
        "guest",
        "default-4.12/guest",
        "x/default-4.12/latest-1",
        "download/x",
        "default-4.12",
        "a/default-4.12/download/b",
    ],
)
def test_a_repository_may_have_any_name(at: Layout, front: faults.Proxy, tmp_path: Path, repository: str) -> None:
    where = f"oci://{front.address}/{repository}"
    destination.publish(at.release, where, workshop.quiet)
    for place in (where, f"{where}:1.0", f"{where}:latest"):
        assert holds(place, tmp_path), place
    folder, _ = pull.pull(
        f"{where}:1.0", tmp_path / "to", None, tmp_path / "cache", [], allow_failed=False, say=workshop.quiet
    )
    assert layout.load(folder).facts.version == "1.0"


def test_another_version_under_a_tag_is_still_refused(at: Layout, front: faults.Proxy, tmp_path: Path) -> None:
    where = f"oci://{front.address}/default-4.12/moved"
    destination.publish(at.release, where, workshop.quiet)
    place = oci.parse(where)
    there = Repository(place, Credentials(), "pull,push")
    manifest = there.get_manifest("1.0")
    assert manifest is not None
    there.put_manifest("1.1", manifest)
    with pytest.raises(UserError, match=r"is default-4\.12 1\.0, not 1\.1"):
        holds(f"{where}:1.1", tmp_path)


def test_a_publication_that_is_killed_is_finished_by_the_next(at: Layout, front: faults.Proxy, tmp_path: Path) -> None:
    """At any request, with half of it sent or with its answer never read: a tag is on a whole release or not there."""
    first = f"oci://{front.address}/first"
    destination.publish(at.release, first, workshop.quiet)
    hows: list[faults.Fault] = ["half a request", "no answer"]
    every = [(number, how) for number in range(len(front.seen)) for how in hows]
    for number, how in random.Random(35).sample(every, MOMENTS):
        where = f"oci://{front.address}/killed/{number}-{str(how).replace(' ', '')}"
        front.reset()
        argv = [sys.executable, "-c", PUBLISH, str(at.release), where]
        # Python takes longer to start than this does to say whom to kill.
        process = subprocess.Popen(argv, env=workshop.doit_env(), stdout=subprocess.DEVNULL)
        front.fault = Killer(number, how, process)
        assert process.wait() == -signal.SIGKILL, (number, how)
        front.reset()
        for tag in ("1.0", "latest"):
            try:
                assert holds(f"{where}:{tag}", tmp_path), (number, how)
            except UserError as error:
                assert "nothing of that name" in str(error), (number, how)
        destination.publish(at.release, where, workshop.quiet)
        again = destination.publish(at.release, where, workshop.quiet)
        assert (again.uploaded, again.uploaded_bytes) == (0, 0), (number, how)
        assert holds(f"{where}:1.0", tmp_path) and holds(f"{where}:latest", tmp_path)
