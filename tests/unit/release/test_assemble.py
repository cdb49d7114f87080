# SPDX-License-Identifier: Apache-2.0
"""What is released is what was tested, and it says so; what was not tested is not released."""

import gzip
import io
import json
import re
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from minguest import paths
from minguest.boottest import certify, inject, records, runner, verdict
from minguest.bundle import manifests, reproduction
from minguest.diagnose import catalogue
from minguest.paths import Layout
from minguest.release import assemble, attest, evidence, layout, sbom, sshsig, verify
from minguest.util.errors import UserError
from minguest.vm import cards, launch
from tests import small_disk, workshop
from tests.damage import Damage, each_way
from tests.unit.release import test_verify


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def at(tmp_path: Path) -> Layout:
    made = workshop.build(tmp_path / "project")
    workshop.tested(made)
    return made


def results(folder: Path) -> dict[str, str]:
    statement = attest.unseal((folder / layout.EVIDENCE).read_bytes(), "it", None)
    return {check.name: check.result for check in msgspec.convert(statement.predicate, evidence.Predicate).checks}


def test_a_release_has_all_of_its_files(at: Layout, key: Path) -> None:
    made = workshop.make(at, key)
    assert {item.name for item in made.items} == set(layout.MEDIA_TYPES) - {"kernel-devel.tar.zst", "drivers.img"}
    for name in manifests.load(at.bundle).files:
        assert (at.release / name).read_bytes() == (at.bundle / name).read_bytes()
    assert (at.release / paths.RUN_GUEST).stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["sha256sum", "-c", "--quiet", layout.SUMS], cwd=at.release, check=False).returncode == 0
    assert (made.facts.name, made.facts.version, made.facts.signed, made.facts.previous) == (
        "default-4.12", "1.0", True, None,
    )  # fmt: skip


def test_the_same_release_again_is_the_same_bytes(at: Layout, key: Path) -> None:
    first = workshop.make(at, key)
    assert workshop.make(at, key).items == first.items


def test_a_package_of_an_overlay_is_listed_with_its_licence_and_its_source(at: Layout, key: Path) -> None:
    workshop.make(at, key)
    bom = json.loads((at.release / layout.SBOM).read_bytes())
    parts = {part["bom-ref"]: part for part in bom["components"]}
    tool = parts["package:tool"]
    assert (tool["name"], tool["version"], tool["type"]) == ("tool", "1:2-3+b1", "application")
    assert tool["licenses"] == [{"expression": "GPL-2.0-only AND LGPL-2.1-or-later"}]
    assert tool["purl"] == "pkg:deb/debian/tool@1:2-3%2Bb1?arch=amd64" and "scope" not in tool
    sources = {name: parts[f"source:tool:{name}"] for name in ("tool_2-3.dsc", "tool_2+0.tar.xz")}
    assert [row["value"] for row in tool["properties"]] == sorted(sources)
    downloads = {
        name: [(each["type"], each["url"], each["hashes"][0]["content"]) for each in part["externalReferences"]]
        for name, part in {"tool": tool, **sources}.items()
    }
    assert downloads == {
        "tool": [("source-distribution", "https://example.org/tool_2-3+b1_amd64.deb", "1" * 64)],
        "tool_2-3.dsc": [("source-distribution", "https://example.org/tool_2-3.dsc", "2" * 64)],
        "tool_2+0.tar.xz": [("source-distribution", "https://example.net/3", "3" * 64),
                            ("source-distribution", "https://example.org/tool_2%2B0.tar.xz", "3" * 64)],
    }  # fmt: skip
    assert {part["scope"] for part in sources.values()} == {"excluded"}
    depends = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert depends["file:initrd.img"] == ["initd", "musl", "package:tool"]
    statement = attest.unseal((at.release / layout.PROVENANCE).read_bytes(), "it", None)
    used = {each["name"]: each for each in statement.predicate["buildDefinition"]["resolvedDependencies"]}
    assert used["packages/tool"] == {
        "name": "packages/tool", "uri": "https://example.org/tool_2-3+b1_amd64.deb", "digest": {"sha256": "1" * 64},
        "annotations": {"version": "1:2-3+b1"},
    }  # fmt: skip
    page = (at.release / layout.PAGE).read_text()
    for text in ("1:2-3+b1", "LGPL-2.1-or-later", "https://example.org/tool_2-3.dsc", "tool_2%2B0.tar.xz"):
        assert text in page


