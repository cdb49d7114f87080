# SPDX-License-Identifier: Apache-2.0
"""What `minguest diagnose --libvirt DOMAIN` collects, from programs that stand in for virsh, journalctl and dmesg."""

from pathlib import Path

import pytest

from minguest.diagnose import answer, libvirt, matching
from minguest.util.errors import UserError

XML = """\
<domain type='kvm'><name>g</name><vcpu placement='static'>4</vcpu><hostdev mode='subsystem' type='pci'>
<source>
<address domain='0x0000' bus='0x0a' slot='0x00' function='0x0'/>
</source></hostdev></domain>"""
LOG = "".join(
    f"2026-01-01 00:00:00.000+0000: {each}\n" for each in ("starting up libvirt version: 9.0.0", "shutting down")
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with a domain g."""
    programs = {
        "virsh": f'[ "$4" = g ] || exit 1\ncat <<E\n{XML}\nE',
        "journalctl": "echo 'Jan 01 00:00:01 host libvirtd[1]: internal error: it broke'",
        "dmesg": "echo '[ 1.000000] usb 1-1: new'; echo '[ 2.000000] vfio-pci 0000:0a:00.0: resetting'",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(libvirt, "SYSTEM", tmp_path / "logs")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/g.log").write_text(LOG)
    return tmp_path


def test_log_xml_journal_and_dmesg_are_collected(host: Path) -> None:
    said: list[str] = []
    found = libvirt.collect("g", said.append)
    assert [(Path(log.name).name, log.kinds) for log in found] == [
        ("g.log", ("libvirt",)),
        ("g.xml", ("libvirt XML",)),
        ("libvirt's journal", ("libvirt",)),
        ("dmesg", ("host kernel",)),
    ]
    assert not said
    assert b"usb" not in found[3].text and found[3].text.split(b"\n")[1].endswith(b"resetting")
    seen = matching.boot(found)
    assert seen[0].facts["cpus.requested"] == 4
    assert answer.answer(matching.diagnose({}, *seen), seen, answer.Subsystems(())).card == "0000:0a:00.0"


def test_what_cannot_be_read_is_said_and_the_rest_is_read(host: Path) -> None:
    (host / "journalctl").write_text("#!/bin/sh\nexit 1\n")
    (host / "dmesg").write_text("#!/bin/sh\nexit 1\n")
    (host / "logs/g.log").unlink()
    said: list[str] = []
    assert [log.name for log in libvirt.collect("g", said.append)] == ["g.xml"]
    assert len(said) == 3 and all(each.startswith("not read: ") for each in said)


@pytest.mark.parametrize(
    ("name", "why"), [("none", "no log and no XML"), ("../g", "not a domain"), ("-g", "not a domain")]
)
def test_a_domain_that_is_none_is_named(host: Path, name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        libvirt.collect(name, lambda _: None)
