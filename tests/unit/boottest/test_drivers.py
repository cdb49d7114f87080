# SPDX-License-Identifier: Apache-2.0
"""The row of the verdict that says whether a card has its driver, and what the module said if not."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest.boottest import drivers, verdict
from minguest.model import Launch
from minguest.util.errors import UserError
from minguest.vm import launch, report
from minguest.vm.launch import Options
from minguest.vm.qemu import Run
from tests.unit.boottest.test_verdict import GPU_AT, RECORDS, SPEC, VIEWS

LOADED = report.Module("card", "/lib/modules/6.12/card.ko", "1.2", "loaded", None, None, 0.1, ())
OTHER = msgspec.structs.replace(LOADED, name="other")
MAGIC = "card: version magic '6.1 SMP ' should be '6.12 SMP '"
ASKED = "no module card was requested, by initd.modules= or by a device's MODALIAS"


def changed(**changes: Any) -> report.Module:
    return msgspec.structs.replace(LOADED, **changes)


@pytest.mark.parametrize(
    ("bound", "modules", "why"),
    [
        ("card", [LOADED], ""),
        ("card", [changed(result="failed", errno="EBUSY")], ""),
        (None, [], f"no driver is bound; {ASKED}"),
        (None, [OTHER], f"no driver is bound; {ASKED}"),
        ("vfio-pci", [LOADED], "vfio-pci is bound; module card: loaded"),
        (None, [changed(messages=("a", "b"))], "no driver is bound; module card: loaded: a | b"),
        (
            None,
            [OTHER, changed(result="failed", errno="ENOEXEC", messages=(MAGIC,))],
            f"no driver is bound; module card: failed, ENOEXEC: {MAGIC}",
        ),
        (None, [changed(result="failed", signal=9)], "no driver is bound; module card: failed, signal 9"),
        (None, [changed(result="timeout")], "no driver is bound; module card: timeout"),
        (None, [changed(result="absent", errno="ENOENT")], "no driver is bound; module card: absent"),
        (None, [changed(name="needed", result="failed")], f"no driver is bound; module needed: failed; {ASKED}"),
        (None, [changed(messages=tuple("abcdef"))], "no driver is bound; module card: loaded: a | b | c | d"),
    ],
)
def test_why_a_card_has_no_driver(bound: str | None, modules: list[report.Module], why: str) -> None:
    assert drivers.why_not("card", bound, modules) == why


def test_a_drivers_module_has_underscores() -> None:
    assert drivers.why_not("my-card", None, [changed(name="my_card")]) == "no driver is bound; module my_card: loaded"


NONE = changed(name="card", result="failed", errno="ENODEV", messages=("card: no card found",))
LEFT = changed(name="more", result="failed", messages=("initd: not tried, because it needs card",))


@pytest.mark.parametrize(
    ("modules", "passed", "found", "why"),
    [
        ([LOADED, changed(name="more")], False, "loaded", ""),
        ([LOADED, changed(name="more")], True, "loaded", ""),
        ([NONE, LEFT], False, "no card, ENODEV", ""),
        ([NONE, changed(name="other", result="failed", messages=LEFT.messages),
          changed(name="more", result="failed", messages=(*LEFT.messages, "initd: not tried, because it needs other"))],
         False, "no card, ENODEV", ""),
        ([NONE, LEFT], True, "failed", "module card: failed, ENODEV: card: no card found; module more: failed: "
         "initd: not tried, because it needs card"),
        ([changed(result="failed", errno="ENOENT"), LEFT], False, "failed", "module card: failed, ENOENT; module more: "
         "failed: initd: not tried, because it needs card"),
        ([NONE, changed(name="more", result="failed", errno="EINVAL")], False, "failed",
         "module card: failed, ENODEV: card: no card found; module more: failed, EINVAL"),
        ([LEFT], False, "failed", "module more: failed: initd: not tried, because it needs card"),
        ([LOADED, changed(name="more", result="timeout")], False, "failed", "module more: timeout"),
        ([LOADED], False, "failed", "module more: initd says nothing of it"),
        ([changed(name="more", result="failed", messages=("initd: not tried, because it needs more",))], False,
         "failed", "module more: failed: initd: not tried, because it needs more"),
        ([LEFT, changed(result="failed", messages=("initd: not tried, because it needs more",))], False, "failed",
         "module more: failed: initd: not tried, because it needs card; module card: failed: initd: not tried, because "
         "it needs more"),
    ],
)  # fmt: skip
def test_a_driver_without_a_card_is_not_one_that_fails(
    modules: list[report.Module], passed: bool, found: str, why: str
) -> None:
    assert drivers.of_disk(["more"], modules, passed=passed) == (found, why)


def judge(driver: str, bound: str | None, *modules: dict[str, Any]) -> verdict.Verdict:
    devices = [{**each, "driver": bound} if each.get("address") == GPU_AT else each for each in RECORDS]
    records = [*devices, *modules]
    records.append({"record": "end", "status": "ok", "records": len(records)})
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in records).encode()
    spec = msgspec.structs.replace(SPEC, driver=driver)
    return verdict.judge(spec, Run((), "power-off", "", b"", text, VIEWS, 2.0, 2.1, 3.0), report.parse(text))


def test_each_card_has_a_row_where_the_launch_names_a_driver() -> None:
    judged = judge("card", "card", {"record": "module", **msgspec.to_builtins(LOADED)})
    (row,) = [row for row in judged.checks if row.name.startswith("driver")]
    assert row == verdict.Check("driver of gpu0", "card", "", "card", True)
    assert judged.result == "pass"
    assert not [row for row in judge("", None).checks if row.name.startswith("driver")]


def test_a_card_without_its_driver_fails_with_what_the_module_said() -> None:
    failed = changed(result="failed", errno="ENOEXEC", messages=(MAGIC,))
    judged = judge("card", None, {"record": "module", **msgspec.to_builtins(failed)})
    assert judged.result == "failed"
    assert judged.reason == f"driver of gpu0: no driver is bound; module card: failed, ENOEXEC: {MAGIC}"


@pytest.mark.parametrize(
    ("own", "options", "driver"),
    [
        ("nvidia", Options(), "nvidia"),
        ("nvidia", Options(driver="other"), "other"),
        ("", Options(driver="other"), "other"),
        # Other cards than the launch's have another driver.
        ("nvidia", Options(gpu="bar:1G"), ""),
        ("nvidia", Options(gpu="bar:1G", driver="other"), "other"),
    ],
)
def test_the_launchs_driver_is_for_its_own_cards(own: str, options: Options, driver: str) -> None:
    spec = launch.settle(Launch(driver=own), options, 64, ["secondary-vga"], Path("/sys"))
    assert spec.driver == driver


def test_a_driver_without_a_card_is_refused() -> None:
    with pytest.raises(UserError, match="--driver nvidia: the launch has no card"):
        launch.settle(Launch(), Options(gpu="none", driver="nvidia"), 64, [], Path("/sys"))