def test_the_page_has_the_benchmarks_timeline_of_these_files_only(at: Layout, key: Path) -> None:
    made = manifests.load(at.bundle).files
    files = {name: msgspec.to_builtins(made[name]) for name in ("bzImage", "initrd.img")}
    other = {**files, "bzImage": {**files["bzImage"], "sha256": "0" * 64}}
    at.bench.mkdir(parents=True)
    (at.bench / "boot.svg").write_text("<svg><title>bench</title></svg>")
    shown = []
    for kind, measured in (("ours", files), ("peer", files), ("ours", other), ("ours", {})):
        (at.bench / "boot.json").write_text(json.dumps({"subjects": {"it": {"kind": kind, "files": measured}}}))
        workshop.make(at, key)
        shown.append("<svg><title>bench</title></svg>" in (at.release / layout.PAGE).read_text())
    assert shown == [True, False, False, False]
    (at.bench / "boot.json").write_text("[]")
    assert assemble.timeline(at.bench, manifests.load(at.bundle)) == ""
    assert assemble.timeline(at.bench / "none", manifests.load(at.bundle)) == ""


def test_kernel_devel_and_modules_are_listed(tmp_path: Path, key: Path) -> None:
    made = workshop.build(tmp_path / "p", extra={"kernel-devel.tar.zst": b"headers"}, modules=[workshop.MODULES])
    workshop.tested(made)
    workshop.make(made, key)
    assert (made.release / "kernel-devel.tar.zst").read_bytes() == b"headers"
    bom = json.loads((made.release / layout.SBOM).read_bytes())
    module = next(part for part in bom["components"] if part["bom-ref"] == "module:cards/my_card")
    assert (module["name"], module["version"], module["type"], module["hashes"][0]["content"]) == (
        "my_card", "1.2", "library", "6" * 64,
    )  # fmt: skip
    assert {row["name"]: row["value"] for row in module["properties"]} == {
        "minguest:module-licence": "Dual MIT/GPL", "minguest:source-sha256": "7" * 64,
    }  # fmt: skip
    depends = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert depends["file:initrd.img"] == ["initd", "module:cards/my_card", "musl", "package:tool"]
    assert depends["file:kernel-devel.tar.zst"] == ["linux"]
    assert test_verify.look(made.release, key).holds


def test_a_disk_of_drivers_with_firmware_is_released_only_on_request(tmp_path: Path, key: Path) -> None:
    firmware = {**workshop.PACKAGE, "deb": "card-firmware", "restricted": True, "source": (), "licence": "LicenseRef-X"}
    held = {"overlays": {}, "packages": {"firmware-2": firmware}, "modules": [workshop.MODULES]}
    made = workshop.build(tmp_path / "p", extra={"drivers.img": b"drivers"}, drivers=held)
    workshop.tested(made)
    why = r"has files of firmware-2 1:2-3\+b1 \(LicenseRef-X\), whose licence"
    with pytest.raises(UserError, match=why) as raised:
        workshop.make(made, key)
    assert raised.value.remedy.endswith("redistribute=firmware-2") and not made.release.exists()
    with pytest.raises(UserError, match=r"redistribute=tool: .* has no such package") as raised:
        assemble.make(made, "1.0", key, None, unsigned=False, redistribute=["tool", "firmware-2"], say=workshop.quiet)
    assert raised.value.remedy == "it has: firmware-2"
    assemble.make(made, "1.0", key, None, unsigned=False, redistribute=["firmware-2"], say=workshop.quiet)
    assert (made.release / "drivers.img").read_bytes() == b"drivers"
    bom = json.loads((made.release / layout.SBOM).read_bytes())
    parts = {part["bom-ref"]: part for part in bom["components"]}
    listed = parts["package:firmware-2"]
    assert (listed["name"], listed["purl"]) == ("card-firmware", "pkg:deb/debian/card-firmware@1:2-3%2Bb1?arch=amd64")
    assert "drivers.img" in listed["description"] and "drivers.img" in parts["module:cards/my_card"]["description"]
    depends = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    assert depends["file:drivers.img"] == ["module:cards/my_card", "package:firmware-2"]
    assert depends["file:initrd.img"] == ["initd", "musl", "package:tool"]
    assert "LicenseRef-X" in (made.release / layout.PAGE).read_text()
    assert test_verify.look(made.release, key).holds


