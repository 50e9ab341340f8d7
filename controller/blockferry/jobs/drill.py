"""
A restore drill: the disks of a recovery point boot in a QEMU of their own, and signs of life are waited for.

Nothing is copied: QEMU reads the served point, and what the guest writes goes to an overlay that is gone at the end.
The guest has no network, so that it meets neither its twin nor anybody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from blockferry import errors
from blockferry.jobs import configuration, emulator, firmware, serve
from blockferry.jobs.emulator import Guest, Hardware
from blockferry.jobs.firmware import Firmware
from blockferry.jobs.progress import Progress
from blockferry.jobs.serve import Served, UnixSocket
from blockferry.repository import Manifest, Repository
from blockferry_agent.units import KiB, MiB

_CACHE = 256 * MiB
_AHEAD = 4 * MiB
"""A guest that boots reads here and there."""
_KEPT = 64 * KiB
"""Bytes of the console that are searched and told: its end."""
_LOGGED = 16 * MiB
"""Bytes of the console that are written to its log: its beginning. A guest may say the same for hours."""
_LOOK_UP = 0.5
"""Seconds."""
_ASK_AGAIN = 1.0
"""Seconds until the guest agent is asked once more; it may have been there too late for the last time."""
_ANSWER = 4 * KiB
"""Bytes of an answer of the guest agent that are waited for."""
_ENDS = 10.0
"""Seconds within which QEMU is gone that has closed its output."""
_LINES = 20
"""Lines of the console that are told."""


class Signs(NamedTuple):
    """
    The signs of life that are waited for, all of them.

    text: on the serial console; None for none.  agent: an answer of QEMU's guest agent.
    """

    text: str | None
    agent: bool = False


class Terms(NamedTuple):
    """
    timeout: seconds.  memory: bytes that the guest gets.  firmware: None for what the point's configuration says.
    log: where the console is written to; what was there before is replaced.
    """

    timeout: float
    memory: int
    log: Path
    firmware: Firmware | None = None


class Drill(msgspec.Struct, frozen=True):
    """
    What a drill saw.

    alive: all signs came.  missing: those that did not, in words.  seconds: until the last one came, or until the end.
    console: the last lines of the serial console.  log: path of what came on it from its beginning.
    """

    point_id: str
    alive: bool
    missing: tuple[str, ...]
    seconds: float
    firmware: Firmware
    console: tuple[str, ...]
    log: str


def run(
    repository: Repository, point: Manifest, disks: Sequence[str], signs: Signs, terms: Terms, progress: Progress
) -> Drill:
    """
    Boot disks of a recovery point (ids or aliases, empty for all), and wait for signs of life.

    Raises NotFound, Ambiguous, RestoreError without QEMU or its firmware, Damaged, RepositoryError.
    """
    qemu = emulator.program()
    ovf = repository.ovf(point) if point.ovf else ""
    boots_by = terms.firmware or firmware.of(ovf)
    uefi = firmware.uefi() if boots_by == "uefi" else None
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blockferry-drill-")))
        place = UnixSocket(directory / "nbd.sock")
        served = stack.enter_context(serve.serving(repository, point, disks, place, directory, _CACHE, _AHEAD))
        log = stack.enter_context(_log(terms.log))
        placed = _disks(point, served, ovf, directory / "nbd.sock")
        hardware = Hardware(firmware.chipset(ovf), terms.memory, placed, uefi, kvm=True)
        progress.step(f"booting {point.vm.name} as of {point.created:%Y-%m-%d %H:%M:%S} UTC")
        start = time.monotonic()
        vigil = _kept(qemu, hardware, directory, signs, log, start + terms.timeout, progress)
        return Drill(
            point_id=point.id,
            alive=not vigil.missing,
            missing=vigil.missing,
            seconds=time.monotonic() - start,
            firmware=boots_by,
            console=tuple(vigil.text.splitlines()[-_LINES:]),
            log=str(terms.log),
        )


def _disks(point: Manifest, served: Sequence[Served], ovf: str, server: Path) -> list[emulator.Disk]:
    """Return the disks in the order that the VM had them in, which its guest may count on."""
    order = configuration.disk_order(ovf)
    exports = sorted(served, key=lambda disk: order.index(disk.disk_id) if disk.disk_id in order else len(order))
    manifests = [point.disk(disk.disk_id) for disk in exports]
    return [
        emulator.Disk(server, disk.export, stored.interface, stored.bootable)
        for disk, stored in zip(exports, manifests, strict=True)
    ]


@contextlib.contextmanager
def _log(path: Path) -> Iterator[IO[bytes]]:
    """Open the log of the console, for its owner only: guests say passwords there. Raises ConfigError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        log = open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)  # noqa: SIM115 (below)
    except OSError as error:
        raise errors.ConfigError(
            f"The console's log {path} cannot be written: {error.strerror or error}.",
            "Make room, or set state in the configuration.",
        ) from None
    with log:
        yield log


