"""guestfish, asked one thing after another."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from blockferry import errors
from blockferry.guestfs import commands
from blockferry_agent.units import KiB, MiB

_PATIENCE = 600.0
"""Seconds without a byte, after which nothing more is expected: a machine without KVM takes half a minute to boot."""
_LONGEST = 64 * MiB
"""Bytes of an answer that is kept in memory."""


class Refused(errors.Error):
    """guestfish could not do what it was asked for. message: its words."""


class Appliance:
    """
    guestfish with some disks, which it does not change. Made by `booted`, which ends it. For one thread.
    """

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes], check: Callable[[], None]) -> None:
        """said: file of its standard error.  check: raises when nothing more is to be expected."""
        self._check = check
        self._process = process
        self._said = said

    def ask(self, name: str, *words: bytes | str) -> bytes:
        """Do a command, and return what it prints. Raises Refused, RestoreError."""
        answer = bytearray()

        def keep(data: bytes) -> None:
            answer.extend(data)
            if len(answer) > _LONGEST:
                raise errors.RestoreError(f"The file system's answer to {name} is longer than any can be.")

        self.stream(keep, name, *words)
        return bytes(answer)

    def stream(self, output: Callable[[bytes], object], name: str, *words: bytes | str) -> None:
        """
        Do a command, and give what it prints to `output`, piece by piece. What that raises ends the appliance.

        Raises Refused, RestoreError.
        """
        # Nobody can guess it, so nothing else looks like the end.
        end = secrets.token_hex(16).encode() + b"\n"
        before = self._said.seek(0, os.SEEK_END)
        self._send(commands.command(name, *words) + b"echo " + end)
        rest = b""
        try:
            while not rest.endswith(end):
                rest += self._receive()
                if len(rest) > len(end):
                    output(rest[: -len(end)])
                    rest = rest[-len(end) :]
        except BaseException:
            # The rest of the answer would be taken for the next one's.
            _kill(self._process)
            raise
        self._said.seek(before)
        complaint = self._said.read(64 * KiB).decode(errors="replace").strip()
        if "libguestfs: error: " in complaint:
            raise Refused(complaint.rpartition("libguestfs: error: ")[2])

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _PATIENCE
        while not select.select([self._process.stdout], [], [], 1)[0]:
            self._check()
            if time.monotonic() > deadline:
                raise errors.RestoreError(f"guestfish has not answered for {_PATIENCE / 60:.0f} minutes.")
        data = os.read(self._process.stdout.fileno(), 256 * KiB)
        if not data:
            raise self._ended()
        return data

    def _ended(self) -> errors.RestoreError:
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return errors.RestoreError(f"guestfish has ended: {last[0] if last else 'it does not say why'}.")


@contextmanager
def booted(uris: Sequence[str], check: Callable[[], None]) -> Iterator[Appliance]:
    """
    Boot guestfish with disks, /dev/sda, /dev/sdb and so on. uris: of NBD exports.

    check: called every second while an answer is waited for. What it raises ends the appliance: a file system whose
    disk fails may ask for the same range again and again, and never answer.

    Raises RestoreError when there is no guestfish, or it does not boot.
    """
    program = shutil.which("guestfish")
    if program is None:
        raise errors.RestoreError(
            "There is no guestfish, which looks into file systems.",
            "Install it: `dnf install guestfs-tools`, or `apt install guestfish`.",
        )
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())
        words = [program, "--ro", "--format=raw", *(word for uri in uris for word in ("-a", uri))]
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            # Its own way to start QEMU: libvirt's would run it as a user who cannot reach our socket.
            env={"LIBGUESTFS_BACKEND": "direct", **os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
        stack.callback(_end, process)
        appliance = Appliance(process, said, check)
        try:
            appliance.ask("run")
        except Refused as error:
            raise errors.RestoreError(
                f"guestfish does not boot: {error.message}.", "`libguestfs-test-tool` says why."
            ) from None
        yield appliance


def _end(process: subprocess.Popen[bytes]) -> None:
    """End guestfish and its QEMU. Nothing is lost: it writes nothing."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill guestfish, and with it its QEMU."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