def test_every_check_is_listed(at: Layout, key: Path) -> None:
    workshop.tested(at, "pc", 8, "failed")
    workshop.make(at, key)
    assert results(at.release) == {
        "boot-test-q35-1": "NOT RUN", "boot-test-q35-4": "PASS", "boot-test-q35-8": "NOT RUN",
        "boot-test-pc-1": "NOT RUN", "boot-test-pc-4": "NOT RUN", "boot-test-pc-8": "FAIL",
        "reproduce": "NOT RUN", "rehearsal": "NOT RUN",
        "hotplug": "NOT RUN", "power-button": "NOT RUN", "large-bars": "NOT RUN",
        "pits": "NOT RUN", "necessity": "NOT RUN", "real-card": "NOT RUN",
    }  # fmt: skip
    for name in (layout.NOTES, layout.PAGE):
        text = (at.release / name).read_text()
        assert "FAIL" in text and "NOT RUN" in text and "CPUs: 1 of 4" in text, name
    with tarfile.open(fileobj=io.BytesIO((at.release / layout.EVIDENCE_FILES).read_bytes())) as packed:
        assert sorted(packed.getnames()) == [
            f"boot-test-{cell}/{file}" for cell in ("pc-8", "q35-4") for file in sorted(runner.KEPT)
        ]  # fmt: skip


def test_long_text_stays_within_the_page(at: Layout, key: Path) -> None:
    """URLs and names of patches have no blank in them: where they stand they may be broken anywhere."""
    workshop.make(at, key)
    page = (at.release / layout.PAGE).read_text(encoding="utf-8")
    style = page[page.index("<style>") : page.index("</style>")]
    assert ".made { table-layout: fixed } .made td { overflow-wrap: anywhere" in style
    table = page[: page.index("https://example.org/linux-4.12.14.tar.xz")].rpartition("<table")[2]
    assert table.startswith(' class="made">')
    assert "td code { overflow-wrap: anywhere }" in style


def test_a_kernel_for_fewer_cpus_is_not_tested_with_more(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "project", "CONFIG_SMP=y\nCONFIG_NR_CPUS=4\n")
    workshop.tested(at)
    workshop.make(at, key)
    statement = attest.unseal((at.release / layout.EVIDENCE).read_bytes(), "it", None)
    reasons = {check["name"]: check["reason"] for check in statement.predicate["checks"]}
    assert reasons["boot-test-q35-8"] == "the kernel was built for fewer CPUs"
    assert reasons["boot-test-q35-1"] == "nobody ran it"


def test_a_reproduction_counts_only_for_these_bytes(at: Layout, key: Path) -> None:
    record: dict[str, Any] = {
        "schema": 1, "result": "same", "files": msgspec.to_builtins(manifests.load(at.bundle).files), "differences": [],
        "varied": {"umask": ["022", "077"]}, "not_varied": {}, "minguest": "0.1.0",
    }  # fmt: skip
    for change, result in (({}, "PASS"), ({"result": "different"}, "FAIL"), ({"files": {}}, "NOT RUN")):
        at.reproduced.write_text(json.dumps({**record, **change}))
        workshop.make(at, key)
        assert results(at.release)["reproduce"] == result


