# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a host, each brought about in the rehearsal's emulated host: data for hostmatrix.

A fault is a few lines of sh that end with a QEMU. They run as root in the host, with these names:
`$card` and `$second`, the addresses of a card and its second function, in one IOMMU group; `$group`, its number;
`bind ADDRESS…` and `release ADDRESS…`, to vfio-pci and back to the host's driver; `vm ARGUMENT…`, a small guest that
stays stopped, in KVM, and `vm_here`, the same in this process; `firmware ARGUMENT…`, a guest that runs its firmware;
`qemu ARGUMENT…`; `as=nobody`, before one of them, starts QEMU without rights.
"""

from collections.abc import Mapping
from typing import Literal

import msgspec

Platform = Literal["healthy", "no-iommu", "no-remapping", "narrow-iommu", "framebuffer"]
"""Hosts: one boot each."""
INTEL = "intel-iommu,intremap=on,caching-mode=on,aw-bits=48"
IOMMUS: Mapping[Platform, str] = {
    "healthy": INTEL,
    "no-iommu": "",
    "no-remapping": "intel-iommu,intremap=off,caching-mode=on,aw-bits=48",
    "narrow-iommu": "intel-iommu,intremap=on,caching-mode=on,aw-bits=39",
    "framebuffer": INTEL,
}
# The card of each host. OVMF draws on a bochs-display, so the kernel's console is there; it is no VGA device, and
# vfio-pci takes away the console of a VGA device only (vfio_pci_vga_init, drivers/vfio/pci/vfio_pci_core.c).
CARDS: Mapping[Platform, str] = {
    "healthy": "secondary-vga",
    "no-iommu": "secondary-vga",
    "no-remapping": "secondary-vga",
    "narrow-iommu": "bar:1G",
    "framebuffer": "bochs-display",
}


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a host."""

    script: str
    undo: str = ""
    platform: Platform = "healthy"
    since: tuple[int, int] = (0, 0)
    """The QEMU that has what is tried; an older one does not know it."""


_CARD = '-device vfio-pci,host="$card"'
FAULTS: Mapping[str, Fault] = {
    "group-half-bound": Fault(f'bind "$card"; release "$second"; vm {_CARD}'),
    "not-bound": Fault(f'release "$card" "$second"; vm {_CARD}'),
    "vfio-denied": Fault(
        f'bind "$card" "$second"; chmod 666 /dev/kvm; chmod 600 "/dev/vfio/$group"; as=nobody; vm {_CARD}',
        "chmod 600 /dev/kvm",
    ),
    "group-busy": Fault(
        f'bind "$card" "$second"; vm_here {_CARD} & other=$!; sleep 8; '
        f'vm {_CARD}; status=$?; kill "$other"; wait; exit "$status"'
    ),
    "kvm-denied": Fault("chmod 600 /dev/kvm; as=nobody; vm"),
    "kvm-missing": Fault(
        "rm /dev/kvm; vm", 'IFS=: read -r major minor </sys/class/misc/kvm/dev; mknod /dev/kvm c "$major" "$minor"'
    ),
    "memlock": Fault(
        'bind "$card" "$second"; chmod 666 /dev/kvm /dev/vfio/vfio "/dev/vfio/$group"; ulimit -l 64; as=nobody; '
        f"vm {_CARD}",
        'chmod 600 /dev/kvm "/dev/vfio/$group"',
    ),
    "no-hugepages": Fault(
        "vm -object memory-backend-memfd,id=ram,size=256M,hugetlb=on,prealloc=on -machine memory-backend=ram"
    ),
    "phys-bits": Fault("qemu -machine q35 -accel tcg -cpu qemu64,phys-bits=36 -m 256M,slots=1,maxmem=512G -S"),
    "no-firmware-file": Fault("vm -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.none.fd"),
    "no-such-machine-pci": Fault(f'bind "$card" "$second"; qemu -machine isapc -accel tcg -m 256M -S {_CARD}'),
    "image-lock": Fault(
        'truncate -s 1M "$HOME/disk"; '
        'disk="-drive if=none,id=disk,format=raw,file=$HOME/disk -device virtio-blk-pci,drive=disk"; '
        'vm_here $disk & other=$!; sleep 8; vm $disk; status=$?; kill "$other"; wait; exit "$status"'
    ),
    "iommufd-missing": Fault(
        'bind "$card" "$second"; vm -object iommufd,id=iommufd -device vfio-pci,host="$card",iommufd=iommufd',
        since=(9, 0),
    ),
    "no-iommu": Fault(f"vm {_CARD}", platform="no-iommu"),
    "no-remapping": Fault(f'bind "$card" "$second"; vm {_CARD}', platform="no-remapping"),
    "narrow-iommu": Fault(f'bind "$card" "$second"; firmware -cpu host,phys-bits=40 {_CARD}', platform="narrow-iommu"),
    "framebuffer": Fault(f'bind "$card" "$second"; firmware {_CARD}', platform="framebuffer"),
}