def _kept(
    qemu: str, hardware: Hardware, directory: Path, signs: Signs, log: IO[bytes], deadline: float, progress: Progress
) -> _Vigil:
    """Run a machine, and return what was seen of it. Raises RestoreError when QEMU does not start."""
    with contextlib.suppress(errors.RestoreError):
        vigil = _kept_once(qemu, hardware, directory, signs, log, deadline)
        if not vigil.qemu_failed:
            return vigil
    # KVM that is there and does not work shows in many ways.
    progress.step("QEMU fails with KVM: booting again without it, which is slower")
    return _kept_once(qemu, hardware._replace(kvm=False), directory, signs, log, deadline)


def _kept_once(qemu: str, hardware: Hardware, directory: Path, signs: Signs, log: IO[bytes], deadline: float) -> _Vigil:
    with (
        tempfile.TemporaryDirectory(dir=directory) as own,
        emulator.running(qemu, hardware, Path(own)) as guest,
    ):
        vigil = _Vigil(guest, signs, log)
        vigil.keep(deadline)
        return vigil


class _Vigil:
    """
    What is seen of a guest.

    text: the end of what came on its console.  qemu_failed: not the guest has ended, but QEMU, or its KVM.
    """

    def __init__(self, guest: Guest, signs: Signs, log: IO[bytes]) -> None:
        self._guest = guest
        self._signs = signs
        self._log = log
        self._logged = 0
        self._seen = b""
        self._text_came = signs.text is None
        self.qemu_failed = False
        self._question = secrets.randbelow(1 << 31)
        self._asked = 0.0
        self._answer = b""
        self._agent_answered = not signs.agent

    @property
    def text(self) -> str:
        return self._seen.decode(errors="replace")

    @property
    def missing(self) -> tuple[str, ...]:
        """The signs that have not come, in words."""
        missing = []
        if not self._text_came:
            missing.append(f"'{self._signs.text}' on the console")
        if not self._agent_answered:
            missing.append("an answer of the guest agent")
        return tuple(missing)

    def keep(self, deadline: float) -> None:
        """Watch until all signs came, the guest ended, QEMU failed, or the time is up."""
        poll = select.poll()
        poll.register(self._guest.console, select.POLLIN)
        if self._signs.agent:
            poll.register(self._guest.agent, select.POLLIN)
        while self.missing and not self.qemu_failed:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._ask()
            # Now and then we look up: Ctrl-C may have been given to a thread that serves, which does not wake us.
            for descriptor, _ in poll.poll(min(left, _LOOK_UP) * 1000):
                if descriptor == self._guest.agent.fileno():
                    self._hear()
                elif not self._read():
                    self.qemu_failed = self._guest.process.wait(_ENDS) != 0
                    return

    def _read(self) -> bool:
        """Take what is on the console. False when the guest has ended."""
        data = os.read(self._guest.console.fileno(), _KEPT)
        expected = self._signs.text or ""
        self._seen = (self._seen + data)[-_KEPT - len(expected.encode()) :]
        self._text_came = self._text_came or expected in self.text
        self.qemu_failed = emulator.KVM_FAILED in self.text
        # A full disk must not end the drill.
        with contextlib.suppress(OSError):
            self._logged += self._log.write(data[: _LOGGED - self._logged]) or 0
        return bool(data)

    def _ask(self) -> None:
        """Ask the guest agent to repeat a number, as its protocol has it for beginning; it waits in the channel."""
        if not self._signs.agent or time.monotonic() < self._asked + _ASK_AGAIN:
            return
        self._asked = time.monotonic()
        words = {"execute": "guest-sync", "arguments": {"id": self._question}}
        with contextlib.suppress(OSError):
            self._guest.agent.send(json.dumps(words).encode() + b"\n")

    def _hear(self) -> None:
        """Take what came from the guest, which may be anything."""
        with contextlib.suppress(OSError):
            self._answer = (self._answer + self._guest.agent.recv(_ANSWER))[-_ANSWER:]
        for line in self._answer.splitlines():
            with contextlib.suppress(ValueError):
                self._agent_answered |= json.loads(line) == {"return": self._question}
