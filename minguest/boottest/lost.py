# SPDX-License-Identifier: Apache-2.0
"""Why a guest is lost: it stopped before its report was whole. Pure."""

import re
from collections.abc import Sequence

from minguest.vm import console
from minguest.vm.launch import Spec
from minguest.vm.qemu import DEAD_ENDS, Run
from minguest.vm.report import Report

# What initd prints on the console when its report went nowhere.
NO_PORT = re.compile(r"initd: .* bytes, to no port")
# What is said of a lost guest whose kernel's messages nobody saw.
UNSEEN = (
    "; its console was quiet, and the kernel's log did not come, so what the kernel did before is not known: boot it "
    "again with the full console (boot-test --console full)"
)


def reason(spec: Spec, run: Run, report: Report, screen: Sequence[console.Line]) -> str:
    """Why a guest whose report is not whole, or cannot be compared with QEMU's view, is lost."""
    found = panic(screen)
    spoken = any(line.text for line in screen) or bool(report.records)
    if run.ending == "deadline" and not run.ready and not spoken:
        return f"QEMU did not start the guest, {run.detail}: it still opens its disks or other devices"
    dead_end = next((why for text, why in DEAD_ENDS.items() if text in run.console), None)
    if dead_end:
        what = dead_end
    elif found:
        what = f"the kernel panicked (console line {found.number})"
    else:
        what = {
            "power-off": "it powered off before its report was whole",
            "reset": f"it reset ({run.detail})",
            "dead end": run.detail,
            "deadline": f"it hung: no whole report, {run.detail}",
            "no power-off": "its report is damaged",
            "panic": "it panicked",
            "internal error": run.detail,
            "qemu died": f"QEMU died ({run.detail})",
            "no answer": f"QEMU did not answer what it has ({run.detail})",
            "console flood": run.detail,
            "report flood": run.detail,
        }[run.ending]
    if not spoken:
        what += "; it never spoke, neither on the console nor on the report's port"
    elif not report.records:
        spoke = next((line for line in screen if NO_PORT.match(line.text)), None)
        what += f"; initd could not write its report (console line {spoke.number})" if spoke else "; initd never spoke"
    what += f"; report: {report.damage}" if report.damage else ""
    return what + (UNSEEN if spec.console == "quiet" and not report.log else "")


def panic(screen: Sequence[console.Line]) -> console.Line | None:
    """The line on which the kernel panics."""
    return next((line for line in screen if "Kernel panic - not syncing" in line.text), None)
