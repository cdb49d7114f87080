# SPDX-License-Identifier: Apache-2.0
"""Which config `minguest doctor` examines an image with."""

import gzip
import os
from pathlib import Path

import pytest

from minguest import cli, paths
from tests.unit.diagnose.test_doctor import GOOD
from tests.unit.kernel.test_image import AT, CONFIG, HIDDEN, kernel, linked

PITS = paths.known_pits()
BANNER = "Linux version 6.12.94 (me@host) (gcc (GCC) 12.2.0, GNU ld 2.40) #1 SMP x"
OWN = "# Linux/x86 6.12.94 Kernel Configuration\nCONFIG_SMP=y\nCONFIG_EFI_STUB=y\n" + CONFIG.replace(
    "# CONFIG_SMP is not set\n", ""
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz-6.12.94"
    path.write_bytes(kernel(gzip.compress(linked(tmp_path, AT, "-s", banner=BANNER))))
    return path


def doctor(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str]:
    status = cli.main(["doctor", *map(str, argv)])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_the_config_beside_an_image_is_taken(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "pass the config: --config FILE" in doctor(capsys, image)[1]
    beside = image.with_name("config-6.12.94")
    beside.write_text(OWN)
    text = doctor(capsys, image)[1]
    assert f"note: with the config beside it, {beside}" in text
    assert "CONFIG_PCI is n" in text and "--config FILE" not in text
    beside.write_text(OWN.replace("6.12.94", "6.1.94"))
    text = doctor(capsys, image)[1]
    assert f"{beside} beside it is not used: the image is linux 6.12.94, the config is of linux 6.1.94" in text
    assert "--config FILE" in text
    beside.write_bytes(b"\0")
    assert "the config beside it is not used: " in doctor(capsys, image)[1]


def test_an_image_with_its_own_config_needs_none_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vmlinuz-6.12.94"
    path.write_bytes(kernel(gzip.compress(linked(tmp_path, AT, "-s", banner=BANNER, config=OWN.encode()))))
    path.with_name("config-6.12.94").write_text(OWN + "CONFIG_PCI=y\n")
    text = doctor(capsys, path)[1]
    assert "CONFIG_PCI is n" in text and "beside it" not in text


def test_a_config_of_another_kernel_is_refused(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given"
    given.write_text(OWN)
    assert "CONFIG_PCI is n" in doctor(capsys, image, "--config", given)[1]
    given.write_text(OWN.replace("6.12.94", "6.1.94"))
    status, text = doctor(capsys, image, "--config", given)
    assert status == 1
    assert f"--config {given}: of another kernel than {image}: the image is linux 6.12.94, the config is of" in text


def test_a_config_that_holds_none_is_an_error(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = doctor(capsys, image, "--config", image)
    assert status == 1
    assert f"--config {image}: a bzImage that carries no config\n  remedy: pass the .config itself" in text


def test_a_fragment_is_refused(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "gpu.config"
    given.write_text("CONFIG_X86_64=y\nCONFIG_DRM=y\n# CONFIG_EFI is not set\n")
    status, text = doctor(capsys, given)
    assert status == 3
    assert f"{given}: a fragment or defconfig, not a whole .config: 3 options" in text and "CONFIG_EFI" not in text
    status, text = doctor(capsys, image, "--config", given)
    assert status == 1 and f"{given}: a fragment" in text


def test_a_pipe_is_named_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    status, text = doctor(capsys, tmp_path / "pipe")
    assert status == 3
    assert "pipe: a pipe: a kernel is not read from one\n  remedy: write it to a file, and name that" in text


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"CONFIG_EFI": "n"}, f"--fragment prints the options to set; cause and fix of each: {PITS}/efi-off.toml"),
        (
            {"CONFIG_EFI": "n", "CONFIG_SMP": "n"},
            f"--fragment prints the options to set; cause and fix of each: {PITS}/{{efi-off,smp-off}}.toml",
        ),
        ({"CONFIG_FW_LOADER": "n"}, "--fragment prints the options to set"),
        (
            {"CONFIG_CMDLINE_BOOL": "y", "CONFIG_CMDLINE": '"pci=nomsi"'},
            f"cause and fix of each: {PITS}/msi-off-cmdline.toml",
        ),
    ],
)
def test_the_remedy_is_for_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], remedy: str
) -> None:
    config = {**{f"CONFIG_{name}": value for name, value in GOOD.items()}, "CONFIG_X86_64": "y"}
    config |= {"CONFIG_LOCALVERSION": '""', **changes}
    (tmp_path / ".config").write_text("".join(f"{name}={value}\n" for name, value in config.items()) + HIDDEN)
    status, text = doctor(capsys, tmp_path / ".config")
    assert (status, text.splitlines()[-1]) == (1, f"  remedy: {remedy}")
    status, text = doctor(capsys, tmp_path / ".config", "--fragment")
    assert status == 1 and "--fragment prints" not in text
