"""What every way to write a disk must do, against the real agent, Image I/O's daemon and qemu-nbd."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.transport.agent_upload import AgentUploads
from blockferry.transport.disk import Target
from blockferry.transport.grpc_agent import Agent, Endpoint
from blockferry.transport.imageio_upload import ImageioUploads
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.ssh import TunnelledAgent
from blockferry.transport.uploading import Upload, UploadTransport
from blockferry_agent import digest
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, Known, Range
from blockferry_agent.nbd import Address
from blockferry_agent.units import GiB, KiB, MiB
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.sshd import Sshd
from tests.lab import processes

SIZE = 5 * MiB + 512
WINDOW = 1 * MiB


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def endpoint(host: Host) -> Iterator[Endpoint]:
    listen = [f"127.0.0.1:{processes.free_port()}", f"unix:{host.directory / 'agent.sock'}"]
    with host.serving(listen=listen) as listening:
        name, port = listening.rsplit(":", 1)
        yield Endpoint(name, int(port), name)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("ssh") / "sshd", key_types=("ed25519",)) as server:
        yield server


def through_grpc(host: Host, endpoint: Endpoint, sshd: Sshd) -> UploadTransport:
    own = host.pki.controller()
    credentials = Credentials(host.pki.trusted, own.certificate, own.key)
    return AgentUploads("grpc", lambda target: Agent(endpoint, credentials))


def through_ssh(host: Host, endpoint: Endpoint, sshd: Sshd) -> UploadTransport:
    return AgentUploads("ssh", lambda target: TunnelledAgent(sshd.way(host.directory / "agent.sock")))


def through_imageio(host: Host, endpoint: Endpoint, sshd: Sshd) -> UploadTransport:
    return ImageioUploads(str(host.directory / "ca.pem"))


# One contract for all: a way is added by a line here.
WAYS = {"grpc": through_grpc, "ssh": through_ssh, "imageio": through_imageio}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, host: Host, endpoint: Endpoint, sshd: Sshd) -> UploadTransport:
    return WAYS[request.param](host, endpoint, sshd)


class Served:
    """A disk that may be written, as vdsm serves it. image: qcow2."""

    def __init__(self, host: Host, image: Path, address: Address, size: int) -> None:
        self.image = image
        self._host = host
        self._address = address
        self._size = size

    def target(self, *ops: str) -> Target:
        """Give out a ticket for it."""
        ticket = self._host.ticket(self._address, self._size, ops=list(ops or ("write",)))
        return Target(
            host_name="host1",
            host_address="127.0.0.1",
            transfer_id=ticket.transfer_id,
            ticket_id=ticket.ticket_id,
            transfer_url=f"https://127.0.0.1:{self._host.imageio.port}/images/{ticket.ticket_id}",
            proxy_url=None,
            size=self._size,
        )

    def content(self) -> bytes:
        return nbd_servers.copy(self._address, self.image.with_suffix(".raw"))


Serve = Callable[..., Served]
_numbers = itertools.count()


@pytest.fixture
def serve(host: Host) -> Iterator[Serve]:
    """Serve new disks until the test ends. before: words before qemu-nbd's address, of a server in front of it."""
    with contextlib.ExitStack() as servers:

        def start(size: int = SIZE, *front: str) -> Served:
            image = nbd_servers.qcow2(host.directory / f"disk{next(_numbers)}.qcow2", size)
            address = Address(str(host.directory / f"{image.name}.sock"), "")
            command = ["qemu-nbd", f"--socket={address.path}", "--persistent", "--shared=8", "--format=qcow2"]
            command += ["--discard=unmap", "--detect-zeroes=unmap", str(image)]
            servers.enter_context(nbd_servers.served(command, address))
            if front:
                behind, address = address, Address(str(host.directory / f"{image.name}.front"), "")
                command = ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={address.path}"]
                command += ["--filter=error", "nbd", f"socket={behind.path}", *front]
                servers.enter_context(nbd_servers.served(command, address))
            return Served(host, image, address, size)

        yield start


@pytest.fixture
def opened(way: UploadTransport, serve: Serve) -> Iterator[tuple[Served, Upload]]:
    """A new disk, open for writing."""
    disk = serve()
    with contextlib.closing(way.open(disk.target())) as upload:
        yield disk, upload


def data(start: int, content: bytes) -> Block:
    return Block(start, len(content), Kind.DATA, digest.xxh3(content), content)


def zero(start: int, length: int) -> Block:
    return Block(start, length, Kind.ZERO)


