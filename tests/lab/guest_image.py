"""
The guest's kernel and initramfs: Debian's cloud kernel, busybox and qemu-guest-agent, nothing else.

It lives in memory and mounts the VM's disks, so it boots in seconds without KVM and every byte of the disks is the
test's own.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
import tempfile
from pathlib import Path

from tests.lab import cache, debian, processes
from tests.lab.errors import LabError

# Copied to the guest's root as they are: init, and what it runs.
ROOTFS = Path(__file__).parent / "rootfs"

_UNPACKERS = {b"\x02\x21\x4c\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"\x1f\x8b": "gzip"}

# Those that Debian does not build into its kernel.
MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "button", "evdev")


@dataclasses.dataclass(frozen=True)
class GuestImage:
    """
    What boots. All are readable by everybody.

    kernel: for boot loaders.  unpacked: the same for QEMU, which saves an emulated CPU the unpacking.
    """

    kernel: Path
    unpacked: Path
    initramfs: Path

    @classmethod
    def build(cls) -> GuestImage:
        """Return the cached image; the first time this takes some ten seconds and the network."""
        files = sorted(path for path in ROOTFS.rglob("*") if path.is_file())
        inputs = [Path(__file__).read_bytes(), *(path.read_bytes() for path in files)]
        return cls._in(cache.entry("guest", inputs, _build))

    def copy_to(self, directory: Path) -> GuestImage:
        """Copy it to where QEMU's user may read."""
        copy = self._in(directory)
        shutil.copyfile(self.kernel, copy.kernel)
        shutil.copyfile(self.unpacked, copy.unpacked)
        shutil.copyfile(self.initramfs, copy.initramfs)
        return copy

    @classmethod
    def _in(cls, directory: Path) -> GuestImage:
        return cls(directory / "vmlinuz", directory / "vmlinux", directory / "initramfs")


def _build(directory: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="bf-guest-") as name:
        work = Path(name)
        kernel, agent, root = work / "kernel", work / "agent", work / "root"
        debian.unpack(debian.cloud_kernel(), kernel)
        debian.unpack("qemu-guest-agent", agent)
        shutil.copytree(ROOTFS, root)
        _add_busybox(root)
        _add_agent(root, agent / "usr/sbin/qemu-ga")
        _add_modules(root, kernel)
        (vmlinuz,) = kernel.glob("boot/vmlinuz-*")
        shutil.copyfile(vmlinuz, directory / "vmlinuz")
        _unpack(vmlinuz, directory / "vmlinux")
        _pack(root, directory / "initramfs")


def _unpack(vmlinuz: Path, vmlinux: Path) -> None:
    """See Documentation/arch/x86/boot.rst of Linux: where a bzImage has what it unpacks."""
    image = vmlinuz.read_bytes()
    (sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    unpack = next((program for magic, program in _UNPACKERS.items() if payload.startswith(magic)), None)
    if unpack is None:
        raise LabError(f"{vmlinuz.name} is packed by a program that the lab does not know.")
    if unpack != "gzip":
        # Its unpacked length follows: scripts/Makefile.lib, size_append.
        payload = payload[:-4]
    with vmlinux.open("wb") as unpacked:
        processes.run(unpack, "-dc", input=payload, stdout=unpacked)
    vmlinux.chmod(0o644)


def _add_busybox(root: Path) -> None:
    (root / "bin").mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin/busybox")
    for applet in processes.run("busybox", "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")


def _add_agent(root: Path, agent: Path) -> None:
    """qemu-ga and the libraries that it needs, which QEMU's own packages have brought to this machine."""
    shutil.copy(agent, root / "bin/qemu-ga")
    for library in re.findall(r"(/\S+) \(0x", processes.run("ldd", agent)):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _add_modules(root: Path, kernel: Path) -> None:
    """The modules and what they depend on, and a list in the order in which to insert them."""
    (tree,) = kernel.glob("lib/modules/*")
    processes.run("depmod", "--basedir", kernel, tree.name)
    directory = root / "lib/modules"
    directory.mkdir(parents=True)
    names: list[str] = []
    for module in MODULES:
        command = ("modprobe", "--dirname", kernel, "--set-version", tree.name)
        for line in processes.run(*command, "--show-depends", module).splitlines():
            # "insmod PATH", or "builtin NAME" for what the kernel has anyway.
            verb, path = line.split()[:2]
            if verb == "insmod" and Path(path).name not in names:
                shutil.copy(path, directory)
                names.append(Path(path).name)
    (root / "etc/modules").write_text("\n".join(names) + "\n")


def _pack(root: Path, initramfs: Path) -> None:
    """Not compressed: an emulated CPU would spend longer unpacking it than QEMU spends loading it."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    listing = "\n".join(names).encode()
    with initramfs.open("wb") as archive:
        processes.run(
            *("cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"),
            input=listing,
            cwd=root,
            stdout=archive,
        )
    initramfs.chmod(0o644)
