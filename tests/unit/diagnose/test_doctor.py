# SPDX-License-Identifier: Apache-2.0
"""What is known of a kernel before its first boot, and how sure that is."""

from pathlib import Path

import msgspec
import pytest

from minguest.diagnose import catalogue, doctor
from minguest.kernel import binary, kconfig
from minguest.kernel.image import Image
from minguest.model import Launch
from minguest.util.errors import UserError
from tests import ROOT

PITS = catalogue.load(ROOT / "configs/pits")
WHOLE = frozenset(doctor.look_for())


def image(**fields: object) -> Image:
    made = Image(
        kind="vmlinux", path="vmlinux", size=1, wrapped_in="", version="6.1.0 (a@b) #1 SMP", bzimage=None,
        compression=None, opened=True, closed_because="", config=None, strings=WHOLE,
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def options(found: doctor.Report, sure: str) -> list[str]:
    return [each.option for each in found.findings if each.sure == sure]


def test_a_config_decides() -> None:
    config = kconfig.parse_config("CONFIG_64BIT=y\nCONFIG_SMP=y\nCONFIG_NR_CPUS=8\n# CONFIG_EFI is not set\n")
    found = doctor.examine(image(config=config), None, PITS, Launch(cpus=8, max_cpus=8))
    assert "EFI" in options(found, "certain")
    assert "NR_CPUS" not in options(found, "certain")
    assert not options(found, "likely") and not options(found, "not known")
    assert "NR_CPUS" in options(doctor.examine(image(config=config), None, PITS, Launch(max_cpus=9)), "certain")
    # A config that is passed takes precedence over the image's own.
    given = {**config, "EFI": "y"}
    assert "EFI" not in options(doctor.examine(image(config=config), given, PITS, Launch()), "certain")


@pytest.mark.parametrize("option", sorted(doctor.STRINGS))
def test_without_a_config_the_messages_decide(option: str) -> None:
    found = doctor.examine(image(strings=WHOLE - set(doctor.STRINGS[option])), None, PITS, Launch())
    assert options(found, "likely") == [option]
    assert options(found, "certain") == []
    for message in doctor.STRINGS[option]:
        one = WHOLE - set(doctor.STRINGS[option]) | {message}
        assert options(doctor.examine(image(strings=one), None, PITS, Launch()), "likely") == []


def test_what_is_not_known_is_not_guessed() -> None:
    found = doctor.examine(image(), None, PITS, Launch())
    assert {each.sure for each in found.findings} == {"not known"}
    assert "NR_CPUS" in options(found, "not known")
    text = doctor.describe(found)
    assert (
        "nothing that keeps a guest or its GPU from working was found in what is known" in text
        and "--config FILE" in text
    )
    closed = image(opened=False, closed_because="lz4: the program lz4 is not installed", strings=frozenset())
    found = doctor.examine(closed, None, PITS, Launch())
    assert not options(found, "likely")
    assert "lz4 is not installed" in doctor.describe(found)


def test_what_is_wrong_comes_with_what_happens_at_boot() -> None:
    config = {rule.option: rule.value or "y" for rule in catalogue.rules(PITS)} | {
        "NR_CPUS": "64",
        "SERIAL_8250_RUNTIME_UARTS": "4",
    }
    assert (
        doctor.describe(doctor.examine(image(), config, PITS, Launch())).count(
            "nothing that keeps a guest or its GPU from working was found\n"
        )
        == 1
    )
    found = doctor.examine(image(), {**config, "EFI": "n"}, PITS, Launch())
    text = doctor.describe(found)
    assert "certain: efi-off: CONFIG_EFI is n, wanted y" in text and "A valid RSDP was not found" in text


def test_a_fault_of_the_launch_is_found_too() -> None:
    found = doctor.examine(image(), {}, PITS, Launch(), {"memory.requested": 64 << 20})
    assert [each.why for each in found.findings if each.pit == "memory-too-little"] == ["memory.requested is 67108864"]
    found = doctor.examine(image(), {}, PITS, Launch(), {"memory.requested": 128 << 20})
    assert "memory-too-little" not in [each.pit for each in found.findings]


NEEDS = doctor.load(ROOT / "configs/diagnose/drivers.toml")
GOOD = {rule.option: rule.value or "y" for rule in catalogue.rules(PITS)} | {
    "NR_CPUS": "64",
    "SERIAL_8250_RUNTIME_UARTS": "4",
    **{need.option: "y" if need.want == "on" else need.want for need in NEEDS},
}


def looked(
    changes: dict[str, str], driver: doctor.Driver | None = None, launch: Launch = doctor.PLAIN
) -> doctor.Report:
    return doctor.examine(image(), {**GOOD, **changes}, PITS, launch, None, NEEDS, driver)


def test_a_kernel_that_has_all_lacks_nothing() -> None:
    for driver in (None, "nvidia", "amdgpu", "xe", "i915"):
        assert not looked({}, driver).findings


@pytest.mark.parametrize(
    ("option", "group", "counts"),
    [
        ("EFI", "guest", True), ("ACPI", "guest", True), ("SMP", "guest", True), ("PCI_MSI", "gpu", True),
        ("MODULES", "gpu", True), ("FW_LOADER", "gpu", True), ("HUGETLBFS", "gpu", False),
        ("PCI_MMCONFIG", "gpu", False),
        ("SERIAL_8250_CONSOLE", "minguest", False), ("DEVTMPFS", "minguest", False), ("RD_GZIP", "minguest", False),
    ],
)  # fmt: skip
def test_a_finding_has_its_group_and_only_two_of_them_count(option: str, group: str, counts: bool) -> None:
    found = looked({option: "n"})
    assert {each.group for each in found.findings if each.option == option} == {group}
    assert bool(found.wrong) == counts


def test_nothing_is_asked_that_only_a_launch_asks() -> None:
    lean = {"NR_CPUS": "2", "NUMA": "n", "X86_64_ACPI_NUMA": "n", "X86_X2APIC": "n", "ACPI_HOTPLUG_MEMORY": "n",
            "HOTPLUG_CPU": "n", "ACPI_HOTPLUG_CPU": "n"}  # fmt: skip
    assert not looked(lean).findings
    asked = looked(lean, launch=Launch(cpus=8, max_cpus=300, gpus=("secondary-vga",)))
    assert {"NR_CPUS", "X86_X2APIC", "HOTPLUG_CPU"} <= {each.option for each in asked.findings}
    no_card = {"PCI_MSI": "n", "MODULES": "n", "FW_LOADER": "n"}
    assert not looked(no_card, launch=msgspec.structs.replace(doctor.PLAIN, gpus=(), machine="pc")).findings


def test_what_follows_is_said_after_its_root_in_one_line() -> None:
    """libkrunfw's kernel: no PCI, and so none of what needs it."""
    found = looked({"PCI": "n", "ACPI": "n", "PCI_MSI": "n", "PCI_MMCONFIG": "n", "EFI": "n", "EFI_STUB": "n"})
    roots = [each.pit for each in found.wrong if not each.follows]
    assert roots == ["pci-off"]
    said = doctor.describe(found)
    assert said.index("pci-off: CONFIG_PCI is n") < said.index("follows from")
    assert said.count("wanted y") == 1


@pytest.mark.parametrize(
    ("driver", "option", "value"),
    [
        ("nvidia", "TRIM_UNUSED_KSYMS", "y"), ("nvidia", "PREEMPT_RT", "y"), ("nvidia", "MMU_NOTIFIER", "n"),
        ("amdgpu", "DRM_AMDGPU", "n"), ("xe", "DRM_XE", "n"), ("i915", "DRM_I915", "n"),
    ],
)  # fmt: skip
def test_what_a_driver_needs_is_asked_for_that_driver_alone(driver: doctor.Driver, option: str, value: str) -> None:
    found = looked({option: value}, driver)
    assert [each.option for each in found.wrong] == [option]
    others: set[doctor.Driver] = {"nvidia", "amdgpu", "xe", "i915"}
    assert not any(looked({option: value}, other).findings for other in others - {driver})
    assert not looked({option: value}).findings


@pytest.mark.parametrize("option", ["MODULE_SIG_FORCE", "LOCK_DOWN_KERNEL_FORCE_INTEGRITY", "MODVERSIONS"])
def test_what_a_signed_module_passes_is_said_and_does_not_count(option: str) -> None:
    found = looked({option: "y"}, "nvidia")
    assert [each.option for each in found.findings] == [option] and not found.wrong


def test_without_modules_nothing_is_said_of_them_but_that() -> None:
    found = looked({"MODULES": "n", "MODULE_SIG_FORCE": "y", "MMU_NOTIFIER": "n"}, "nvidia")
    assert [each.pit for each in found.wrong] == ["modules-off"]
    assert not looked({"MODULES": "n", "DRM_AMDGPU": "y"}, "amdgpu").wrong
    assert looked({"MODULES": "n", "DRM_AMDGPU": "m"}, "amdgpu").wrong


def test_a_driver_that_is_a_module_is_there() -> None:
    assert not looked({"DRM_AMDGPU": "m", "DRM": "m"}, "amdgpu").findings


def test_a_fragment_repairs_what_it_was_made_from() -> None:
    broken = {"EFI": "n", "SMP": "n", "MODULE_SIG_FORCE": "y", "DRM": "n", "SERIAL_8250_CONSOLE": "n"}
    text = doctor.fragment([looked(broken, "nvidia")])
    assert "# CONFIG_MODULE_SIG_FORCE is not set" in text and "CONFIG_EFI=y" in text
    assert "SERIAL_8250_CONSOLE" not in text  # only minguest's launch needs it
    repaired = {**broken, **kconfig.parse_config(text)}
    assert not looked(repaired, "nvidia").wrong
    # Each option has its reason above it.
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if "CONFIG_" in line:
            assert lines[number - 1].startswith("# ") and "CONFIG_" not in lines[number - 1].split(" ")[1]


def test_what_makes_less_of_a_card_that_does_not_work_comes_after() -> None:
    said = doctor.describe(looked({"MODULES": "n", "X86_PAT": "n"}))
    assert "\nwith that fixed, the GPU works, with less:\n  CONFIG_X86_PAT" in said
    assert "\nthe GPU works, with less:\n  CONFIG_X86_PAT" in doctor.describe(looked({"X86_PAT": "n"}))
    assert "\nwith that fixed, the GPU works, with less:\n" in doctor.describe(looked({"EFI": "n", "X86_PAT": "n"}))


def test_what_it_could_boot_from_is_what_is_built_in() -> None:
    bare = dict.fromkeys((*doctor.SYSTEMS.values(), *(each for names in doctor.DISKS.values() for each in names)), "n")
    options = {"VIRTIO_BLK": "y", "VIRTIO_PCI": "m", "BLK_DEV_NVME": "y", "EXT4_FS": "m", "XFS_FS": "y"}
    found = looked({**bare, **options})
    assert found.boots_from["root disk"] == ("NVMe",)
    assert found.boots_from["file system"] == ("xfs",)
    assert found.boots_from["initrd"] == ("gzip",)
    assert doctor.examine(image(), None, PITS, doctor.PLAIN).boots_from == {}
    assert "built in, root disk: none, an initrd must load it\n" in doctor.describe(looked(bare))
    without = {**bare, "MODULES": "n", "RD_GZIP": "n"}
    assert "built in, initrd: none\nbuilt in, root disk: none\n" in doctor.describe(looked(without))


def test_several_kernels_are_a_table() -> None:
    lines = doctor.table([looked({}), looked({"PCI": "n", "PCI_MSI": "n"}), looked({"PCI_MSI": "n"})]).splitlines()
    assert [line.split("  ")[0].strip() for line in lines] == ["kernel", "vmlinux", "vmlinux", "vmlinux"]
    assert "pci-off" in lines[2] and "msi-off" not in lines[2] and "msi-off" in lines[3]


def test_a_need_that_is_spelled_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text('[[need]]\noption = "CONFIG_EFI"\nwithout = "x"\n')
    with pytest.raises(UserError, match=r"d\.toml: option = 'CONFIG_EFI'.*\n.*without CONFIG_"):
        doctor.load(tmp_path / "d.toml")


BZIMAGE = binary.BzImage(
    protocol="2.15", version="6.1.0 (a@b) #1 SMP", efi_stub=True, xloadflags=("kernel-64",), relocatable=True,
    init_size=1, size=1, handover_offset=0, pref_address=0, alignment=1, min_alignment=1, compression="gzip",
)  # fmt: skip


def found_of(report: doctor.Report, pit: str) -> list[doctor.Finding]:
    return [each for each in report.findings if each.pit == pit]


def test_a_damaged_image_is_a_pit_and_no_pass() -> None:
    for fields, sure in (({"damage": "gzip: damaged"}, "certain"), ({"doubt": "its CRC-32 is wrong"}, "likely")):
        report = doctor.examine(image(kind="bzImage", bzimage=BZIMAGE, **fields), None, PITS, Launch())
        (found,) = found_of(report, "kernel-damaged")
        assert (found.sure, found.why, found.group) == (sure, *fields.values(), "guest")
        assert found in report.wrong
    assert not found_of(doctor.examine(image(), None, PITS, Launch()), "kernel-damaged")


@pytest.mark.parametrize(("relocatable", "wrong"), [(True, False), (False, True)])
def test_ovmf_starts_a_relocatable_kernel_without_stub(relocatable: bool, wrong: bool) -> None:
    header = msgspec.structs.replace(BZIMAGE, efi_stub=False, relocatable=relocatable)
    own = {"EFI_STUB": "n", "RELOCATABLE": "y" if relocatable else "n"}
    for fields in (
        {"kind": "bzImage", "bzimage": header},
        {"kind": "bzImage", "bzimage": header, "config": own},
        {"kind": "config", "config": own},
    ):
        report = doctor.examine(image(**fields), None, PITS, Launch())
        (found,) = found_of(report, "efi-stub-off")
        assert (found.sure, found in report.wrong) == ("certain", wrong)
        assert ("older loader (-kernel)" in found.without) is not wrong
        # What follows from another option that is off is listed there.
        assert ("it comes up, with less:" in doctor.describe(report)) is not (wrong or bool(found.follows))


@pytest.mark.parametrize("strings", [WHOLE, WHOLE | {"CPU topo: Allowing"}, frozenset()])
def test_the_banner_says_whether_it_has_smp(strings: frozenset[str]) -> None:
    def smp(version: str | None) -> list[str]:
        report = doctor.examine(image(version=version, strings=strings), None, PITS, Launch(cpus=2, max_cpus=2))
        return [each.sure for each in report.findings if each.option == "SMP"]

    assert smp("6.12.94 (a@b) #1 SMP PREEMPT_DYNAMIC Thu Jan 1") == []
    assert smp("6.12.94 (a@b) #1-Ubuntu SMP Thu Jan 1") == []
    assert smp("6.12.94 (a@b) #1 PREEMPT Thu Jan 1") == ["certain"]
    assert smp("6.12.94 (SMP@host) #1 Thu Jan 1") == ["certain"]
    assert smp("6.12.94") == smp(None) == ["not known"]


def test_options_that_the_kernel_brings_are_judged() -> None:
    config = {"CMDLINE_BOOL": "y", "CMDLINE": '"console=ttyS0 pci=nomsi -- noapic"'}
    report = doctor.examine(image(config=config), None, PITS, Launch())
    assert [each.why for each in found_of(report, "msi-off-cmdline")] == ["pci=nomsi is in CONFIG_CMDLINE"]
    assert not found_of(report, "ioapic-off-cmdline")  # an argument of init
    assert "note: built-in command line, which comes before the loader's (CONFIG_CMDLINE): console=ttyS0" in (
        doctor.describe(report)
    )
    over = doctor.examine(image(config={**config, "CMDLINE_OVERRIDE": "y"}), None, PITS, Launch())
    assert "which replaces the loader's" in doctor.describe(over)
    off = doctor.examine(image(config={**config, "CMDLINE_BOOL": "n"}), None, PITS, Launch())
    assert not found_of(off, "msi-off-cmdline")
    uki = doctor.examine(image(cmdline="root=/dev/vda1 acpi=off"), None, PITS, Launch())
    assert [each.why for each in found_of(uki, "acpi-off-cmdline")] == ["acpi=off is in the UKI's section .cmdline"]
    note = "note: the UKI's command line, which QEMU's -append replaces without Secure Boot: root=/dev/vda1 acpi=off"
    assert note in doctor.describe(uki)


BUILT_IN = {  # what is in the kernel, and the pit that it is for a launch of 4 CPUs, 8 with those plugged in, and 2 GiB
    "acpi=off": "acpi-off-cmdline", "acpi=off virtio_mmio.device=4K@0xd0000000:5": "acpi-off-cmdline",
    "acpi=noirq": "acpi-irq-off-cmdline", "noapic": "ioapic-off-cmdline", "nolapic": "lapic-off-cmdline",
    "nosmp": "smp-off-cmdline", "maxcpus=0": "smp-off-cmdline", "maxcpus=2": "maxcpus-cmdline", "maxcpus=4": "",
    "maxcpus=2 maxcpus=4": "", "nr_cpus=7": "cpu-limit-cmdline", "nr_cpus=8": "", "nr_cpus=0": "",
    "nr_cpus=7 nr_cpus=64": "cpu-limit-cmdline", "nr_cpus=all": "", "mem=2047M": "memory-capped-cmdline", "mem=2G": "",
    "mem=2097151k": "memory-capped-cmdline", "mem=64G mem=1g": "memory-capped-cmdline", "mem=nopentium": "",
    "pci=off": "pci-off-cmdline", "pci=conf1,off": "pci-off-cmdline",
    # Firecracker's own, which OVMF makes wrong
    "reboot=k panic=1 pci=off": "pci-off-cmdline",
    "pci=nomsi": "msi-off-cmdline", "pci=nommconf": "mmconfig-off-cmdline",
    # drivers/firmware/efi/efi.c: only the calls into the firmware are off, its tables are still found
    "noefi": "", "efi=noruntime": "", "console=ttyS0 quiet": "",
}  # fmt: skip


@pytest.mark.parametrize(("line", "pit"), BUILT_IN.items())
def test_each_option_in_a_built_in_command_line(line: str, pit: str) -> None:
    launch = {"cpus.requested": 4, "cpus.max_requested": 8, "memory.requested": 2 << 30}
    config = {**GOOD, "CMDLINE_BOOL": "y", "CMDLINE": f'"{line}"'}
    report = doctor.examine(image(config=config), None, PITS, doctor.PLAIN, launch)
    assert [each.pit for each in report.wrong] == [pit] * bool(pit)
    for each in report.wrong:
        assert each.sure == "certain" and "is in CONFIG_CMDLINE" in each.why


def test_one_cpu_is_enough_where_one_is_requested() -> None:
    config = {**GOOD, "CMDLINE_BOOL": "y", "CMDLINE": '"nosmp maxcpus=1 nr_cpus=1"'}
    launch = {"cpus.requested": 1, "cpus.max_requested": 1}
    assert not doctor.examine(image(config=config), None, PITS, doctor.PLAIN, launch).wrong


def test_a_vmlinux_is_not_what_ovmf_starts() -> None:
    for entry, said in ((0x1000080, "an entry for PVH loaders at 0x1000080"), (None, "no entry for PVH loaders")):
        text = doctor.describe(doctor.examine(image(pvh_entry=entry), None, PITS, Launch()))
        assert "a vmlinux: OVMF does not start it" in text and "pass the bzImage of the same build" in text
        assert said in text
    assert "PVH" not in doctor.describe(
        doctor.examine(image(kind="bzImage", bzimage=BZIMAGE, pvh_entry=1), None, PITS, Launch())
    )
    assert "inside of a library" in doctor.describe(doctor.examine(image(wrapped_in="libkrunfw"), None, PITS, Launch()))
