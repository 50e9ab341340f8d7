"""
A relay between a disk's NBD server and whoever reads or writes the disk, which a test can shut in the middle of the data.

So a fault comes when blocks flow, not before and not after, however fast the machine is.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from pathlib import Path


class Valve:
    """
    Passes everything, until `limit` bytes have come from the server: then nothing more but a hang-up, until it is opened.

    path: its own socket.  limit: bytes, of all connections together.  written: count what goes to the server instead.
    Close it.
    """

    def __init__(self, path: Path, server: Path, limit: int, *, written: bool = False) -> None:
        self._server = str(server)
        self._limit = limit
        self._written = written
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

    def close(self) -> None:
        self._released.set()
        with self._changed:
            ends = [self._listener, *self._ends]
        for end in ends:
            _hang_up(end)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                reader, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                with self._changed:
                    self._ends += [reader, server]
                threading.Thread(target=self._serve, args=(reader, server), daemon=True).start()

    def _serve(self, reader: socket.socket, server: socket.socket) -> None:
        with reader, server, contextlib.suppress(OSError):
            server.connect(self._server)
            answers = threading.Thread(target=self._pass, args=(server, reader, not self._written), daemon=True)
            answers.start()
            self._pass(reader, server, self._written)
            answers.join()

    def _pass(self, source: socket.socket, target: socket.socket, measured: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if measured:
                    self._wait(len(data), source)
                target.sendall(data)
        _hang_up(source)
        _hang_up(target)

    def _wait(self, length: int, server: socket.socket) -> None:
        with self._changed:
            self._passed += length
            if self._passed < self._limit:
                return
        self._shut.set()
        hang_up = select.poll()
        hang_up.register(server, 0)
        while not self._released.is_set() and not hang_up.poll(20):
            pass


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
