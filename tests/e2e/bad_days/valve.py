"""
A relay between a disk's NBD server and whoever reads the disk, which a test can shut in the middle of the data.

So a fault comes when blocks flow, not before and not after, however fast the machine is.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from tests.lab import processes


class Valve:
    """
    Passes everything, until `limit` bytes have come from the server: then nothing more, until it is opened or cut.

    path: its own socket.  limit: bytes, of all connections together.  Close it.
    """

    def __init__(self, path: Path, server: Path, limit: int) -> None:
        self._server = str(server)
        self._limit = limit
        self._passed = 0
        self._ends: list[socket.socket] = []
        self._changed = threading.Condition()  # guards all above
        self._shut = threading.Event()
        self._released = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._path = path
        threading.Thread(target=self._accept, name="valve", daemon=True).start()

    @property
    def is_shut(self) -> bool:
        """Whether a reader waits for data that the valve holds back."""
        return self._shut.is_set()

    def open(self) -> None:
        """Pass everything from now on."""
        self._released.set()

    def cut(self) -> None:
        """Hang up on everybody, and on whoever comes later."""
        _hang_up(self._listener)
        with self._changed:
            ends, self._ends = self._ends, []
        for end in ends:
            _hang_up(end)
        self._released.set()

    def close(self) -> None:
        self.cut()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                reader, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                with self._changed:
                    self._ends += [reader, server]
                try:
                    server.connect(self._server)
                except OSError:
                    _hang_up(reader)
                    continue
                for source, target, measured in ((reader, server, False), (server, reader, True)):
                    threading.Thread(target=self._pass, args=(source, target, measured), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, measured: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if measured:
                    self._wait(len(data))
                target.sendall(data)
        _hang_up(source)
        _hang_up(target)

    def _wait(self, length: int) -> None:
        with self._changed:
            self._passed += length
            if self._passed < self._limit:
                return
        self._shut.set()
        self._released.wait()


def wait_until_shut(valve: Valve) -> None:
    """Raises LabError when no reader comes so far."""
    processes.wait_for("reading of so many bytes", lambda: valve.is_shut, 60)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
