# SPDX-License-Identifier: Apache-2.0
"""What is known about one boot, by the names in diagnose.facts.NAMES. Pure."""

from minguest.diagnose.facts import Fact, of_report
from minguest.vm.launch import Spec
from minguest.vm.qemu import Run
from minguest.vm.qmp import functions
from minguest.vm.report import Report, kernel_log


def of_launch(spec: Spec) -> dict[str, Fact]:
    """What was requested, by the names in facts.NAMES."""
    return {
        "cpus.requested": spec.last_cpus,
        "cpus.max_requested": spec.max_cpus,
        "cpus.plugged": max(0, spec.plug_cpus - spec.cpus),
        "memory.requested": max(spec.memory, spec.plug_memory),
        "memory.plugged": max(0, spec.plug_memory - spec.memory),
        "nodes.requested": len(spec.numa) or 1,
        "disks.ceph": sum(bool(disk.rbd) for disk in spec.disks),
        "gpus.requested": len(spec.gpus),
        "gpus.passed": sum(bool(gpu.host) for gpu in spec.gpus),
    }


def of_boot(spec: Spec, run: Run, report: Report) -> dict[str, Fact]:
    """All that is known about one boot, by the names in facts.NAMES."""
    found = {**of_launch(spec), **of_report(report), "ending": run.ending}
    found["qemu.ready"] = "yes" if run.ready else "no"
    spoken = b"Linux version" in run.console + kernel_log(report.log)
    found["kernel.speaks"] = "yes" if spoken else "unseen" if spec.console == "quiet" and not report.log else "no"
    found["console.lines"] = sum(bool(line.strip()) for line in run.console.splitlines())
    if "cpus" in run.views:
        found["cpus.made"] = len(run.views["cpus"])
    if memory := run.views.get("memory"):
        size = memory["base-memory"] + memory.get("plugged-memory", 0)
        found["memory.made"] = size
        if isinstance(ram := found.get("memory.ram"), int):
            found["memory.missing"] = size - ram
    if "pci" in run.views:
        ids = {device.get("qdev_id") for device in functions(run.views["pci"]).values()}
        found["gpus.made"] = sum(gpu.id in ids for gpu in spec.gpus)
    return found
