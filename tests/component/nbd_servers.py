"""NBD servers for tests: the real ones, and one that says whatever the test wants."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from blockferry_agent import errors, nbd
from blockferry_agent.nbd import Address
from tests.lab import processes

GRAIN = 64 * 1024


@contextlib.contextmanager
def qemu_nbd(image: Path, directory: Path, *options: str, format: str = "qcow2") -> Iterator[Address]:
    """Serve an image read-only, as vdsm does."""
    address = Address(str(directory / f"{image.name}.sock"), "")
    command = ["qemu-nbd", f"--socket={address.path}", "--persistent", "--shared=8", "--read-only", "--export-name="]
    with served([*command, f"--format={format}", *options, str(image)], address):
        yield address


@contextlib.contextmanager
def nbdkit(directory: Path, *options: str) -> Iterator[Address]:
    """Serve what nbdkit's plugin and filters make."""
    address = Address(str(directory / "nbdkit.sock"), "")
    command = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", f"--unix={address.path}"]
    with served([*command, *options], address):
        yield address


@contextlib.contextmanager
def served(command: Sequence[str], address: Address) -> Iterator[None]:
    """Run a server until it is not needed any more. Its socket is there before it listens, so it is tried."""

    def ready() -> bool:
        with contextlib.suppress(errors.SourceGone):
            nbd.Connection(address).close()
            return True
        return False

    path = Path(address.path)
    server = processes.Daemon(command, lab=path.parent, log=path.with_suffix(".log"))
    try:
        server.wait_until(ready)
        yield
    finally:
        server.stop()
        path.unlink(missing_ok=True)


def qcow2(path: Path, size: int) -> Path:
    """Make an empty image."""
    processes.run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size))
    return path


def add_bitmap(image: Path, bitmap: str, state: str = "--enable") -> None:
    """Let an image record its changes from now on, or with "--disable" only have a bitmap."""
    processes.run("qemu-img", "bitmap", "--add", state, image, bitmap)


def write(image: Path, *commands: str) -> None:
    """Change an image: commands of qemu-io, such as "write -P 0x41 1M 64k"."""
    options = [word for command in commands for word in ("-c", command)]
    processes.run("qemu-io", "-f", "qcow2", *options, image)


def uri(address: Address) -> str:
    """As libnbd's tools want it."""
    return f"nbd+unix:///{address.export}?socket={address.path}"


def copy(address: Address, target: Path) -> bytes:
    """The whole disk, as nbdcopy reads it."""
    subprocess.run(["nbdcopy", uri(address), str(target)], check=True)
    return target.read_bytes()


@contextlib.contextmanager
def scripted(directory: Path, script: bytes, hang: bool = False) -> Iterator[Address]:
    """
    Say `script` to every client, whatever it asks, then hang up; or with `hang` say nothing more.
    """
    path = directory / f"scripted-{os.urandom(4).hex()}.sock"
    ended = threading.Event()

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(10)
                client.sendall(script)
                if hang:
                    ended.wait(10)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield Address(str(path), "disk")
        finally:
            ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            server.join()
            path.unlink()


# What a server says, piece by piece.

STRUCTURED_REPLY, LIST, SET, GO = 8, 9, 10, 7
ALLOCATION, BITMAP = "base:allocation", "qemu:dirty-bitmap:backup-sda"
ALLOCATION_ID, BITMAP_ID = 11, 12
DF = 1 << 7
DONE = 1


def greeting(flags: int = 3) -> bytes:
    return b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags)


def reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, kind, len(payload)) + payload


def ack(option: int) -> bytes:
    return reply(option, 1)


def context(option: int, number: int, name: str) -> bytes:
    return reply(option, 4, struct.pack(">I", number) + name.encode())


def export(size: int, flags: int = DF) -> bytes:
    return reply(GO, 3, struct.pack(">HQH", 0, size, flags))


def contexts(bitmap: bool) -> bytes:
    """The answers from the greeting on, up to where GO is asked."""
    said = greeting() + ack(STRUCTURED_REPLY)
    if bitmap:
        said += context(LIST, 0, BITMAP) + ack(LIST)
    said += context(SET, ALLOCATION_ID, ALLOCATION)
    if bitmap:
        said += context(SET, BITMAP_ID, BITMAP)
    return said + ack(SET)


def handshake(size: int, bitmap: bool = False) -> bytes:
    return contexts(bitmap) + export(size) + ack(GO)


def chunk(kind: int, payload: bytes = b"", handle: int = 1, flags: int = DONE, length: int | None = None) -> bytes:
    head = struct.pack(">IHHQI", 0x668E33EF, flags, kind, handle, len(payload) if length is None else length)
    return head + payload


def data(start: int, content: bytes, handle: int = 1, flags: int = DONE) -> bytes:
    return chunk(1, struct.pack(">Q", start) + content, handle, flags)


def hole(start: int, length: int, handle: int = 1, flags: int = DONE) -> bytes:
    return chunk(2, struct.pack(">QI", start, length), handle, flags)


def status(number: int, *runs: tuple[int, int], handle: int = 1, flags: int = DONE) -> bytes:
    return chunk(5, struct.pack(">I", number) + b"".join(struct.pack(">II", *run) for run in runs), handle, flags)


def failure(errno: int, text: bytes = b"", handle: int = 1, flags: int = DONE) -> bytes:
    return chunk(0x8001, struct.pack(">IH", errno, len(text)) + text, handle, flags)