# ── what is refused ──


def refused(at: Layout, key: Path | None, why: str, **more: Any) -> None:
    before = sorted(at.release.iterdir()) if at.release.exists() else None
    given: dict[str, Any] = {"version": "1.0", "since": None, "unsigned": False, **more}
    with pytest.raises(UserError, match=why):
        assemble.make(at, given["version"], key, given["since"], unsigned=given["unsigned"], say=workshop.quiet)
    assert (sorted(at.release.iterdir()) if at.release.exists() else None) == before


def test_an_untested_bundle_is_refused(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "project")
    refused(at, key, r"(?s)boot-test-q35-4: NOT RUN, nobody ran it: only a bundle that passed.*remedy: doit boot-test")
    workshop.tested(at, "pc")  # another machine than the guest's own launch
    refused(at, key, "boot-test-q35-4: NOT RUN")
    workshop.tested(at, result="failed")
    refused(at, key, r"boot-test-q35-4: FAIL, CPUs: 1 of 4")
    workshop.tested(at, result="lost")
    refused(at, key, "boot-test-q35-4: FAIL")


def test_a_bundle_changed_after_its_test_is_refused(at: Layout, key: Path) -> None:
    with (at.bundle / "bzImage").open("r+b") as file:
        file.write(b"X")
    refused(at, key, "bzImage: is not the file that the manifest names")


def test_a_bundle_built_again_after_its_test_is_refused(at: Layout, key: Path) -> None:
    workshop.build(at.root, "CONFIG_SMP=y\nCONFIG_NR_CPUS=32\n")
    refused(at, key, "boot-test-q35-4: NOT RUN, its last run used other bytes")


def test_a_broken_contract_does_not_ship(at: Layout, key: Path) -> None:
    manifest = json.loads((at.bundle / "manifest.json").read_bytes())
    manifest["config"]["problems"] = ["CONFIG_EFI is n"]
    (at.bundle / "manifest.json").write_text(json.dumps(manifest))
    refused(at, key, "was built with contract=ignore")


def test_wrong_keys_and_versions_are_refused(at: Layout, key: Path, tmp_path: Path) -> None:
    refused(at, None, r"(?s)no key to sign with.*key=FILE.*unsigned=yes")
    refused(at, tmp_path / "nowhere", "nowhere: no such file")
    (tmp_path / "bad").write_text("no key")
    refused(at, tmp_path / "bad", "ssh-keygen cannot sign with it")
    for version in ("", "-1", "1/2", "a b", "1+2", "latest", "..", "x" * 129, None):
        refused(at, key, "version", version=version)
    refused(at, key, "not a release", since=tmp_path)
    workshop.make(at, key)
    refused(at, tmp_path / "bad", "ssh-keygen cannot sign with it")  # and the old one is still whole
    assert layout.load(at.release).facts.version == "1.0"


def test_a_patch_that_was_changed_since_the_build_is_refused(tmp_path: Path, key: Path) -> None:
    at = workshop.build(tmp_path / "p", patches=[{"file": workshop.patch(), "sha256": "0" * 64, "reason": "none"}])
    workshop.tested(at)
    refused(at, key, "is not the patch that the bundle was built with")


# ── what it says ──


def test_unsigned_is_said_everywhere(at: Layout) -> None:
    said: list[str] = []
    assemble.make(at, "1.0", None, None, unsigned=True, say=said.append)
    assert any("UNSIGNED" in line for line in said)
    assert not (at.release / layout.SIGNATURE).exists()
    assert layout.load(at.release).facts.signed is False
    for name in (layout.NOTES, layout.PAGE):
        assert "UNSIGNED" in (at.release / name).read_text(), name
    for name in (layout.PROVENANCE, layout.EVIDENCE):
        assert json.loads((at.release / name).read_bytes())["signatures"] == []


