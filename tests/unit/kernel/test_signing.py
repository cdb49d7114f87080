# SPDX-License-Identifier: Apache-2.0
"""Keys of modules: what the kernel gets of one, and what is no key."""

import shlex
import subprocess
from pathlib import Path

import pytest

from minguest.kernel import kbuild, signing
from minguest.model import Launch
from minguest.paths import Store
from minguest.util import files
from minguest.util.errors import UserError
from tests.unit.kernel.test_kbuild import prepared, quiet

CONFIG = "CONFIG_PACKET=y\nCONFIG_MODULES=y\n"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command that errors recommend."""
    path = tmp_path_factory.mktemp("key") / "modules.pem"
    for command in signing.MAKE.format(path).split("; "):
        subprocess.run(shlex.split(command), check=True, capture_output=True)
    return path


def test_the_kernel_gets_the_certificate_alone(key: Path) -> None:
    found = signing.certificate(key, "it")
    assert found.startswith("-----BEGIN CERTIFICATE-----\n") and found.endswith("-----END CERTIFICATE-----\n")
    assert found.count("-----BEGIN") == 1 and found in key.read_text()
    said = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=found.encode(), capture_output=True, check=True
    )
    assert b"modules" in said.stdout


def test_what_is_no_key_is_an_error(key: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pem"

    def refused() -> str:
        with pytest.raises(UserError, match=r"^it: ") as raised:
            signing.certificate(path, "it")
        return str(raised.value)

    assert "cannot be read" in refused() and f"-keyout {path}" in refused()
    path.write_text(signing.certificate(key, "it"))
    assert "has not both a private key and its certificate" in refused()
    path.write_text(key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    assert "has a passphrase" in refused()
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refused()
    path.write_text(key.read_text())
    path.chmod(0o640)
    assert "others can read the private key" in refused()


def test_another_certificate_is_another_kernel(tmp_path: Path) -> None:
    """The build finds it in its folder, and it is nowhere else."""
    store = Store(tmp_path / "store")
    tree = prepared(tmp_path)
    makefile = Path(tree.path, "Makefile")
    makefile.write_text(
        makefile.read_text().replace(
            "	mkdir -p $(@D)\n	objcopy", f"	cat $(O)/{signing.CERTIFICATE}\n	mkdir -p $(@D)\n	objcopy"
        )
    )
    kept = []
    for certificate in ("one\n", "two\n"):
        folder, _ = kbuild.build(
            tree, CONFIG, store, log=tmp_path / "log", say=quiet, with_devel=True, certificate=certificate
        )
        assert f"\n{certificate}" in (tmp_path / "log").read_text()
        kept += [folder, kbuild.devel_folder(tree, CONFIG, store, certificate)]
    assert len(set(kept)) == 4
    assert {path for path in store.kernels.iterdir() if path.is_dir()} == set(kept)


def test_signing_needs_a_key_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def configure(key_option: str) -> None:
        text = f'CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_KEY="{key_option}"\n'
        monkeypatch.setattr(kbuild, "resolve", lambda *_: text)
        kbuild.configure(
            prepared(tmp_path), "6.12", [], {}, (), Launch(), tmp_path / "config", root=tmp_path,
            guest_file="guest.toml", store=Store(tmp_path / "store"), ignore=False, log=tmp_path / "log", say=quiet,
        )  # fmt: skip

    with pytest.raises(UserError, match=r"CONFIG_MODULE_SIG is on, and guest\.toml has no module_key"):
        configure("certs/signing_key.pem")
    configure(signing.CERTIFICATE)
    assert files.sha256(tmp_path / "config/kernel.config")
