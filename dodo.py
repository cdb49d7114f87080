# SPDX-License-Identifier: Apache-2.0
"""The task graph of minguest; `doit list` says what each task does, docs/build.md describes them.
That text is the docstring of the task here, or of a single step the `doc` in minguest/tasks/.

    sources ──▶ tree ──▶ config ──▶ kernel ──┐
    initd ─────▶ initrd ◀── overlays+modules ┼──▶ bundle ──▶ boot-test
    sources ──▶ firmware ────────────────────┘       └──▶ evidence, reproduce ──▶ release ──▶ publish
                                             build = bundle

Variables: guest=NAME|FILE.toml  kernel=SERIES|auto  source=DIR|TARBALL|pinned  contract=ignore
           version=X  key=FILE  unsigned=yes  since=DIR  to=DIR|oci://…|github:OWNER/REPO|s3://BUCKET/PREFIX
           scheduler=local:N|tcp://HOST:PORT  store=DIR|s3://BUCKET/PREFIX
           only=PIT|OPTION,…  redistribute=NAME,…  src=DIR|TARBALL|.deb|PACKAGE  name=NAME  make='K=V …'

The command `minguest` has what needs no build: diagnose, doctor, plan, host-check, verify and more.
"""

from pathlib import Path

from minguest.util import terminal

terminal.end_on_interrupt()  # before the imports, which take a moment

from minguest.tasks import build, modules, project, reporter, step, test  # noqa: E402

DOIT_CONFIG = {
    "minversion": "0.37.0",
    "default_tasks": ["build"],  # not read from pyproject.toml
    "reporter": reporter.Reporter,
    "check_file_uptodate": step.ByContent,
}
PROJECT = project.project(Path(__file__).parent.resolve())
PYTEST = ["python", "-m", "pytest"]


def task_tree():
    """the kernel's source: fetched, verified, unpacked, patched"""
    yield build.tree_step(PROJECT)


def task_config():
    """the kernel's config: fragments, merged, verified, held against the contract"""
    yield build.config_step(PROJECT)


def task_kernel():
    """the kernel: compiled and inspected"""
    yield build.kernel_step(PROJECT)


def task_modules():
    return modules.modules_step(PROJECT)


def task_in_tree():
    yield {"basename": "in-tree", "name": None, "doc": "the kernel's own modules, of a guest that names them"}
    if PROJECT.uses_in_tree:
        yield modules.in_tree_step(PROJECT)


def task_initd():
    return build.initd_step(PROJECT)


def task_initrd():
    """the initrd: initd and the overlays"""
    yield build.initrd_step(PROJECT)


def task_drivers():
    """the disk of drivers, of a guest that has one"""
    if PROJECT.guest.drivers:
        yield modules.drivers_step(PROJECT)


def task_firmware():
    return build.firmware_step(PROJECT)


def task_bundle():
    """what ships: kernel, initrd, firmware, config, manifest"""
    yield build.bundle_step(PROJECT)


def task_build():
    """make the bundle (the default)"""
    return {"actions": None, "task_dep": ["bundle"]}


def task_boot_test():
    return test.boot_test_step(PROJECT)


def task_evidence():
    return test.evidence_step(PROJECT)


def task_reproduce():
    return test.reproduce_step(PROJECT)


def task_release():
    return build.release_step(PROJECT)


def task_publish():
    return build.publish_step(PROJECT)


def task_host():
    """the rehearsal's host, built like any guest: its kernel has VFIO, an IOMMU driver and KVM"""
    yield from build.host_steps(PROJECT)


def task_rehearse():
    return test.rehearse_step(PROJECT)


def task_pits():
    return test.pits_step(PROJECT)


def task_pits_host():
    return test.pits_host_step(PROJECT)


def task_certify():
    return test.certify_step(PROJECT)


def task_necessity_page():
    return test.necessity_page_step(PROJECT)


def task_pits_page():
    return test.pits_page_step(PROJECT)


def task_lint():
    """ruff, mypy and the direction of imports"""
    for name, argv in {
        "ruff": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "mypy": ["mypy"],
        "imports": ["lint-imports"],
    }.items():
        yield {"name": name, "actions": [argv]}


def task_test():
    """lint, unit tests, then build and boot a real kernel"""
    yield {"name": "unit", "actions": [[*PYTEST, "tests/unit"]], "task_dep": ["lint"]}
    # A line a test: a build takes minutes, and the screen says which.
    yield {"name": "integration", "actions": [[*PYTEST, "-vv", "tests/integration"]], "task_dep": ["test:unit"]}


def task_ceph_test():
    """Debian from a root on a real one-node Ceph cluster; needs Ceph's packages"""
    # What passed is shown too: boot tests, and how each failure ends.
    return {"actions": [[*PYTEST, "-vv", "-rP", "tests/ceph"]], "basename": "ceph-test", "uptodate": [False]}


def task_bench():
    """a part of the benchmark: boot, build, size, growth, tools, check or page; options after --"""
    return {"actions": ["python -m tests.bench %(part)s"], "pos_arg": "part", "uptodate": [False]}
