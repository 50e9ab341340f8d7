"""
A disk that boots the lab's guest by itself, by BIOS and by UEFI: FAT with syslinux, systemd-boot, kernel and initramfs.

The lab's VMs are given their kernel by libvirt. A disk that shall come up elsewhere must bring its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.lab import cache, debian, processes
from tests.lab.guest_image import GuestImage

# Kernel and initramfs have 23 MiB; below 33 MiB mkfs.vfat makes no FAT32.
SIZE = 48 << 20

_OPTIONS = "console=ttyS0 quiet lab.disks={}"
_SYSLINUX = "DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nINITRD initramfs\nAPPEND {}\n"
_SYSTEMD_BOOT = "title linux\nlinux /vmlinuz\ninitrd /initramfs\noptions {}\n"


def build(data: str) -> Path:
    """Return the cached raw image. data: the disk that its guest mounts, such as "vdb"."""
    guest = GuestImage.build()
    options = _OPTIONS.format(data)
    inputs = [Path(__file__).read_bytes(), str(guest.kernel).encode(), options.encode()]

    def fill(directory: Path) -> None:
        _fill(directory / "boot.raw", guest, options)

    return cache.entry("boot-disk", inputs, fill) / "boot.raw"


def _fill(image: Path, guest: GuestImage, options: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bf-boot-") as name:
        work = Path(name)
        debian.unpack("syslinux", work)
        debian.unpack("systemd-boot-efi", work)
        with image.open("wb") as file:
            file.truncate(SIZE)
        processes.run("mkfs.vfat", "-F", "32", "-h", "0", image)
        processes.run("mmd", "-i", image, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries")
        (work / "syslinux.cfg").write_text(_SYSLINUX.format(options))
        (work / "linux.conf").write_text(_SYSTEMD_BOOT.format(options))
        for source, target in (
            (guest.kernel, "vmlinuz"),
            (guest.initramfs, "initramfs"),
            (work / "syslinux.cfg", "syslinux.cfg"),
            (work / "linux.conf", "loader/entries/linux.conf"),
            (work / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"),
        ):
            processes.run("mcopy", "-i", image, source, f"::/{target}")
        processes.run(work / "usr/bin/syslinux", "--install", image)
