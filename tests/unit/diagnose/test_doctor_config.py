# SPDX-License-Identifier: Apache-2.0
"""Which config `minguest doctor` examines an image with."""

import gzip
from pathlib import Path

import pytest

from minguest import cli
from tests.unit.kernel.test_image import AT, CONFIG, kernel, linked

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