def test_unsigned_wins_over_a_key(at: Layout, key: Path) -> None:
    assemble.make(at, "1.0", key, None, unsigned=True, say=workshop.quiet)
    assert not (at.release / layout.SIGNATURE).exists()


def test_the_page_needs_no_network_and_escapes_what_a_guest_said(at: Layout, key: Path) -> None:
    workshop.make(at, key)
    page = (at.release / layout.PAGE).read_text()
    assert "&lt;b&gt;no markup" in page and "<b>no markup" not in page
    for word in ("src=", "@import", "url(", "<script", "<link"):
        assert word not in page
    assert page.count("<svg") == 3
    assert "0000:00:01.0 BAR 0, 16.0 MiB" in page


def test_notes_list_what_changed_since_the_release_before(at: Layout, key: Path, tmp_path: Path) -> None:
    workshop.make(at, key)
    workshop.build(at.root, "CONFIG_SMP=y\nCONFIG_NR_CPUS=64\nCONFIG_ACPI=y\n", version="4.12.15", patches=[])
    workshop.tested(at)
    made = workshop.make(at, key, "1.1")
    notes = (at.release / layout.NOTES).read_text()
    assert made.facts.previous == "1.0"
    for line in (
        "## Since 1.0", "- linux: 4.12.14 → 4.12.15", "- ACPI: n → y", "- EFI: y → n", "- bzImage: ",
        f"- {workshop.patch()}: ",
    ):  # fmt: skip
        assert line in notes, line
    assert "whole: 3.10" not in notes  # the same time is no change
    # Made again, it still compares with 1.0, and not with itself.
    assert workshop.make(at, key, "1.1").items == made.items
    # And with any other that is requested.
    assert workshop.make(at, key, "1.2", since=at.release_before).facts.previous == "1.0"
    assert layout.load(at.release_before).facts.version == "1.1"


def test_a_release_before_that_was_spoiled_is_not_compared_with(at: Layout, key: Path) -> None:
    workshop.make(at, key)
    (at.release / "bzImage").write_bytes(b"other")
    refused(at, key, "bzImage: is not the file that SHA256SUMS names", version="1.1")


def test_the_packed_evidence_is_the_same_whenever_it_is_packed(at: Layout) -> None:
    checks = [evidence.Check("boot-test-q35-4", "", "PASS", "", {"boot-test-q35-4/console.log": ""})]
    first = assemble.pack(at, checks)
    (at.evidence / "boot-test-q35-4/console.log").touch()
    assert assemble.pack(at, checks) == first
    assert gzip.decompress(first)[:27] == b"boot-test-q35-4/console.log"


