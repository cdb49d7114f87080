# SPDX-License-Identifier: Apache-2.0
"""The graph from sources to a bundle, of a kernel in miniature: what is in out/, what the manifest says, what runs."""

import hashlib
import io
import random
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from minguest import VERSION
from minguest.bundle import cpio, initrd, kmodule, manifests
from minguest.kernel import binary, kbuild, source
from minguest.model import Choice, Devel, Launch
from minguest.paths import Layout
from minguest.publish import destination
from minguest.release import assemble
from minguest.tasks import build, project
from minguest.util import archive, files
from tests import ROOT, workshop
from tests.unit.bundle.test_firmware import VOLUME, package

TREE = ROOT / "tests/data/fakelinux"
LICENCE = "GPL-2.0-only WITH Linux-syscall-note"
NOTHING = "nothing to do: everything is up to date\n"
# Nobody answers there.
NOWHERE = "http://127.0.0.1:9"
PATCH = """\
--- a/net/packet/af_packet.c
+++ b/net/packet/af_packet.c
@@ -1,3 +1,3 @@
 // SPDX-License-Identifier: Apache-2.0
 int packet_init(void);
-int packet_init(void) { return 17; }
+int packet_init(void) { return 18; }
"""
PATCHES = """\
[[patch]]
file = "6.12/0001-eighteen.patch"
series = "6.12"
versions = ">=6.12, <6.13"
reason = "It is one more."

[[patch]]
file = "6.12/0002-not-for-this-one.patch"
series = "6.12"
versions = ">=6.13"
reason = "It is another one."
"""
PIT = """\
title = "no sockets"
layer = "config"
cause = "It was built without."
fix = "CONFIG_PACKET=y"

[[require]]
option = "PACKET"
fragment = "toy"
without = "no sockets"

[[inject]]
options = { PACKET = false }
"""
OVERLAY = """\
[[file]]
path = "/srv/group"
mode = "0600"
owner = "0:7"

[[package]]
source = "tool"
file = [{ name = "/usr/bin/tool", path = "/bin/tool", mode = "0755" }]
"""


