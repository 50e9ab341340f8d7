"""
An isolated QEMU with the disks of a served point: a serial console, perhaps a guest agent, no network, nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from blockferry import errors
from blockferry.jobs.firmware import Chipset, Uefi
from blockferry_agent.units import MiB

_PROGRAMS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")
"""QEMU, as Debian and as Enterprise Linux call it."""
_DEVICES = {"virtio": "virtio-blk-pci", "virtio_scsi": "scsi-hd", "sata": "ide-hd", "ide": "ide-hd"}
"""What oVirt's interfaces are in QEMU."""
_OTHER_DEVICE = "virtio-blk-pci"
_AGENT = "org.qemu.guest_agent.0"
"""The agent's channel, as libvirt and oVirt call it."""

KVM_FAILED = "KVM internal error"
"""What QEMU may say where KVM is there and cannot run a guest, as in some VMs; it stands still then."""


class Disk(NamedTuple):
    """
    A disk by its NBD export.

    server: unix socket.  interface: as the engine calls it.  boots: it is tried first.
    """

    server: Path
    export: str
    interface: str
    boots: bool


class Hardware(NamedTuple):
    """
    memory: bytes.  disks: in their order.  uefi: None for BIOS.  kvm: use it where it is there.
    """

    chipset: Chipset
    memory: int
    disks: Sequence[Disk]
    uefi: Uefi | None
    kvm: bool


class Guest(NamedTuple):
    """
    A machine that runs.

    process: QEMU.  console: what comes on the serial port, with what QEMU itself says.  agent: the channel to the guest
    agent. The last two never block.
    """

    process: subprocess.Popen[bytes]
    console: IO[bytes]
    agent: socket.socket


def program() -> str:
    """Find QEMU. Raises RestoreError."""
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if found is None:
        raise errors.RestoreError(
            "A drill needs QEMU, which is not on this machine.", "Install it (qemu-system-x86, or qemu-kvm)."
        )
    return found


@contextlib.contextmanager
def running(qemu: str, hardware: Hardware, directory: Path) -> Iterator[Guest]:
    """
    Run a machine until the block ends.

    qemu: its program.  directory: of this machine alone, for its variables and sockets.

    Raises RestoreError when QEMU does not start.
    """
    with contextlib.ExitStack() as stack:
        # Our end of the channel waits for QEMU, not the other way round, so that nothing has to be tried again.
        channel = directory / "agent.sock"
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.bind(str(channel))
        waiting.listen()
        process = subprocess.Popen(
            [qemu, *_options(hardware, channel, directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        console = stack.enter_context(process.stdout)
        os.set_blocking(console.fileno(), False)
        yield Guest(process, console, stack.enter_context(_connected(waiting, process, console)))


def _connected(waiting: socket.socket, process: subprocess.Popen[bytes], console: IO[bytes]) -> socket.socket:
    """Return the channel's connection. Raises RestoreError when QEMU ends before it comes."""
    waiting.settimeout(0.1)
    while True:
        with contextlib.suppress(TimeoutError):
            connection, _ = waiting.accept()
            connection.setblocking(False)
            return connection
        if process.poll() is not None:
            said = (console.read() or b"").decode(errors="replace").strip()
            raise errors.RestoreError(f"QEMU did not start: {said}", "Look at what it misses on this machine.")


def _options(hardware: Hardware, channel: Path, directory: Path) -> Iterator[str]:
    """Generate QEMU's options."""
    yield from ("-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot")
    # Without KVM, QEMU goes on to the next by itself.
    yield from ("-accel", "kvm", "-accel", "tcg") if hardware.kvm else ("-accel", "tcg")
    # All that the processor, or its emulation, can do: newer guests do not run on what QEMU's default can. But for
    # page tables of five levels, which some emulations get wrong (libguestfs leaves them out, too).
    yield from ("-cpu", "max,la57=off", "-m", f"{hardware.memory // MiB}M")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    yield from _machine(hardware, directory)
    # Nobody looks at it, but there are boot loaders that want a screen.
    yield from ("-device", "VGA")
    yield from ("-serial", "stdio", "-device", "virtio-scsi-pci", "-device", "virtio-serial-pci")
    yield from ("-chardev", f"socket,id=agent,path={_escaped(channel)}")
    yield from ("-device", f"virtserialport,chardev=agent,name={_AGENT}")
    for number, disk in enumerate(hardware.disks):
        node = f"disk{number}"
        source = {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(disk.server)},
            "export": disk.export,
        }
        yield from _block({"driver": "raw", "node-name": node, "discard": "unmap", "file": source})
        device = _DEVICES.get(disk.interface, _OTHER_DEVICE)
        yield from ("-device", f"{device},drive={node},bootindex={0 if disk.boots else number + 1}")


def _machine(hardware: Hardware, directory: Path) -> Iterator[str]:
    if hardware.uefi is None:
        yield from ("-machine", hardware.chipset)
        return
    variables = directory / "variables"
    code, template = hardware.uefi
    shutil.copyfile(template.filename, variables)
    for node, path, kind in (("code", code.filename, code.format), ("variables", str(variables), template.format)):
        file = {"driver": "file", "filename": path}
        yield from _block({"driver": kind, "node-name": node, "read-only": node == "code", "file": file})
    # There is no i440FX with UEFI in oVirt.
    yield from ("-machine", "q35,pflash0=code,pflash1=variables")


def _block(description: dict[str, object]) -> Iterator[str]:
    yield from ("-blockdev", json.dumps(description))


def _escaped(path: Path) -> str:
    """Return a path for QEMU's lists of options, in which a comma ends a value."""
    return str(path).replace(",", ",,")
