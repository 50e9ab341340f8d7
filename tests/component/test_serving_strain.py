"""Served points under strain: full scratch disks, clients that stall or vanish, too many of them, damaged chunks."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from blockferry.jobs import serve
from blockferry.jobs.serve import UnixSocket
from blockferry.repository import Repository, store
from blockferry.repository.store import Store
from blockferry.serving.export import Extent, Piece
from blockferry.serving.overlay import Overlay
from blockferry.serving.server import MAX_CONNECTIONS
from blockferry_agent.units import GiB, KiB, MiB
from tests.component import served
from tests.component.served import READ, WRITE, Client, nbdsh
from tests.lab import processes
from tests.unit import repository_images

TiB = 1024 * GiB
EIO = 5


class Memory:
    """A disk of 1 TiB that can be written and forgets it, and remembers how much was read of each of its GiB."""

    size = 1 * TiB
    read_only = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken: dict[int, int] = {}

    def read(self, start: int, length: int) -> list[Piece]:
        with self._lock:
            self.taken[start // GiB] = self.taken.get(start // GiB, 0) + length
        return [Piece(start, length, memoryview(bytes(length)))]

    def extents(self, start: int, length: int) -> Iterator[Extent]:
        yield Extent(length, zero=False)

    def write(self, start: int, data: memoryview) -> None:
        pass

    def zero(self, start: int, length: int) -> None:
        pass


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    disk = Memory()
    with served.server(tmp_path / "nbd.sock", disk):
        yield disk


def clients() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(("nbd-client", "nbd-request"))]


def test_clients_that_take_nothing_hold_little_and_stop_nobody(memory: Memory, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(10):
            stalled = stack.enter_context(Client(tmp_path / "nbd.sock"))
            stalled.shake_hands()
            for _ in range(4):
                stalled.ask(READ, number * GiB, 32 * MiB)
        reader = stack.enter_context(Client(tmp_path / "nbd.sock"))
        reader.shake_hands()
        for megabyte in range(64):
            reader.read(100 * GiB + megabyte * MiB, 1 * MiB)
        # Four steps of 2 MiB, and two that the sockets have room for.
        assert max(memory.taken[number] for number in range(10) if number in memory.taken) <= 12 * MiB


@pytest.mark.parametrize("sent", [b"\x25\x60", b"a whole header", b"a header and a part"])
def test_clients_that_vanish_in_a_request_leave_nothing(memory: Memory, tmp_path: Path, sent: bytes) -> None:
    with Client(tmp_path / "nbd.sock") as client:
        client.shake_hands()
        if sent.startswith(b"a "):
            client.ask(WRITE, 0, 8 * MiB)
        if sent.endswith(b"part"):
            client.socket.sendall(bytes(3 * MiB))
        if not sent.startswith(b"a "):
            client.socket.sendall(sent)
    with Client(tmp_path / "nbd.sock") as client:
        client.shake_hands()
        # As many requests in flight as there are threads, and it does not stay for the answers.
        for _ in range(8):
            client.ask(READ, 0, 8 * MiB)
    processes.wait_for("the end of all clients' threads", lambda: not clients(), 20)


def test_hundreds_of_clients_are_turned_away_and_later_ones_are_not(memory: Memory, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        welcome = 0
        for _ in range(300):
            client = stack.enter_context(Client(tmp_path / "nbd.sock"))
            with contextlib.suppress(ConnectionError):
                welcome += client.shake_hands() == memory.size
        # One may be hung up on in the moment in which it has its answer, and is still among those that choose.
        assert MAX_CONNECTIONS <= welcome <= MAX_CONNECTIONS + 5
    processes.wait_for("the end of all clients' threads", lambda: not clients(), 20)
    with Client(tmp_path / "nbd.sock") as client:
        assert client.shake_hands() == memory.size


def test_clients_that_say_nothing_keep_nobody_out(memory: Memory, tmp_path: Path) -> None:
    """Whoever reaches a TCP port can connect, before anybody asks for a certificate."""
    with contextlib.ExitStack() as stack:
        working = stack.enter_context(Client(tmp_path / "nbd.sock"))
        working.shake_hands()
        for _ in range(MAX_CONNECTIONS + 10):
            stack.enter_context(Client(tmp_path / "nbd.sock"))
        with Client(tmp_path / "nbd.sock") as client:
            assert client.shake_hands() == memory.size
        assert working.read(0, 512) == bytes(512)


def test_a_full_overlay_is_told_and_the_rest_of_the_disk_stays_of_use(tmp_path: Path) -> None:
    """By `blockferry serve` itself, its scratch file on a file system of 1 MiB that only it sees."""
    content = random.Random(1).randbytes(8 * MiB)
    repository = Repository.init(str(tmp_path / "repository"))
    repository_images.full(repository, content)
    (tmp_path / "ca.pem").touch()
    configuration = tmp_path / "config.toml"
    configuration.write_text(
        f'[engine]\nurl = "https://engine.example/ovirt-engine/api"\nusername = "admin@internal"\n'
        f'ca_file = "{tmp_path / "ca.pem"}"\n[repository]\nurl = "{repository.url}"\n'
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    program = Path(sys.executable).with_name("blockferry")
    command = ("serve", "web", "--overlay", str(scratch), "--json", "--quiet")
    script = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    in_small = ("unshare", "--mount", "sh", "-c", script, str(scratch))
    with subprocess.Popen(
        [*in_small, str(program), "--config", str(configuration), *command], stdout=subprocess.PIPE, text=True
    ) as serving:
        try:
            assert serving.stdout is not None
            uri = json.loads(serving.stdout.readline())[0]["uri"]
            nbdsh(
                uri,
                """
