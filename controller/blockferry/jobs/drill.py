"""
A restore drill: the disks of a recovery point boot in a QEMU of their own, and a sign of life is waited for.

Nothing is copied: QEMU reads the served point, and what the guest writes goes to an overlay that is gone at the end.
The guest has no network, so that it meets neither its twin nor anybody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec

from blockferry import errors
from blockferry.jobs import serve
from blockferry.jobs.progress import Progress
from blockferry.jobs.serve import Served, UnixSocket
from blockferry.repository import Manifest, Repository
from blockferry_agent.units import KiB, MiB

_CACHE = 256 * MiB
_AHEAD = 4 * MiB
"""A guest that boots reads here and there."""
_KEPT = 64 * KiB
"""Bytes of the console that are searched and told: its end."""
_LOOK_UP = 0.5
"""Seconds."""
_LINES = 20
"""Lines of the console that are told."""

_PROGRAMS = ("qemu-system-x86_64", "/usr/libexec/qemu-kvm")
"""QEMU, as Debian and as Enterprise Linux call it."""
_ACCELERATORS = (("-accel", "kvm", "-accel", "tcg"), ("-accel", "tcg"))
"""Without KVM, QEMU goes on by itself; where KVM is there and cannot run a guest, as in some VMs, we begin again."""
_KVM_FAILED = "KVM internal error"
"""What QEMU says then, and stands still."""
_DEVICES = {"virtio": "virtio-blk-pci", "virtio_scsi": "scsi-hd", "sata": "ide-hd", "ide": "ide-hd"}
"""What oVirt's interfaces are in QEMU."""
_OTHER_DEVICE = "virtio-blk-pci"


class Drill(msgspec.Struct, frozen=True):
    """
    What a drill saw.

    alive: the text came.  seconds: until it came, or until the end.  console: the last lines of the serial console.
    """

    point_id: str
    alive: bool
    seconds: float
    console: tuple[str, ...]


def run(
    repository: Repository,
    point: Manifest,
    disks: Sequence[str],
    expect: str,
    timeout: float,
    memory: int,
    progress: Progress,
) -> Drill:
    """
    Boot disks of a recovery point (ids or aliases, empty for all), and wait for a text on the serial console.

    timeout: seconds.  memory: bytes that the guest gets.

    Raises NotFound, Ambiguous, RestoreError without QEMU, Damaged, RepositoryError.
    """
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise errors.RestoreError(
            "A drill needs QEMU, which is not on this machine.", "Install it (qemu-system-x86, or qemu-kvm)."
        )
    with tempfile.TemporaryDirectory(prefix="blockferry-drill-") as name:
        place = UnixSocket(Path(name) / "nbd.sock")
        with serve.serving(repository, point, disks, place, Path(name), _CACHE, _AHEAD) as served:
            progress.step(f"booting {point.vm.name} as of {point.created:%Y-%m-%d %H:%M:%S} UTC")
            start = time.monotonic()
            for accelerators in _ACCELERATORS:
                with _console([program, *accelerators, *_options(point, served, place, memory)]) as console:
                    text = _wait(console, expect, start + timeout)
                if _KVM_FAILED not in text:
                    break
                progress.step("KVM fails on this machine: booting again without it, which is slower")
            return Drill(
                point_id=point.id,
                alive=expect in text,
                seconds=time.monotonic() - start,
                console=tuple(text.splitlines()[-_LINES:]),
            )


def _options(point: Manifest, disks: Sequence[Served], place: UnixSocket, memory: int) -> Iterator[str]:
    """Generate QEMU's options: a machine with these disks, a serial console on standard output, and nothing else."""
    yield from ("-nodefaults", "-no-user-config", "-nic", "none", "-display", "none", "-no-reboot")
    yield from ("-machine", "q35", "-m", f"{memory // MiB}M")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    yield from ("-serial", "stdio", "-device", "virtio-scsi-pci")
    for number, disk in enumerate(disks):
        stored = point.disk(disk.disk_id)
        node = f"disk{number}"
        source = {
            "driver": "nbd",
            "server": {"type": "unix", "path": str(place.path)},
            "export": disk.export,
        }
        block = {"driver": "raw", "node-name": node, "discard": "unmap", "file": source}
        yield from ("-blockdev", json.dumps(block))
        # The disk that the VM booted from comes first.
        index = 0 if stored.bootable else number + 1
        device = _DEVICES.get(stored.interface, _OTHER_DEVICE)
        yield from ("-device", f"{device},drive={node},bootindex={index}")


@contextlib.contextmanager
def _console(command: Sequence[str]) -> Iterator[IO[bytes]]:
    """Run QEMU until the block ends. What it says goes where the serial console goes."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        assert process.stdout is not None
        with process.stdout as console:
            yield console
    finally:
        process.kill()
        process.wait()


def _wait(console: IO[bytes], expect: str, deadline: float) -> str:
    """Return the end of what came on the console, when the text came, the guest ended, or the time is up."""
    seen = b""
    poll = select.poll()
    poll.register(console, select.POLLIN)
    while expect not in (text := seen.decode(errors="replace")) and _KVM_FAILED not in text:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        # Now and then we look up: Ctrl-C may have been given to a thread that serves, which does not wake us.
        if not poll.poll(min(left, _LOOK_UP) * 1000):
            continue
        data = os.read(console.fileno(), _KEPT)
        if not data:
            break
        seen = (seen + data)[-_KEPT - len(expect.encode()) :]
    return seen.decode(errors="replace")
