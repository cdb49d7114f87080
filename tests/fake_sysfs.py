# SPDX-License-Identifier: Apache-2.0
"""A made host: a folder with as much of /sys, /proc and /dev as hostfacts reads, that reacts to writes as Linux does.

What is simulated, after drivers/base/bus.c, drivers/pci/pci-sysfs.c and vfio of 4.12 and 6.12:

- devices/…/BDF with class, vendor, device, config (64 bytes), driver_override ("(null)" when there is none), driver
  and iommu_group links; behind a bridge where one is named; bus/pci/devices and iommu_groups as links to it;
- `driver_override`: a newline alone clears it; nothing is probed;
- `drivers/X/unbind`: ENODEV unless X has the device; the link goes away;
- `drivers/X/bind`: ENODEV unless X matches: by its override alone if there is one, else by the driver's own ids; EBUSY
  where it has a driver;
- `drivers_probe`: ENODEV without such a device; with a driver already, without one that matches, and when the driver's
  probe fails, it still returns success;
- vfio-pci matches nothing without the override, and refuses headers that are not of type 0.

What is not: blocking (the real `unbind` waits for who has the device open), events, udev, module loading, runtime power
management, and that a driver takes disks, networks and displays with it when it goes.
"""

import errno
import os
from pathlib import Path

from minguest.host import survey, vfio

VFIO = "vfio-pci"


class FakeHost:
    """Made in `root`; `write` is host.vfio's writer. Its files are all that it remembers of devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys = root / "sys"
        self.matches: dict[str, set[str]] = {}
        """What each driver takes of itself."""
        self.refuses: set[tuple[str, str]] = set()
        """Driver and device whose probe fails."""
        self.writes: list[str] = []
        self.fail_at: dict[int, BaseException] = {}
        """What is raised in place of which write, counted from 0."""
        for folder in ("sys/bus/pci/devices", "sys/bus/pci/drivers", "sys/kernel/iommu_groups", "sys/class", "dev"):
            (root / folder).mkdir(parents=True)
        self.file("sys/bus/pci/drivers_probe")
        self.file("proc/sys/kernel/random/boot_id", "5d2a\n")
        self.driver(VFIO)

    def file(self, name: str, text: str = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def link(self, name: str, target: Path) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))
        return path

    def driver(self, name: str) -> None:
        for each in ("bind", "unbind"):
            self.file(f"sys/bus/pci/drivers/{name}/{each}")

    def device(
        self,
        bdf: str,
        kind: int,
        group: str | None = "1",
        driver: str | None = None,
        *,
        behind: str = "",
        override: str | None = None,
        ids: str = "10de:2330",
        header: int | None = None,
    ) -> Path:
        """Add a function; its folder."""
        parent = self.place(behind) if behind else self.sys / "devices/pci0000:00"
        place = (parent / bdf).relative_to(self.root)
        vendor, device = ids.split(":")
        self.file(f"{place}/class", f"0x{kind:06x}\n")
        self.file(f"{place}/vendor", f"0x{vendor}\n")
        self.file(f"{place}/device", f"0x{device}\n")
        self.file(f"{place}/driver_override", f"{override or '(null)'}\n")
        config = bytearray(64)
        config[0x0E] = (1 if kind >> 8 == 0x0604 else 0) if header is None else header
        (self.root / place / "config").write_bytes(config)
        self.link(f"sys/bus/pci/devices/{bdf}", self.root / place)
        if group is not None:
            folder = self.sys / "kernel/iommu_groups" / group
            (folder / "devices").mkdir(parents=True, exist_ok=True)
            self.link(f"{place}/iommu_group", folder)
            self.link(f"sys/kernel/iommu_groups/{group}/devices/{bdf}", self.root / place)
        if driver:
            if not (self.sys / "bus/pci/drivers" / driver).exists():
                self.driver(driver)
            self.matches.setdefault(driver, set()).add(bdf)
            self._attach(bdf, driver)
        return self.root / place

    def place(self, bdf: str) -> Path:
        return (self.sys / "bus/pci/devices" / bdf).resolve()

    def state(self) -> dict[str, tuple[str | None, str | None]]:
        """Driver and override of every device, as hostfacts reads them."""
        found = survey.read(self.root).devices
        return {name: (device.driver, device.override) for name, device in found.items()}

    def host(self, state: Path, user: int = 0) -> vfio.Host:
        return vfio.Host(self.root, state, writer=self.write, busy=lambda _: False, user=user)

    def write(self, path: Path, value: str) -> None:
        number = len(self.writes)
        self.writes.append(f"{value.strip()} > /{path.relative_to(self.root)}")
        if number in self.fail_at:
            raise self.fail_at[number]
        if path.name == "driver_override":
            path.write_text(f"{value.strip() or '(null)'}\n")
            return
        bdf = value.strip()
        if not (self.sys / "bus/pci/devices" / bdf).exists():
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        has = self._driver(bdf)
        if path.name == "unbind":
            if has != path.parent.name:
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            (self.place(bdf) / "driver").unlink()
        elif path.name == "bind":
            if not self._match(path.parent.name, bdf):
                raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
            if has:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            if not self._probe(path.parent.name, bdf):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        else:
            assert path.name == "drivers_probe", path
            if has is None:
                names = sorted(each.name for each in (self.sys / "bus/pci/drivers").iterdir())
                any(self._match(name, bdf) and self._probe(name, bdf) for name in names)

    def _driver(self, bdf: str) -> str | None:
        link = self.place(bdf) / "driver"
        return link.readlink().name if link.is_symlink() else None

    def _match(self, driver: str, bdf: str) -> bool:
        override = (self.place(bdf) / "driver_override").read_text().strip()
        return override == driver if override != "(null)" else bdf in self.matches.get(driver, ())

    def _probe(self, driver: str, bdf: str) -> bool:
        header = (self.place(bdf) / "config").read_bytes()[0x0E] & 0x7F
        if (driver, bdf) in self.refuses or (driver == VFIO and header != 0):
            return False
        self._attach(bdf, driver)
        return True

    def _attach(self, bdf: str, driver: str) -> None:
        (self.place(bdf) / "driver").symlink_to(os.path.relpath(self.sys / "bus/pci/drivers" / driver, self.place(bdf)))