def test_a_commit_is_recorded_only_for_an_unchanged_checkout(tmp_path: Path) -> None:
    assert assemble.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert assemble.commit(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("a")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    found = assemble.commit(tmp_path)
    assert found is not None and len(found) == 40
    (tmp_path / "b").write_text("b")
    assert assemble.commit(tmp_path) is None


def test_what_starts_the_release_is_the_bundles_own_and_attested(at: Layout, key: Path) -> None:
    workshop.make(at, key)
    for name in (paths.RUN_GUEST, paths.DOMAIN):
        for document in (layout.PROVENANCE, layout.EVIDENCE):
            statement = attest.unseal((at.release / document).read_bytes(), "it", None)
            assert statement.subjects[name] == manifests.load(at.bundle).files[name].sha256
    shown = subprocess.run([at.release / paths.RUN_GUEST, "--show"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("qemu-system-x86_64\n")


def test_a_release_before_keeps_its_program(at: Layout, key: Path) -> None:
    workshop.make(at, key)
    workshop.make(at, key, "1.1")
    assert (at.release_before / paths.RUN_GUEST).stat().st_mode & stat.S_IXUSR


def test_a_bundle_without_what_starts_it_is_refused(at: Layout, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workshop, "launch_files", lambda *_: {})
    workshop.build(at.root)
    refused(at, key, r"(?s)has no run-guest and no domain\.xml.*remedy: doit build")


FULL = """
import shutil
from minguest import paths
from minguest.release import layout
from tests import workshop
at = workshop.build(folder / "project")
workshop.tested(at)
workshop.make(at, Path(sys.argv[3]))
(at.root / "fill").write_bytes(b"x" * (shutil.disk_usage(folder).free - (64 << 10)))
try:
    workshop.make(at, Path(sys.argv[3]), "1.1")
except ToolError as error:
    print(error)
print(layout.load(at.release).facts.version, sorted(path.name for path in at.work.iterdir()))
"""


def test_a_full_disk_leaves_the_release_that_was_there(tmp_path: Path, key: Path) -> None:
    said = small_disk.run(FULL, tmp_path / "disk", "1m", key)
    assert "No space left on device" in said and "remedy: free some space" in said
    assert said.splitlines()[-1].startswith("1.0 ")
    assert ".new" not in said.splitlines()[-1]


def test_what_would_not_verify_is_not_put_in_place(at: Layout, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workshop.make(at, key)
    monkeypatch.setattr(sbom, "render", lambda *_: b"{}\n")
    refused(at, key, r"(?s)does not verify, so nothing was released.*SBOM +WRONG", version="1.1")
    assert layout.load(at.release).facts.version == "1.0"


def test_evidence_of_another_test_under_its_name_does_not_count(at: Layout, key: Path) -> None:
    workshop.tested(at, "q35", 1)
    for path in (at.evidence / "boot-test-q35-1").iterdir():
        (at.evidence / "boot-test-q35-4" / path.name).write_bytes(path.read_bytes())
    refused(at, key, "boot-test-q35-4: NOT RUN, its record is of another test")


def key_of(at: Layout) -> str:
    manifest = manifests.load(at.bundle)
    return inject.key_of(manifest, manifest.guest.launch, catalogue.load(at.pits))


def matrix(at: Layout, *results: str, whole: bool = True, files: object = None) -> None:
    cells = tuple(records.Cell("efi-off", "", "", "", "", "", each, qemu="7.2") for each in results)  # type: ignore[arg-type]
    made = records.Matrix(1, "6.12", "6.12.94", manifests.load(at.bundle).files, key_of(at), whole, cells)
    made = msgspec.structs.replace(made, **({"bundle": files} if files else {}))
    at.matrix.mkdir(parents=True, exist_ok=True)
    (at.matrix / "matrix.json").write_bytes(msgspec.json.encode(made))


@pytest.mark.parametrize(
    ("results", "whole", "result", "reason"),
    [
        (("right", "right", "NOT RUN"), True, "PASS", "2 right, 1 NOT RUN"),
        (("right", "wrong"), True, "FAIL", "1 right, 1 wrong"),
        (("right",), False, "NOT RUN", "not every pit was brought about: 1 right"),
        (("wrong",), False, "FAIL", "1 wrong"),
        (("NOT RUN",), True, "NOT RUN", "not every pit was brought about: 1 NOT RUN"),
        ((), True, "NOT RUN", "not every pit was brought about: none"),
    ],
)
def test_the_matrix_is_evidence(
    at: Layout, key: Path, results: tuple[str, ...], whole: bool, result: str, reason: str
) -> None:
    matrix(at, *results, whole=whole)
    (check,) = [
        each
        for each in evidence.checks(at, manifests.load(at.bundle), 64, catalogue.load(at.pits))
        if each.name == "pits"
    ]
    assert (check.result, check.reason) == (result, reason)
    if result != "FAIL":
        workshop.make(at, key)
        with sshsig.trusting(Path(f"{key}.pub"), Path("nowhere"), unsigned=False) as trusted:
            found = verify.verify(at.release, trusted)
        assert found.holds
        assert {check.name: check.result for check in found.checks}["pits"] == result


def test_a_matrix_of_other_bytes_is_none(at: Layout) -> None:
    matrix(at, "right", files={"bzImage": {"sha256": "a" * 64, "size": 1}})
    (check,) = [
        each
        for each in evidence.checks(at, manifests.load(at.bundle), 64, catalogue.load(at.pits))
        if each.name == "pits"
    ]
    assert (check.result, check.reason) == ("NOT RUN", "its last run used other bytes")


def test_a_matrix_of_other_pits_is_none(at: Layout) -> None:
    matrix(at, "right")
    place = at.matrix / "matrix.json"
    place.write_text(re.sub(r'"key":"[0-9a-f]+"', '"key":"00"', place.read_text()))
    (check,) = [
        each
        for each in evidence.checks(at, manifests.load(at.bundle), 64, catalogue.load(at.pits))
        if each.name == "pits"
    ]
    assert (check.result, check.reason.split(",")[0]) == ("NOT RUN", "its last run used other pits")


def certificate(at: Layout, *kinds: records.Kind, whole: bool = True, **changes: Any) -> evidence.Check:
    """What a certificate with rows of these kinds comes to as evidence."""
    manifest = manifests.load(at.bundle)
    rows = tuple(records.Row("EFI", "20-efi.config", "y", "", kind) for kind in kinds)
    made = records.Certificate(
        records.CERTIFICATE_SCHEMA, "6.12", "6.12.94", manifest.files, manifest.config.fragments, "gcc 12", "7.2.22",
        certify.judge_of(manifest.guest.launch, catalogue.load(at.pits)), "key", whole, 1000, None, rows,
    )  # fmt: skip
    at.certified.mkdir(parents=True, exist_ok=True)
    place = at.certified / "certificate.json"
    place.write_bytes(msgspec.json.encode(msgspec.structs.replace(made, **changes)))
    (check,) = [each for each in evidence.checks(at, manifest, 64, catalogue.load(at.pits)) if each.name == "necessity"]
    return check


@pytest.mark.parametrize(
    ("kinds", "whole", "result", "reason"),
    [
        (("row", "row", "stated", "unasked"), True, "PASS", "2 row, 1 stated, 1 unasked"),
        (("row", "unseen"), True, "FAIL", "1 row, 1 unseen"),
        (("unseen",), False, "FAIL", "1 unseen"),
        (("row",), False, "NOT RUN", "not every option was left out: 1 row"),
        (("row", "NOT RUN"), True, "NOT RUN", "not every option was left out: 1 row, 1 NOT RUN"),
    ],
)
def test_the_certificate_is_evidence(
    at: Layout, key: Path, kinds: tuple[records.Kind, ...], whole: bool, result: str, reason: str
) -> None:
    check = certificate(at, *kinds, whole=whole)
    assert (check.result, check.reason) == (result, reason)
    if result != "FAIL":
        workshop.make(at, key)
        with sshsig.trusting(Path(f"{key}.pub"), Path("nowhere"), unsigned=False) as trusted:
            found = verify.verify(at.release, trusted)
        assert found.holds
        assert {check.name: check.result for check in found.checks}["necessity"] == result


def test_a_certificate_of_other_bytes_or_of_another_schema_is_none(at: Layout) -> None:
    others: tuple[dict[str, Any], ...] = ({"bundle": {}}, {"schema": 1}, {"fragments": {}}, {"judge": "another"})
    for changes in others:
        check = certificate(at, "row", **changes)
        assert check.result == "NOT RUN" and check.reason.startswith("its last run used other ")


def rehearsed(at: Layout, **changes: object) -> evidence.Check:
    """What a rehearsal comes to as evidence; `changes` to one that passed."""
    files = manifests.load(at.bundle).files
    gpu = cards.Gpu("gpu0", "0000:01:00.0", host="0000:01:00.0")
    spec = launch.Spec("q35", "kvm", "max", 2, 64, 512 << 20, (gpu,), (), 240)
    phases = verdict.Phases(None, None, None, 20.0)
    judged = verdict.Verdict(str(changes.pop("inner", "pass")), "", (), phases, "power-off")  # type: ignore[arg-type]
    outcome = runner.Outcome(files, workshop.LAUNCH, spec, "7.2", "kvm as requested", (), judged)
    checks = (records.Check("host", "up"), records.Check("boot-test", "pass"))
    record = records.Rehearsal(2, files, {}, records.Options(), "7.2", "pass", checks, outcome, 30.0)
    at.rehearsed.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, **changes)))
    (check,) = [
        each
        for each in evidence.checks(at, manifests.load(at.bundle), 64, catalogue.load(at.pits))
        if each.name == "rehearsal"
    ]
    return check


def test_the_rehearsal_is_evidence(at: Layout, key: Path) -> None:
    check = rehearsed(at)
    assert (check.result, check.reason) == ("PASS", "vfio-pci 0000:01:00.0 under kvm")
    workshop.make(at, key)
    with sshsig.trusting(Path(f"{key}.pub"), Path("nowhere"), unsigned=False) as trusted:
        found = verify.verify(at.release, trusted)
    assert found.holds
    assert {check.name: check.result for check in found.checks}["rehearsal"] == "PASS"


def test_a_rehearsal_that_did_not_pass_or_was_of_other_bytes_is_none(at: Layout) -> None:
    wrong = (records.Check("host-unbind", "", "not done"),)
    assert rehearsed(at, result="failed").result == "FAIL"
    assert rehearsed(at, result="lost", outcome=None).result == "FAIL"
    assert rehearsed(at, checks=wrong).result == "FAIL"
    assert rehearsed(at, checks=()).result == "FAIL"
    assert rehearsed(at, inner="failed").result == "FAIL"
    assert rehearsed(at, bundle={}).result == "NOT RUN"
    at.rehearsed.write_text("{")
    assert next(each.result for each in evidence.checks(at, manifests.load(at.bundle), 64, catalogue.load(at.pits))
                if each.name == "rehearsal") == "NOT RUN"  # fmt: skip


@each_way
def test_a_damaged_record_is_no_evidence(damage: Damage, at: Layout) -> None:
    manifest = manifests.load(at.bundle)
    assert rehearsed(at).result == certificate(at, "row").result == "PASS"
    matrix(at, "right")
    made = reproduction.Reproduction(1, "same", manifest.files, (), {"umask": ("022", "077")}, {}, "0.1.0")
    at.reproduced.write_bytes(msgspec.json.encode(made))
    (own,) = (path.parent for path in at.evidence.glob("*/verdict.json"))
    empty = at.evidence / "boot-test-pc-1"
    empty.mkdir()
    (empty / runner.NO_ROOM).write_bytes(
        msgspec.json.encode(runner.NoRoom(manifest.files, manifest.guest.launch, "no room"))
    )

    def found() -> dict[str, tuple[str, str]]:
        return {
            each.name: (each.result, each.reason) for each in evidence.checks(at, manifest, 64, catalogue.load(at.pits))
        }

    before = found()
    places = {
        "rehearsal": at.rehearsed,
        "pits": at.matrix / "matrix.json",
        "reproduce": at.reproduced,
        "necessity": at.certified / "certificate.json",
        own.name: own / "verdict.json",
        empty.name: empty / runner.NO_ROOM,
    }
    assert {before[name][0] for name in places if name != empty.name} == {"PASS"}
    assert before[empty.name] == ("NOT RUN", "no room")
    for name, place in places.items():
        damage(place)
        assert found()[name] == ("NOT RUN", "nobody ran it"), name
