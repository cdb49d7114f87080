# SPDX-License-Identifier: Apache-2.0
"""The task graph of minguest; `doit list` tells the tasks, README.md how to use them.

    sources ──▶ tree ──▶ config ──▶ kernel ──┐
    initd ─────▶ initrd ◀── overlays ────────┼──▶ bundle ──▶ boot-test
    sources ──▶ firmware ────────────────────┘       └──▶ evidence, reproduce ──▶ release ──▶ publish
                                             build = bundle

Words: guest=NAME|FILE.toml  kernel=LINE|auto  source=DIR|TARBALL|pinned  contract=ignore
       version=X  key=FILE  unsigned=yes  since=DIR  to=DIR|oci://…|github:OWNER/REPO|s3://BUCKET/PREFIX
       log=FILE  report=FILE  image=FILE  config=FILE  cpus=N  gpu=MODEL|BDF,…  card=NAME|FILE,…
       only=PIT,…  yes=yes
"""

from pathlib import Path

from minguest.util import terminal

terminal.end_on_interrupt()  # before the imports, which take a moment

from minguest.tasks import project, reporter  # noqa: E402

DOIT_CONFIG = {"minversion": "0.37.0", "reporter": reporter.Reporter, "check_file_uptodate": project.ByContent}
PROJECT = project.project(Path(__file__).parent.resolve())
PYTEST = ["python", "-m", "pytest"]


def task_tree():
    """the kernel's source: fetched, verified, unpacked, patched"""
    yield PROJECT.tree_step()


def task_config():
    """the kernel's config: fragments, merged, verified, held against the contract"""
    yield PROJECT.config_step()


def task_kernel():
    """the kernel: compiled and inspected"""
    yield PROJECT.kernel_step()


def task_initd():
    """PID 1: a small static program"""
    return PROJECT.initd_step()


def task_initrd():
    """the initrd: initd and the overlays"""
    yield PROJECT.initrd_step()


def task_firmware():
    """OVMF: fetched, verified, unpacked"""
    return PROJECT.firmware_step()


def task_bundle():
    """what ships: kernel, initrd, firmware, config, manifest"""
    yield PROJECT.bundle_step()


def task_build():
    """make the bundle (the default)"""
    return {"actions": None, "task_dep": ["bundle"]}


def task_boot_test():
    """start the bundle in QEMU and assert that CPUs, memory, firmware and every GPU are there"""
    return PROJECT.boot_test_step()


def task_evidence():
    """boot tests of both machines, of hotplug and of large BARs: what has not passed yet on exactly these bytes"""
    return PROJECT.evidence_step()


def task_reproduce():
    """build twice in different surroundings and compare every byte (takes two whole builds)"""
    return PROJECT.reproduce_step()


def task_release():
    """what ships: signed, described, with its evidence; version=X key=FILE"""
    return PROJECT.release_step()


def task_publish():
    """put the release where users fetch it; to=DIR|oci://…|github:OWNER/REPO|s3://BUCKET/PREFIX"""
    return PROJECT.publish_step()


def task_diagnose():
    """which known pit a console tells of; log=FILE report=FILE"""
    return PROJECT.diagnose_step()


def task_doctor():
    """what a kernel would do under OVMF, before its first boot; image=FILE config=FILE cpus=N gpu=MODEL"""
    return PROJECT.doctor_step()


def task_plan():
    """whether the BARs of cards find room under OVMF, and what to tell it; gpu=BDF,… card=NAME|FILE,…"""
    return PROJECT.plan_step()


def task_host_check():
    """whether this host can give a card to a guest, and what to do; gpu=BDF,…"""
    return PROJECT.host_check_step()


def task_host_bind():
    """give cards, with all of their IOMMU groups, to vfio-pci: a dry run but for yes=yes; gpu=BDF,…"""
    return PROJECT.host_bind_step()


def task_host_unbind():
    """put back exactly what host-bind took: a dry run but for yes=yes; gpu=BDF,…"""
    return PROJECT.host_unbind_step()


def task_host():
    """the rehearsal's host, made as any guest: a kernel with VFIO, an IOMMU's driver and KVM"""
    yield from PROJECT.host_steps()


def task_rehearse():
    """a real VFIO passthrough of emulated cards, in an emulated host: host-bind, boot-test, host-unbind"""
    return PROJECT.rehearse_step()


def task_pits():
    """the fault matrix: injects every known pit, and checks that its first boot names it; only=ID,…"""
    return PROJECT.pits_step()


def task_pits_page():
    """docs/pits.md, of configs/pits/"""
    return PROJECT.pits_page_step()


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


def task_bench():
    """sizes and times of what was built; more with python -m tests.bench --help"""
    return {"actions": [["python", "-m", "tests.bench"]], "uptodate": [False]}