def some(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("compress", [False, True])
def test_blocks_are_on_the_disk_when_the_last_position_comes(opened: tuple[Served, Upload], compress: bool) -> None:
    disk, upload = opened
    assert upload.size == SIZE
    content = bytearray(SIZE)
    content[: 3 * MiB] = some(1, 2 * MiB) + b"compressible" * (MiB // 12) + bytes(MiB % 12)
    content[5 * MiB :] = some(2, 512)
    first = [data(start, bytes(content[start : start + MiB])) for start in range(0, 3 * MiB, MiB)]
    blocks = [*first, zero(3 * MiB, 2 * MiB), data(5 * MiB, bytes(content[5 * MiB :]))]
    positions = list(upload.write(blocks, WINDOW, compress))
    assert positions == sorted(positions)
    assert set(positions) <= {block.end for block in blocks}
    assert positions[-1] == SIZE
    assert disk.content() == content

    # What is written later lies over it, zeros too.
    later = [data(64 * KiB, b"x" * 512), zero(MiB, 128 * KiB)]
    assert list(upload.write(later, WINDOW))[-1] == MiB + 128 * KiB
    content[64 * KiB : 64 * KiB + 512] = b"x" * 512
    content[MiB : MiB + 128 * KiB] = bytes(128 * KiB)
    assert disk.content() == content
    assert list(upload.write([], WINDOW)) == []


def test_what_differs_is_found(opened: tuple[Served, Upload]) -> None:
    _, upload = opened
    there = some(3, MiB)
    list(upload.write([data(0, there), data(2 * MiB, there)], WINDOW))
    known = [
        Known(0, MiB, digest.xxh3(there)),
        Known(MiB, MiB, b""),
        Known(2 * MiB, 64 * KiB, digest.xxh3(there[: 64 * KiB])),
        Known(2 * MiB + 64 * KiB, 64 * KiB, digest.xxh3(b"other" + there[: 64 * KiB - 5])),
        Known(3 * MiB, MiB, digest.xxh3(there)),
        Known(4 * MiB, MiB, digest.xxh3(bytes(MiB))),
        Known(5 * MiB, 512, b""),
    ]
    assert [(place.start, place.length) for place in upload.compare(known)] == [
        (2 * MiB + 64 * KiB, 64 * KiB),
        (3 * MiB, MiB),
    ]
    assert list(upload.compare([])) == []
    # Zeros that are expected where there is data: only parts with data are named.
    found = list(upload.compare([Known(0, SIZE, b"")]))
    assert sum(place.length for place in found if place.zero) == 2 * MiB
    assert all(place.end <= MiB or 2 * MiB <= place.start < 3 * MiB for place in found)

    # What was written meanwhile counts.
    list(upload.write([data(3 * MiB, there)], WINDOW))
    assert list(upload.compare([Known(3 * MiB, MiB, digest.xxh3(there))])) == []


def test_zeros_of_any_length_cost_nothing(way: UploadTransport, serve: Serve) -> None:
    disk = serve(64 * GiB)
    with contextlib.closing(way.open(disk.target())) as upload:
        assert list(upload.write([zero(start, GiB) for start in range(0, 64 * GiB, GiB)], WINDOW))[-1] == 64 * GiB
        assert list(upload.compare([Known(0, 64 * GiB, b"")])) == []
    assert disk.image.stat().st_blocks * 512 < 32 * MiB


def test_what_the_blocks_maker_raises_is_raised(opened: tuple[Served, Upload]) -> None:
    disk, upload = opened

    def blocks() -> Iterator[Block]:
        yield data(0, b"a" * MiB)
        raise errors.Damaged("A chunk is damaged.")

    with pytest.raises(errors.Damaged, match="A chunk is damaged"):
        list(upload.write(blocks(), WINDOW))
    assert list(upload.write([data(0, b"b" * MiB)], WINDOW)) == [MiB]
    assert disk.content()[:MiB] == b"b" * MiB


def test_a_block_that_is_not_what_it_says_is_not_written(opened: tuple[Served, Upload]) -> None:
    disk, upload = opened
    with pytest.raises(agent_errors.InvalidRequest, match="not what its digest says"):
        list(upload.write([data(0, b"a" * MiB)._replace(digest=bytes(16))], WINDOW))
    assert disk.content() == bytes(SIZE)


def test_dropping_the_positions_ends_the_writing(opened: tuple[Served, Upload]) -> None:
    _, upload = opened
    taken = 0

    def blocks() -> Iterator[Block]:
        nonlocal taken
        for start in range(0, 5 * MiB, 64 * KiB):
            taken += 1
            yield data(start, b"a" * (64 * KiB))

    writing = upload.write(blocks(), WINDOW)
    next(writing)
    assert isinstance(writing, Generator)
    writing.close()
    stopped = taken
    assert list(upload.write([data(0, b"b" * MiB)], WINDOW)) == [MiB]
    assert taken == stopped


def test_storage_that_is_full_says_so(way: UploadTransport, serve: Serve) -> None:
    disk = serve(SIZE, "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    with (
        contextlib.closing(way.open(disk.target())) as upload,
        pytest.raises(agent_errors.WriteFailed, match=r"No space left|answered 500"),
    ):
        list(upload.write([data(0, b"a" * MiB)], WINDOW))


def test_a_ticket_for_reading_is_refused(way: UploadTransport, serve: Serve) -> None:
    disk = serve()
    with pytest.raises(agent_errors.TicketRefused), contextlib.closing(way.open(disk.target("read"))) as upload:
        list(upload.write([data(0, b"a" * MiB)], WINDOW))
    assert disk.content() == bytes(SIZE)


def test_a_ticket_that_is_not_there_is_refused(way: UploadTransport, serve: Serve, host: Host) -> None:
    target = serve().target()
    host.imageio.remove_ticket(target.ticket_id)
    with pytest.raises((agent_errors.TicketNotFound, agent_errors.TicketRefused)):
        way.open(target)


def test_ranges_that_differ_are_ranges(opened: tuple[Served, Upload]) -> None:
    """More of them than one call or one page holds."""
    _, upload = opened
    content = some(4, 5 * MiB)
    list(upload.write([data(start, content[start : start + MiB]) for start in range(0, 5 * MiB, MiB)], WINDOW))
    sector = 512
    known = [
        Known(start, sector, digest.xxh3(content[start : start + sector] if number % 2 else bytes(sector)))
        for number, start in enumerate(range(0, 5 * MiB, sector))
    ]
    found = list(upload.compare(known))
    assert found == [Range(place.start, sector, False) for place in known[::2]]
