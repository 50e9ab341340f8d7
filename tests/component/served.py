"""What tests of served points share: an NBD server over any disk, and clients that speak to it byte by byte."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from blockferry.serving.export import Disk, Export, Exports
from blockferry.serving.server import Server

REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IIQ")
REQUEST_MAGIC, SIMPLE_MAGIC = 0x25609513, 0x67446698
READ, WRITE = 0, 1


@contextlib.contextmanager
def server(path: Path, disk: Disk) -> Iterator[None]:
    """Serve a disk on a unix socket until the block ends."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with Server(listening, Exports([Export("disk", disk, frozenset())])):
            yield


def nbdsh(uri: str, script: str) -> None:
    """Run Python with `h`, libnbd's handle; it fails when the script does."""
    # With the system's Python, whose packages have libnbd.
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    connected = f"h.set_uri_allow_local_file(True)\nh.connect_uri({uri!r})\n{script}"
    done = subprocess.run(
        ["nbdsh", "-c", connected], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


class Client:
    """A client of the old kind, which knows simple replies only. A context manager: it hangs up."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it is turned away."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def shake_hands(self) -> int:
        """Choose the only export; return its size in bytes. Raises ConnectionError when it is turned away."""
        self.take(18)
        self.socket.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 0))
        size: int = struct.unpack(">QH", self.take(10))[0]
        return size

    def ask(self, command: int, start: int, length: int, cookie: int = 0) -> None:
        self.socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, cookie, start, length))

    def answer(self) -> tuple[int, int]:
        """Return (error, cookie) of the next reply."""
        magic, error, cookie = SIMPLE_REPLY.unpack(self.take(SIMPLE_REPLY.size))
        assert magic == SIMPLE_MAGIC
        return error, cookie

    def read(self, start: int, length: int) -> bytes:
        self.ask(READ, start, length)
        assert self.answer() == (0, 0)
        return self.take(length)

    def take(self, length: int) -> bytes:
        """Return the next bytes. Raises ConnectionError when they do not come."""
        data = self._file.read(length)
        if len(data) != length:
            raise ConnectionError(f"{len(data)} of {length} bytes came")
        return data