import errno
h.pwrite(b"x" * 65536, 0)
try:
    h.pwrite(b"y" * 2097152, 1048576)
except nbd.Error as error:
    assert error.errno == "ENOSPC", error
else:
    raise AssertionError("there was room")
assert h.pread(65536, 0) == b"x" * 65536
h.zero(65536, 0)
h.pwrite(b"z" * 512, 65536)
""",
            )
            copied = subprocess.run(["nbdcopy", uri, "-"], check=True, capture_output=True, timeout=30).stdout
            assert copied[: 64 * KiB + 512] == bytes(64 * KiB) + b"z" * 512
            assert copied[64 * KiB + 512 : 1 * MiB] == content[64 * KiB + 512 : 1 * MiB]
            assert copied[3 * MiB :] == content[3 * MiB :]
        finally:
            serving.terminate()
    assert serving.returncode == 0


def test_what_a_failed_write_left_in_the_scratch_file_is_never_read(tmp_path: Path) -> None:
    """A grain that became the overlay's own after it: where the base has zeros, there are zeros."""

    class Zeros(Memory):
        def read(self, start: int, length: int) -> list[Piece]:
            return [Piece(start, length, None)]

    with Overlay(Zeros(), tmp_path) as overlay:
        with file_size_limit(256 * KiB), pytest.raises(OSError, match="too large"):
            overlay.write(0, memoryview(b"\xff" * (512 * KiB)))
        overlay.write(0, memoryview(b"x"))
        pieces = overlay.read(0, 512 * KiB)
    found = b"".join(bytes(piece.length) if piece.data is None else bytes(piece.data) for piece in pieces)
    assert found == b"x" + bytes(512 * KiB - 1)


@contextlib.contextmanager
def file_size_limit(length: int) -> Iterator[None]:
    """Let the kernel refuse what is written behind `length` bytes of a file."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("structured", [True, False])
def test_a_damaged_chunk_fails_the_reads_that_touch_it_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, structured: bool
) -> None:
    content = random.Random(2).randbytes(8 * MiB)
    own = Repository.init(str(tmp_path / "damaged"))
    point = repository_images.full(own, content)
    (entry,) = own.disk(point, repository_images.DISK).entries(5 * MiB, 512)
    (chunk,) = (tmp_path / "damaged").rglob(f"{entry.chunk.hex()}*")
    chunk.chmod(0o600)
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"otherwise")
    socket_path = tmp_path / "nbd.sock"
    with (
        caplog.at_level(logging.ERROR),
        serve.serving(own, point, [], UnixSocket(socket_path), None, 8 * MiB, 4 * MiB) as (only,),
    ):
        if structured:
            (tmp_path / "content").write_bytes(content)
            nbdsh(
                only.uri,
                f"""
content = open({str(tmp_path / "content")!r}, "rb").read()
for start, length in ((0, 8 << 20), (5 << 20, 512), ((6 << 20) - 1, 2)):
    try:
        h.pread(length, start)
    except nbd.Error as error:
        assert error.errno == "EIO", error
    else:
        raise AssertionError("wrong bytes were read")
for start, length in ((0, 5 << 20), (6 << 20, 2 << 20)):
    assert h.pread(length, start) == content[start : start + length]
""",
            )
        else:
            with Client(socket_path) as client:
                client.shake_hands()
                client.ask(READ, 5 * MiB, 512, cookie=7)
                assert client.answer() == (EIO, 7)
                assert client.read(0, 5 * MiB) == content[: 5 * MiB]
                # A simple reply that has begun can only be broken off.
                client.ask(READ, 0, 8 * MiB)
                assert client.answer() == (0, 0)
                with pytest.raises(ConnectionError):
                    client.take(8 * MiB)
    assert entry.chunk.hex() in caplog.text
    assert f"{only.export} cannot be read from {5 * MiB} to {5 * MiB + 512}" in caplog.text


class Counting:
    """A store that knows which objects were read of it."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.names: list[str] = []

    def get(self, name: str, limit: int) -> bytes:
        self.names.append(name)
        return self._inner.get(name, limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_the_first_bytes_of_a_huge_disk_need_two_objects(tmp_path: Path) -> None:
    """8 TiB with data in 1024 places: a page of the index, and a chunk. Nothing is walked before it is asked for."""
    size, step, content = 8 * TiB, 8 * GiB, b"\x07" * MiB
    url = str(tmp_path / "huge")
    blocks = (
        block
        for start in range(0, size, step)
        for block in (repository_images.data(start, content), repository_images.zero(start + MiB, step - MiB))
    )
    repository_images.back_up(Repository.init(url), blocks, size)
    counting = Counting(store.connect(url, "full"))
    repository = Repository.on(cast(Store, counting))
    (point,) = repository.points()
    with serve.serving(repository, point, [], UnixSocket(tmp_path / "nbd.sock"), None, 8 * MiB, 0):
        opened = len(counting.names)
        with Client(tmp_path / "nbd.sock") as client:
            assert client.shake_hands() == size
            assert client.read(size - step, 4096) == content[:4096]
        assert len(counting.names) - opened == 2