class Toy:
    """A checkout of this project, except that its kernel is the toy tree and its firmware one that a test made.

    Both are in its cache, as if downloaded. `of`: one whose cache and store it shares.
    """

    def __init__(self, folder: Path, of: "Toy | None" = None) -> None:
        self.root, self.folder = folder / "checkout", folder
        self.cache: Path = of.cache if of else folder / "cache"
        self.store: Path = of.store if of else folder / "store"
        self.root.mkdir(parents=True)
        for name in ("dodo.py", "pyproject.toml"):
            shutil.copyfile(ROOT / name, self.root / name)
        for name in ("initd", "overlays", "configs/templates", "configs/cards"):
            shutil.copytree(ROOT / name, self.root / name)
        self.write("configs/kernel/10-toy.config", "# Packets.\n\n# Sockets.\nCONFIG_PACKET=y\n")
        self.write("configs/kernel/20-old.4.12.config", "# Old.\n\n# An option of another series.\nCONFIG_OLD=y\n")
        self.write("configs/kernel/patches/series.toml", PATCHES)
        self.write("configs/kernel/patches/6.12/0001-eighteen.patch", PATCH)
        self.write("configs/pits/packet-off.toml", PIT)
        self.write("mine/etc/own", "mine")
        self.write("mine/srv/group", "root:x:0:\nmine:x:1:\n")
        # Of a size that a rounded one shows.
        (self.root / "mine/noise").write_bytes(random.Random(1).randbytes(1_200_000))
        (self.root / "mine/link").symlink_to("etc/own")
        self.write("mine/overlay.toml", OVERLAY)
        self.tarball, self.deb = self.download(tarball()), self.download(firmware(folder / "ovmf.deb"))
        self.tool = self.download(package(folder / "tool.deb", {"./usr/bin/tool": b"tool"}).read_bytes())
        self.write("configs/sources.toml", "".join([
            self.source('kernel."4.12"', "4.12.14", LICENCE, "0" * 64),
            self.source('kernel."6.12"', "6.12.1", LICENCE, self.tarball),
            *(self.source(f"firmware.{name}", "2025.02-toy", "MIT", self.deb) for name in ("ovmf", "ovmf-minimal")),
            self.source("package.tool", "1:2-3", "GPL-2.0-only", self.tool),
            f'[[package.tool.source]]\nsha256 = "{"5" * 64}"\nurls = ["{NOWHERE}/tool.tar"]\n',
        ]))  # fmt: skip
        self.guest("configs/guest.toml")
        self.guest("configs/guests/host.toml", 'name = "host"\nkernel = ["6.12", "4.12"]\noverlays = ["base"]\n')

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def source(self, table: str, version: str, licence: str, digest: str) -> str:
        """A row of sources.toml."""
        return (
            f'[{table}]\nversion = "{version}"\nlicence = "{licence}"\nsha256 = "{digest}"\n'
            f'urls = ["{NOWHERE}/{version}"]\n'
        )

    def download(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.cache / "sha256").mkdir(parents=True, exist_ok=True)
        (self.cache / "sha256" / digest).write_bytes(content)
        return digest

    def guest(
        self,
        name: str,
        head: str = 'name = "toy"\nkernel = ["4.12", "6.12"]\noverlays = ["base", "mine"]\n',
        launch: str = "",
    ) -> Path:
        """A guest that the fake QEMU of the tests is."""
        return self.write(name, f'{head}\n[launch]\ncpus = 1\nmax_cpus = 1\naccel = "tcg"\n{launch}')

    def run(self, *arguments: str, status: int = 0, env: Mapping[str, str] | None = None) -> str:
        """doit in it, and what it says."""
        own = {"MINGUEST_CACHE": str(self.cache), "MINGUEST_STORE": str(self.store), "no_proxy": "*"}
        done = subprocess.run(
            [sys.executable, "-m", "doit", *arguments],
            cwd=self.root,
            env=workshop.doit_env(**own, **(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def at(self, guest: str = "toy", series: str = "6.12") -> Layout:
        return Layout(self.root, guest, series)

    def project(self, guest: str = "configs/guest.toml", *, chooses: bool = True, **variables: str) -> project.Project:
        """The project that dodo.py reads from a command line, in this process; see `here`."""
        given = {**dict.fromkeys(project.VARIABLES), **variables}
        return project.Project(self.root, self.root / guest, given, chooses=chooses)

    def here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its cache and store are this process's."""
        monkeypatch.setenv("MINGUEST_CACHE", str(self.cache))
        monkeypatch.setenv("MINGUEST_STORE", str(self.store))
        monkeypatch.setenv("no_proxy", "*")


def tarball() -> bytes:
    """The toy tree as kernel.org packs one; the same every time."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        return member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(TREE, "linux-6.12.1", filter=plain)
    return buffer.getvalue()


def firmware(path: Path) -> bytes:
    names = {f"./usr/share/OVMF/OVMF_{half}_4M.fd": VOLUME + half.encode() for half in ("CODE", "VARS")}
    return package(path, names).read_bytes()


def steps(said: str) -> list[str]:
    """The steps that ran."""
    return re.findall(r"^── (\S+)", said, re.MULTILINE)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, str]:
    """A checkout in which `doit build` ran, and its output."""
    toy = Toy(tmp_path_factory.mktemp("toy"))
    return toy, toy.run("build")


@pytest.fixture
def toy(made: tuple[Toy, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """One that a test may change; its cache and store are this process's."""
    another = Toy(tmp_path / "toy", made[0])
    another.here(monkeypatch)
    return another


def plain(value: Any) -> Any:
    """As JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(value))


def refused(said: str) -> str:
    """The one error that a run ended with: its step's name and its first line. No traceback."""
    assert "Traceback" not in said, said
    (line,) = re.findall(r"^FAILED (.*)", said, re.MULTILINE)
    return str(line)


# ── the bundle ──


def test_all_steps_run_in_the_order_of_the_data(made: tuple[Toy, str]) -> None:
    toy, said = made
    ran = steps(said)
    assert sorted(ran) == sorted(
        ["tree:toy-6.12", "config:toy-6.12", "kernel:toy-6.12", "initd", "initrd:toy-6.12", "firmware",
         "bundle:toy-6.12"]
    )  # fmt: skip
    for first, then in (("tree", "config"), ("config", "kernel"), ("initd", "initrd"), ("firmware", "bundle")):
        places = [next(at for at, name in enumerate(ran) if name.startswith(each)) for each in (first, then)]
        assert places == sorted(places)
    at = toy.at()
    sizes = {path: path.stat().st_size for path in (at.initd, at.initrd, at.kernel / "bzImage")}
    lines = said.splitlines()
    assert lines[0] == "linux 4.12.14: 1 mirrors, none answered; building 6.12.1 (in the cache)"
    assert "1 options requested, 0 problems" in lines
    assert f"bzImage {sizes[at.kernel / 'bzImage'] / 1e6:.2f} MB, EFI stub False" in lines
    assert f"initd {sizes[at.initd] / 1e3:.0f} KB" in lines
    assert f"initrd.img {sizes[at.initrd] / 1e3:.0f} KB" in lines
    assert lines[-1] == (
        f"out/toy-6.12/bundle: bzImage {sizes[at.kernel / 'bzImage'] / 1e6:.2f} MB, "
        f"initrd.img {sizes[at.initrd] / 1e6:.2f} MB, OVMF 2025.02-toy"
    )


def test_a_second_run_does_nothing(made: tuple[Toy, str]) -> None:
    toy, _ = made
    before = manifests.describe(toy.at().bundle / "manifest.json")
    said = toy.run("build")
    assert said.splitlines()[1:] == NOTHING.splitlines() and steps(said) == []
    assert manifests.describe(toy.at().bundle / "manifest.json") == before


def test_the_bundle_is_what_the_steps_made(made: tuple[Toy, str]) -> None:
    at = made[0].at()
    held = {path.name: path.read_bytes() for path in at.bundle.iterdir() if path.name != "manifest.json"}
    assert held.keys() == {*manifests.PARTS, "run-guest", "domain.xml"}
    assert held["bzImage"] == (at.kernel / "bzImage").read_bytes()
    assert held["System.map"] == (at.kernel / "System.map").read_bytes()
    assert held["initrd.img"] == at.initrd.read_bytes()
    assert held["kernel.config"] == (at.config / "kernel.config").read_bytes()
    assert (held["OVMF_CODE.fd"], held["OVMF_VARS.fd"]) == (VOLUME + b"CODE", VOLUME + b"VARS")
    assert b"CONFIG_PACKET=y" in held["kernel.config"] and b"packet_init" in held["System.map"]
    assert b"6.12.1" in held["run-guest"] and b"2025.02-toy" in held["run-guest"]
    assert (at.bundle / "run-guest").stat().st_mode & 0o111 and not (at.bundle / "domain.xml").stat().st_mode & 0o111
    (kept,) = (path for path in made[0].store.joinpath("kernels").iterdir() if path.is_dir())
    assert all((kept / name).read_bytes() == (at.kernel / name).read_bytes() for name in build.KERNEL)


def test_the_initrd_has_initd_and_the_overlays(made: tuple[Toy, str]) -> None:
    toy, at = made[0], made[0].at()
    template = (toy.root / "configs/templates/initrd.list.j2").read_text()
    base = cpio.parse_list(template.replace("{{ initd | quote }}", str(at.initd)), "list")
    entries = {entry.name: entry for name in ("overlays/base", "mine") for entry in cpio.tree(toy.root / name)}
    entries |= {entry.name: entry for entry in base}
    entries.pop("overlay.toml")
    entries["srv/group"] = replace(entries["srv/group"], mode=0o100600, owner=(0, 7))
    entries["bin/tool"] = cpio.Entry("bin/tool", 0o100755, b"tool")
    expected = archive.gzip_bytes(cpio.archive(cpio.merge(entries.values())))
    assert at.initrd.read_bytes() == expected
    with archive.decompressed(at.initrd) as stream:
        content = stream.read()
    assert at.initd.read_bytes() in content and b"mine:x:1:" in content


def test_the_manifest_names_all_that_went_in(made: tuple[Toy, str]) -> None:
    toy, at = made[0], made[0].at()
    configs = toy.root / "configs"
    manifest = msgspec.json.decode((at.bundle / "manifest.json").read_bytes())
    said = {name: manifests.describe(at.bundle / name) for name in manifest["files"]}
    assert manifest.pop("files") == plain(said)
    inspected = msgspec.convert(manifest["kernel"].pop("inspected"), kbuild.Inspected)
    assert inspected.bzimage == binary.bzimage(at.bundle / "bzImage") and inspected.vmlinux.machine == "x64"
    assert manifest == {
        "schema": manifests.SCHEMA,
        "minguest": VERSION,
        "guest": {
            "name": "toy", "kernel": ["4.12", "6.12"], "fragments": ["*"], "options": {},
            "overlays": ["base", "mine"], "modules": [], "module_key": "", "firmware": "ovmf-minimal", "root": None,
            "drivers": None, "launch": plain(Launch(cpus=1, max_cpus=1, accel="tcg")),
        },
        "kernel": {
            "wanted": ["4.12", "6.12"], "series": "6.12", "version": "6.12.1",
            "reason": "linux 4.12.14: 1 mirrors, none answered; in the cache",
            "urls": [f"{NOWHERE}/6.12.1"], "licence": LICENCE, "origin": f"sha256:{toy.tarball}",
            "signature": "not verified: no signature is published beside it",
            "patches": [{
                "file": "6.12/0001-eighteen.patch", "reason": "It is one more.",
                "sha256": files.sha256(configs / "kernel/patches/6.12/0001-eighteen.patch"),
            }],
            "devel": None,
        },
        "config": {
            "fragments": {"10-toy.config": files.sha256(configs / "kernel/10-toy.config")},
            "requested": 1, "problems": [],
        },
        "initrd": {
            "initd": plain(manifests.describe(at.initd)),
            "template": files.sha256(configs / "templates/initrd.list.j2"),
            "overlays": {
                **{f"base/{name}": files.sha256(toy.root / "overlays/base" / name)
                   for name in ("etc/group", "etc/passwd")},
                **{f"mine/{name}": files.sha256(toy.root / "mine" / name)
                   for name in ("etc/own", "noise", "overlay.toml", "srv/group")},
            },
            "packages": {"tool": {
                "version": "1:2-3", "sha256": toy.tool, "urls": [f"{NOWHERE}/1:2-3"], "licence": "GPL-2.0-only",
                "source": [{"urls": [f"{NOWHERE}/tool.tar"], "sha256": "5" * 64}],
                "deb": "", "restricted": False,
            }},
            "modules": [],
        },
        "drivers": None,
        "firmware": {"version": "2025.02-toy", "sha256": toy.deb, "urls": [f"{NOWHERE}/2025.02-toy"],
                     "licence": "MIT", "built": None},
        "tools": {**source.compiler_tools(), "musl": initrd.musl_version()},
    }  # fmt: skip
    # The patch is in what was built.
    assert "return 18" in Path(msgspec.json.decode(at.tree.read_bytes())["path"], "net/packet/af_packet.c").read_text()


# ── what runs again ──


def test_what_changes_runs_again_and_nothing_else(toy: Toy) -> None:
    series = ["kernel=6.12"]
    assert len(steps(toy.run("build", *series))) == 7
    manifest = manifests.load(toy.at().bundle)
    assert manifest.kernel.wanted == ("6.12",) and manifest.kernel.reason == "kernel=6.12, in the cache"

    def again(*arguments: str) -> list[str]:
        ran = [name.partition(":")[0] for name in steps(toy.run("build", *arguments))]
        assert toy.run("build", *arguments).endswith(NOTHING)
        return ran

    # The choice is kept: kernel= is needed once.
    assert again() == []
    # The config is the same bytes, so nothing else is built.
    toy.write("configs/kernel/10-toy.config", "# Packets.\n\n# Sockets, for a reason.\nCONFIG_PACKET=y\n")
    assert again() == ["config"]
    toy.write("overlays/base/etc/added", "added")
    assert again() == ["initrd", "bundle"]
    (toy.root / "overlays/base/etc/added").chmod(0o755)
    assert again() == ["initrd", "bundle"]
    assert "base/etc/added" in manifests.load(toy.at().bundle).initrd.overlays
    # The initrd is the same bytes, but the manifest has the file's hash.
    toy.write("mine/overlay.toml", OVERLAY + "# changed\n")
    assert again() == ["initrd", "bundle"]
    assert manifests.load(toy.at().bundle).initrd.overlays["mine/overlay.toml"] == files.sha256(
        toy.root / "mine/overlay.toml"
    )
    sources = toy.root / "configs/sources.toml"
    sources.write_text(sources.read_text().replace('"GPL-2.0-only"', '"GPL-2.0-or-later"'))
    assert again() == ["initrd", "bundle"]
    assert manifests.load(toy.at().bundle).initrd.packages["tool"].licence == "GPL-2.0-or-later"
    toy.guest("configs/guest.toml", launch='cmdline = ["quiet"]\n')
    assert again() == ["config", "bundle"]
    assert manifests.load(toy.at().bundle).guest.launch.cmdline == ("quiet",)
    toy.write("configs/kernel/patches/6.12/0001-eighteen.patch", PATCH.replace("18", "19"))
    assert again() == ["tree", "config", "kernel", "bundle"]
    (toy.at().kernel / "bzImage").write_bytes(b"damaged")
    assert again() == ["kernel"]


def test_a_tree_of_the_users_own(toy: Toy) -> None:
    shutil.copytree(TREE, toy.folder / "tree")
    given = ["build", f"source={toy.folder / 'tree'}"]
    assert f"linux 6.12.1 (your own tree, {toy.folder / 'tree'})" in toy.run(*given)
    kernel = manifests.load(toy.at().bundle).kernel
    assert (kernel.wanted, kernel.reason) == (("6.12",), "your own tree")
    assert (kernel.urls, kernel.licence, kernel.signature) == ((), None, "not verified: your own tree")
    assert kernel.origin == f"own:{source.content(toy.folder / 'tree')}"
    assert [patch.file for patch in kernel.patches] == ["6.12/0001-eighteen.patch"]
    assert steps(toy.run(*given)) == []
    changed = toy.folder / "tree/init/main.c"
    changed.write_text(changed.read_text().replace("[0]", "[1]"))
    ran = [name.partition(":")[0] for name in steps(toy.run(*given))]
    assert ran == ["tree", "config", "kernel", "bundle"]
    assert manifests.load(toy.at().bundle).kernel.origin == f"own:{source.content(toy.folder / 'tree')}"


def test_a_config_that_breaks_the_contract_is_one_failed_line(toy: Toy) -> None:
    toy.write("configs/kernel/10-toy.config", "# Packets.\n\n# None.\n# CONFIG_PACKET is not set\n")
    said = toy.run("kernel", "kernel=6.12", status=1)
    assert refused(said) == (
        "config:toy-6.12: the config of linux 6.12 is not what was requested; nothing was compiled"
    )
    assert "pit packet-off" in said and steps(said)[-1] == "config:toy-6.12"
    assert not (toy.at().config / "kernel.config").exists()
    said = toy.run("build", "contract=ignore")
    assert "1 options requested, 1 problems" in said and "contract=ignore: the kernel's config breaks" in said
    (problem,) = manifests.load(toy.at().bundle).config.problems
    assert "CONFIG_PACKET" in problem
    # A run without it refuses the same config again.
    assert refused(toy.run("build", status=1)).startswith("config:toy-6.12: ")


def test_a_firmware_that_no_mirror_has_is_one_failed_line(toy: Toy) -> None:
    sources = toy.root / "configs/sources.toml"
    sources.write_text(sources.read_text().replace(toy.deb, "1" * 64))
    assert refused(toy.run("firmware", status=1)) == "firmware: OVMF 2025.02-toy: none of 1 mirrors gave it"


def test_an_overlay_that_is_wrong_is_named_before_anything_is_unpacked(toy: Toy) -> None:
    toy.write("mine/overlay.toml", OVERLAY.replace('"tool"', '"tol"'))
    said = toy.run("build", "kernel=6.12", status=3)
    assert "mine/overlay.toml: package[0].source = 'tol': configs/sources.toml has no [package.tol]" in said
    assert "known: tool" in said and not steps(said) and "Traceback" not in said


def test_overlays_that_differ_are_one_failed_line(toy: Toy) -> None:
    toy.write("mine/etc/group", "root:x:0:\nmine:x:1:\n")
    said = refused(toy.run("initrd", "kernel=6.12", status=1))
    assert said.startswith("initrd:toy-6.12: /etc/group: ") and "overlays/base and " in said and "mine differ" in said
    assert not toy.at().initrd.exists()


# ── the rehearsal's host ──


def test_a_kernel_with_modules_ships_with_what_they_are_built_against(toy: Toy) -> None:
    with_modules = 'name = "with"\nkernel = ["6.12"]\noverlays = ["base"]\n\n[options]\nMODULES = {}\n'
    guest = toy.guest("configs/guests/with.toml", with_modules.format("true"))
    at, name = toy.at("with"), "kernel-devel.tar.zst"
    toy.run("build", "guest=with")
    manifest = manifests.load(at.bundle)
    facts = msgspec.json.decode((at.kernel / "kernel-devel.json").read_bytes(), type=Devel)
    assert manifest.kernel.devel == facts and facts.config == manifest.files["kernel.config"].sha256
    assert manifest.files[name] == manifests.describe(at.kernel / name)
    # One that is damaged or gone is made again, from the store.
    for damage in (lambda path: path.write_bytes(b"damaged"), Path.unlink):
        for path in (at.bundle / name, at.kernel / name):
            damage(path)
            toy.run("build", "guest=with")
            assert manifests.load(at.bundle) == manifest
    guest.write_text(guest.read_text().replace("MODULES = true", "MODULES = false"))
    toy.run("build", "guest=with")
    manifest = manifests.load(at.bundle)
    assert manifest.kernel.devel is None and name not in manifest.files
    assert not (at.bundle / name).exists() and not (at.kernel / name).exists()


def built_modules(toy: Toy, name: str, kernel: Devel) -> Path:
    """What `doit modules` leaves, of a module that is none; its file."""
    content = f"the module {name}".encode()
    folder = toy.at("with").modules / name / "lib/modules" / kernel.release / "extra" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ko").write_bytes(content)
    made = kmodule.Module(
        name, f"{name}.ko", "1.0", "GPL", hashlib.sha256(content).hexdigest(), len(content), kernel.vermagic,
        (), (), (f"pci:{name}*",), (), (), False,
    )  # fmt: skip
    (folder / "modules.json").write_bytes(msgspec.json.encode(kmodule.Set(1, name, "0" * 64, kernel, (made,))))
    return folder / f"{name}.ko"


def test_modules_of_this_kernel_are_in_the_initrd(toy: Toy) -> None:
    text = (
        'name = "with"\nkernel = ["6.12"]\noverlays = ["base"]\nmodules = ["one", "two"]\n\n[options]\nMODULES = true\n'
    )
    toy.guest("configs/guests/with.toml", text)
    assert refused(toy.run("build", "guest=with", status=1)) == (
        "initrd:with-6.12: modules 'one': not built for this guest and series"
    )
    at = toy.at("with")
    kernel = msgspec.json.decode((at.kernel / "kernel-devel.json").read_bytes(), type=Devel)
    built = [built_modules(toy, name, kernel) for name in ("one", "two")]
    toy.run("build", "guest=with")
    with archive.decompressed(at.initrd) as stream:
        held = {member.name: member.data for member in cpio.parse(stream.read())[0]}
    lists = "lib/modules/6.12.1"
    assert held[f"{lists}/modules.dep"] == b"extra/one/one.ko:\nextra/two/two.ko:\n"
    assert held[f"{lists}/modules.alias"].endswith(b"alias pci:one* one\nalias pci:two* two\n")
    assert [held[f"{lists}/extra/{each.stem}/{each.name}"] for each in built] == [each.read_bytes() for each in built]
    listed = manifests.load(at.bundle).initrd.modules
    assert [(each.name, each.kernel) for each in listed] == [("one", kernel), ("two", kernel)]
    assert steps(toy.run("build", "guest=with")) == []
    # Damaged, and of another kernel.
    built[1].write_bytes(b"another")
    assert "two.ko: is not the module that was built" in refused(toy.run("build", "guest=with", status=1))
    built_modules(toy, "two", msgspec.structs.replace(kernel, config="0" * 64))
    said = refused(toy.run("build", "guest=with", status=1))
    assert "modules 'two' were built for another kernel: a config with SHA-256 00000" in said


def test_the_kernels_own_modules_are_in_the_initrd(toy: Toy) -> None:
    text = 'name = "own"\nkernel = ["6.12"]\noverlays = ["base"]\nmodules = ["in-tree"]\n\n[options]\nMODULES = true\n'
    guest = toy.guest("configs/guests/own.toml", text)
    assert "'in-tree': this kernel builds no module" in refused(toy.run("build", "guest=own", status=1))
    guest.write_text(text + 'TOY = "m"\n')
    assert re.search(r"── in-tree:own-6.12\ntoy\.ko, \d KB\n", toy.run("build", "guest=own"))
    at = toy.at("own")
    with archive.decompressed(at.initrd) as stream:
        held = {member.name: member.data for member in cpio.parse(stream.read())[0]}
    assert held["lib/modules/6.12.1/modules.dep"] == b"extra/in-tree/toy.ko:\n"
    (listed,) = manifests.load(at.bundle).initrd.modules
    assert [each.name for each in listed.modules] == ["toy"]
    assert "initrd" not in str(steps(toy.run("build", "guest=own")))
    # One that is damaged is laid out again.
    place = at.modules / "in-tree/lib/modules/6.12.1/extra/in-tree/toy.ko"
    place.write_bytes(b"damaged")
    toy.run("build", "guest=own")
    assert place.read_bytes() == held["lib/modules/6.12.1/extra/in-tree/toy.ko"]


def test_the_host_is_made_like_any_guest(toy: Toy) -> None:
    said = toy.run("host")
    ran = steps(said)
    assert {"host:tree", "host:config", "host:kernel", "host:initrd", "host:bundle"} <= set(ran)
    assert ran[-1] == "host:bundle" and not list(toy.root.glob("out/choice-*"))
    manifest = manifests.load(toy.at("host").bundle)
    assert (manifest.guest.name, manifest.kernel.version, manifest.kernel.reason) == ("host", "6.12.1", "pinned")


def test_the_host_that_is_this_guest_is_made_once(toy: Toy) -> None:
    names = [each["name"] for each in build.host_steps(toy.project())]
    assert names == ["tree", "config", "kernel", "initrd", "bundle"]
    ran = steps(toy.run("host", "guest=host"))
    assert sorted(ran) == sorted(["firmware", "initd", *(f"{name}:host-6.12" for name in names)])
    manifest = manifests.load(toy.at("host").bundle)
    assert (manifest.guest.name, manifest.kernel.reason) == ("host", "in the cache")
    again = toy.run("host", "build", f"guest={toy.root}/configs/guests/../guests/host.toml")
    assert again == "linux 6.12.1 (in the cache)\n" + NOTHING
    # Of another series, it is not the host.
    assert toy.run("list", "--all", "guest=host", "kernel=4.12").count("\nhost:") == 5


# ── a step ──


@pytest.fixture
def spelled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """What a function of `build` gives to `step`."""

    def give(make: Callable[[project.Project], Any], of: project.Project) -> SimpleNamespace:
        found: list[SimpleNamespace] = []
        with monkeypatch.context() as patched:
            patched.setattr(build, "step", lambda action, **more: found.append(SimpleNamespace(run=action, **more)))
            make(of)
        return found[0]

    return give


def test_each_step_depends_on_the_facts_that_it_works_with(toy: Toy, spelled: Callable[..., SimpleNamespace]) -> None:
    """What doit cannot see in a file: it is in these that a change is seen."""
    it = toy.project("configs/guest.toml", kernel="6.12", contract="ignore")
    rules, launch = list(it.contract), it.guest.launch
    assert [rule.option for rule in rules] == ["PACKET"]
    facts = {name: spelled(getattr(build, f"{name}_step"), it).facts() for name in
             ("tree", "config", "kernel", "initd", "firmware", "bundle")}  # fmt: skip
    assert facts["tree"] == {
        "choice": ["6.12.1", None], "pinned": it.pinned, "tools": it.tools, "own": None, "store": toy.store,
    }  # fmt: skip
    assert facts["config"] == {
        "options": {}, "launch": launch, "contract": tuple(rules), "ignore": True, "tools": it.tools,
    }  # fmt: skip
    assert facts["kernel"] == {"tools": it.tools, "certificate": ""}
    assert facts["initd"] == {"tools": it.tools}
    assert facts["firmware"] == {"source": it.ovmf}
    overlays = {f"{name}/{file}": files.sha256(folder / name / file) for folder, name, listed in (
        (toy.root / "overlays", "base", ("etc/group", "etc/passwd")),
        (toy.root, "mine", ("etc/own", "noise", "overlay.toml", "srv/group")),
    ) for file in listed}  # fmt: skip
    assert facts["bundle"] == {
        "choice": it.choice, "guest": it.guest, "launch_files": it.launch_files, "overlays": overlays,
        "packages": [it.packages, it.driver_packages], "devel": None,
    }  # fmt: skip
    assert list(it.packages) == ["tool"]
    shutil.copytree(TREE, toy.folder / "tree")
    own = toy.project("configs/guest.toml", source=str(toy.folder / "tree"))
    found = spelled(build.tree_step, own).facts()
    assert found["own"] == source.fingerprint(toy.folder / "tree") and found["pinned"] is None
    assert found["choice"] == ["6.12.1", str(toy.folder / "tree")]


def test_the_order_in_which_a_folder_lists_its_files_changes_nothing(
    toy: Toy, spelled: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = toy.project("configs/guest.toml", kernel="6.12")

    def seen() -> list[Any]:
        made = [spelled(make, it) for make in (build.tree_step, build.initd_step, build.initrd_step)]
        return [*([each.file_dep, each.targets] for each in made), made[2].facts()]

    usual = seen()
    glob, rglob = Path.glob, Path.rglob

    def backwards(real: Callable[[Path, str], Iterable[Path]]) -> Callable[[Path, str], Iterator[Path]]:
        return lambda self, pattern: reversed(list(real(self, pattern)))

    monkeypatch.setattr(Path, "glob", backwards(glob))
    monkeypatch.setattr(Path, "rglob", backwards(rglob))
    assert seen() == usual


def test_a_size_is_in_megabytes(
    toy: Toy,
    spelled: Callable[..., SimpleNamespace],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    toy.run("config", "kernel=6.12")
    it = toy.project("configs/guest.toml")
    kept, inspected = kbuild.build(
        it.prepared(),
        (it.at.config / "kernel.config").read_text(),
        it.store,
        log=toy.folder / "log",
        say=lambda _: None,
    )
    large = msgspec.structs.replace(inspected.bzimage, size=10_000_000_000, efi_stub=True)
    found = kept, msgspec.structs.replace(inspected, bzimage=large)
    monkeypatch.setattr(kbuild, "build", lambda *_, **__: found)
    spelled(build.kernel_step, it).run()
    assert capsys.readouterr().out.endswith("bzImage 10000.00 MB, EFI stub True\n")


# ── out ──


def release(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, spelled: Callable[..., SimpleNamespace], **variables: str
) -> tuple[Any, ...]:
    """What assemble.make gets of a command line."""
    got: list[tuple[Any, ...]] = []
    item = SimpleNamespace(size=5_000_000_000)

    def make(
        at: Layout, version: str | None, key: Path | None, since: Path | None, *, unsigned: bool,
        redistribute: list[str], say: Any,
    ) -> Any:  # fmt: skip
        got.append((at, version, key, since, unsigned, redistribute))
        return SimpleNamespace(items=[item, item], facts=SimpleNamespace(name="toy", version=version))

    monkeypatch.setattr(assemble, "make", make)
    spelled(build.release_step, toy.project(chooses=False, **variables)).run()
    return got[0]


def test_release_passes_what_the_user_says(
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    spelled: Callable[..., SimpleNamespace],
    capsys: pytest.CaptureFixture[str],
) -> None:
    at = toy.at("toy", "6.12")
    monkeypatch.delenv("MINGUEST_SIGNING_KEY", raising=False)
    said = {"kernel": "6.12", "version": "1.2"}
    assert release(toy, monkeypatch, spelled, **said) == (at, "1.2", None, None, False, [])
    assert capsys.readouterr().out == "out/toy-6.12/release: toy 1.2, 10000.00 MB\n"
    more = release(toy, monkeypatch, spelled, **said, key="/key", since="/before", unsigned="yes", redistribute="a,b")
    assert more == (at, "1.2", Path("/key"), Path("/before"), True, ["a", "b"])
    monkeypatch.setenv("MINGUEST_SIGNING_KEY", "/own-key")
    assert release(toy, monkeypatch, spelled, **said)[2] == Path("/own-key")
    assert release(toy, monkeypatch, spelled, **said, key="/key")[2] == Path("/key")


def test_publish_says_where_it_went(
    toy: Toy,
    monkeypatch: pytest.MonkeyPatch,
    spelled: Callable[..., SimpleNamespace],
    capsys: pytest.CaptureFixture[str],
) -> None:
    got: list[tuple[Path, str]] = []

    def publish(folder: Path, to: str, _: Any) -> str:
        got.append((folder, to))
        return "where"

    monkeypatch.setattr(destination, "publish", publish)
    monkeypatch.setattr(destination, "shown", lambda published: f"it is {published}")
    spelled(build.publish_step, toy.project(chooses=False, kernel="6.12", to="s3://a/b")).run()
    assert got == [(toy.at().release, "s3://a/b")]
    assert capsys.readouterr().out == "it is where\n"


def test_a_release_that_cannot_be_is_one_failed_line(made: tuple[Toy, str]) -> None:
    toy, _ = made
    said = toy.run("release", "version=1.0", "unsigned=yes", status=1)
    assert refused(said).startswith("release: ") and "boot-test-q35-1" in said
    assert not toy.at().release.exists()
    assert refused(toy.run("publish", "to=somewhere", status=1)).startswith("publish: ")


def test_the_choice_is_of_one_guest_alone(made: tuple[Toy, str]) -> None:
    toy, _ = made
    kept = msgspec.json.decode(toy.at().choice.read_bytes(), type=Choice)
    assert kept == Choice(("4.12", "6.12"), "6.12", "6.12.1", "linux 4.12.14: 1 mirrors, none answered; in the cache")
    assert [path.name for path in toy.at().out.glob("choice-*")] == ["choice-toy.json"]
