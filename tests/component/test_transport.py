"""What every transport must do, against the real agent and the real Image I/O daemon; and what must not get through."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.transport import imageio
from blockferry.transport.disk import Disk, Target, Transport
from blockferry.transport.grpc_agent import Agent, AgentReading, Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry.transport.ssh import SshTransport
from blockferry_agent import digest
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, ReadRequest
from blockferry_agent.nbd import Address
from blockferry_agent.source import Extent
from blockferry_agent.units import KiB, MiB
from blockferry_proto import agent_pb2
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.sshd import Sshd
from tests.lab import processes

SIZE = 5 * MiB + 512
WINDOW = 1 * MiB
BITMAP = "c0ffee00-0000-4000-8000-000000000001"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def address(host: Host) -> Iterator[Address]:
    """A disk with data, changes since its bitmap was made, and zeros among them."""
    image = nbd_servers.qcow2(host.directory / "disk.qcow2", SIZE)
    nbd_servers.write(image, "write -P 0x41 0 2M")
    nbd_servers.add_bitmap(image, BITMAP)
    nbd_servers.write(image, "write -P 0x42 64k 64k", "write -z 1M 128k", f"write -P 0x43 {5 * MiB} 512")
    with nbd_servers.qemu_nbd(image, host.directory, f"--bitmap={BITMAP}") as served:
        yield served


@pytest.fixture(scope="module")
def endpoint(host: Host) -> Iterator[Endpoint]:
    first = processes.free_port()
    listen = [f"127.0.0.1:{processes.free_port()}", f"unix:{socket_of(host)}"]
    with host.serving(listen=listen, socket_ports=[first, min(first + 9, 65535)], clear_text=True) as listening:
        name, port = listening.rsplit(":", 1)
        yield Endpoint(name, int(port), name)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("ssh") / "sshd", key_types=("ed25519",)) as server:
        yield server


def socket_of(host: Host) -> Path:
    return host.directory / "agent.sock"


def credentials(host: Host) -> Credentials:
    own = host.pki.controller()
    return Credentials(host.pki.trusted, own.certificate, own.key)


def imageio_transport(host: Host, endpoint: Endpoint, sshd: Sshd) -> Transport:
    return ImageioTransport(str(host.directory / "ca.pem"))


def grpc_transport(host: Host, endpoint: Endpoint, sshd: Sshd) -> Transport:
    return GrpcTransport(credentials(host), lambda target: endpoint)


def ssh_transport(host: Host, endpoint: Endpoint, sshd: Sshd) -> Transport:
    return SshTransport(lambda target: sshd.way(socket_of(host)))


def netcat_transport(host: Host, endpoint: Endpoint, sshd: Sshd, clear_text: bool = False) -> Transport:
    own = credentials(host)
    return NetcatTransport(lambda target: Agent(endpoint, own), lambda target: endpoint, own, clear_text)


# One contract for all: a transport is added by a line here.
TRANSPORTS = {
    "grpc": grpc_transport,
    "ssh": ssh_transport,
    "imageio": imageio_transport,
    "netcat": netcat_transport,
    "netcat in clear text": functools.partial(netcat_transport, clear_text=True),
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest, host: Host, endpoint: Endpoint, sshd: Sshd) -> Transport:
    return TRANSPORTS[request.param](host, endpoint, sshd)


@pytest.fixture
def target(host: Host, address: Address) -> Target:
    return target_of(host, address)


def target_of(host: Host, address: Address, size: int = SIZE) -> Target:
    ticket = host.ticket(address, size, dirty=True)
    return Target(
        host_name="host1",
        host_address="127.0.0.1",
        transfer_id=ticket.transfer_id,
        ticket_id=ticket.ticket_id,
        transfer_url=f"https://127.0.0.1:{host.imageio.port}/images/{ticket.ticket_id}",
        proxy_url=None,
        size=size,
    )


def read(disk: Disk, **changes: object) -> list[Block]:
    request = ReadRequest(0, SIZE, incremental=False, window=WINDOW)._replace(**changes)
    with contextlib.closing(disk.read(request)) as reading:
        blocks = list(reading)
        assert reading.summary.moved == sum(len(block.data) for block in blocks)
    return blocks


def test_full_read_gives_every_byte(transport: Transport, target: Target) -> None:
    with contextlib.closing(transport.open(target)) as disk:
        content = bytearray(SIZE)
        position = 0
        for block in read(disk):
            assert block.start == position
            content[block.start : block.end] = block.data or bytes(block.length)
            position = block.end
    expected = bytearray(SIZE)
    expected[: 2 * MiB] = b"A" * (2 * MiB)
    expected[64 * KiB : 128 * KiB] = b"B" * (64 * KiB)
    expected[MiB : MiB + 128 * KiB] = bytes(128 * KiB)
    expected[5 * MiB :] = b"C" * 512
    assert position == SIZE
    assert content == expected


def test_incremental_read_gives_what_changed(transport: Transport, target: Target) -> None:
    with contextlib.closing(transport.open(target)) as disk:
        blocks = read(disk, incremental=True)
    assert [(block.start, block.length, block.kind) for block in blocks] == [
        (64 * KiB, 64 * KiB, Kind.DATA),
        (MiB, 128 * KiB, Kind.ZERO),
        (5 * MiB, 512, Kind.DATA),
    ]


def test_known_blocks_are_not_moved(transport: Transport, target: Target) -> None:
    known = {(5 * MiB, 512): digest.xxh3(b"C" * 512), (0, MiB): digest.xxh3(b"something else")}
    with contextlib.closing(transport.open(target)) as disk:
        kinds = {(block.start, block.length): block.kind for block in read(disk, known=known)}
    assert kinds[5 * MiB, 512] is Kind.SAME
    assert kinds[0, MiB] is Kind.DATA


def test_ranges_join_without_gap(transport: Transport, target: Target) -> None:
    """As a full read is asked for: piece by piece, each with its own known blocks."""
    with contextlib.closing(transport.open(target)) as disk:
        pieces = [*read(disk, length=3 * MiB), *read(disk, start=3 * MiB, length=SIZE - 3 * MiB)]
        whole = read(disk)
    data = [block for block in whole if block.kind is Kind.DATA]
    assert [block for block in pieces if block.kind is Kind.DATA] == data
    assert sum(block.length for block in pieces) == SIZE


def test_compression_changes_nothing_but_what_comes_over_the_wire(transport: Transport, target: Target) -> None:
    with contextlib.closing(transport.open(target)) as disk:
        plain = read(disk)
        request = ReadRequest(0, SIZE, incremental=False, window=WINDOW, compress=True)
        with contextlib.closing(disk.read(request)) as reading:
            assert list(reading) == plain
            if transport.name != "imageio":  # where nobody could compress
                assert 0 < reading.wire_bytes < 64 * KiB
            assert reading.summary.moved == sum(len(block.data) for block in plain)
    assert all(digest.xxh3(block.data) == block.digest for block in plain if block.kind is Kind.DATA)


def test_a_reading_that_is_left_half_way_does_not_disturb_the_next(transport: Transport, target: Target) -> None:
    with contextlib.closing(transport.open(target)) as disk:
        whole = read(disk)
        with contextlib.closing(disk.read(ReadRequest(0, SIZE, incremental=False, window=WINDOW))) as reading:
            assert next(iter(reading)) == whole[0]
        assert read(disk) == whole


def test_a_reading_that_waits_is_closed_from_another_thread(transport: Transport, target: Target) -> None:
    """At a byte per second, the first block takes twelve days."""
    with contextlib.closing(transport.open(target)) as disk:
        reading = disk.read(ReadRequest(0, SIZE, incremental=False, window=WINDOW, bytes_per_second=1))
        closing = threading.Timer(0.2, reading.close)
        closing.start()
        with pytest.raises(agent_errors.Error):
            list(reading)
        closing.join()
        assert sum(block.length for block in read(disk)) == SIZE


def test_a_disk_that_cannot_be_read_ends_the_reading(transport: Transport, host: Host) -> None:
    faults = ["--filter=error", "error-pread=EIO", "error-pread-rate=100%"]
    with nbd_servers.nbdkit(host.directory, faults[0], "pattern", str(SIZE), *faults[1:]) as served:
        disk = transport.open(target_of(host, served))
        with contextlib.closing(disk), pytest.raises(agent_errors.Error) as caught:
            read(disk)
    assert errors.exit_code(caught.value) == 7


def test_a_ticket_that_nobody_knows_is_refused(transport: Transport, target: Target) -> None:
    unknown = str(uuid.uuid4())
    url = target.transfer_url.replace(target.ticket_id, unknown)
    with pytest.raises(agent_errors.Error) as caught:
        transport.open(target._replace(ticket_id=unknown, transfer_url=url))
    assert isinstance(caught.value, agent_errors.TicketNotFound | agent_errors.TicketRefused)
    assert unknown not in str(caught.value), "a ticket is a secret"


def test_a_server_that_is_gone_ends_the_reading(transport: Transport, host: Host, tmp_path: Path) -> None:
    image = nbd_servers.qcow2(tmp_path / "gone.qcow2", SIZE)
    nbd_servers.write(image, f"write -P 1 0 {SIZE}")
    with nbd_servers.qemu_nbd(image, host.directory) as served:
        disk = transport.open(target_of(host, served))
    with contextlib.closing(disk), pytest.raises(agent_errors.Error) as caught:
        read(disk)
    assert errors.exit_code(caught.value) == 7


def test_nobody_listens(host: Host, target: Target) -> None:
    own = host.pki.controller()
    credentials = Credentials(host.pki.trusted, own.certificate, own.key)
    free = Endpoint("127.0.0.1", processes.free_port(), "127.0.0.1")
    with pytest.raises(errors.AgentUnreachable, match=r"does not answer.*agent status"):
        GrpcTransport(credentials, lambda _: free).open(target)


def test_a_stranger_is_no_agent(host: Host, endpoint: Endpoint, target: Target, tmp_path: Path) -> None:
    """Another controller's CA: neither side accepts the other."""
    foreign = type(host.pki).open(tmp_path / "state")
    own = foreign.controller()
    with pytest.raises(errors.AgentUnreachable):
        GrpcTransport(Credentials(foreign.trusted, own.certificate, own.key), lambda _: endpoint).open(target)


def test_the_engine_and_the_agent_must_see_one_size(host: Host, endpoint: Endpoint, target: Target) -> None:
    own = host.pki.controller()
    through_agent = GrpcTransport(Credentials(host.pki.trusted, own.certificate, own.key), lambda _: endpoint)
    with pytest.raises(agent_errors.ProtocolError, match="bytes"):
        through_agent.open(target._replace(size=SIZE + 512))


class Call:
    """A call whose replies are made up."""

    def __init__(self, replies: Iterable[agent_pb2.ReadBlocksReply]) -> None:
        self._replies = replies

    def __iter__(self) -> Iterator[bytes]:
        return (reply.SerializeToString() for reply in self._replies)

    def cancel(self) -> bool:
        return True


ZERO = agent_pb2.ReadBlocksReply(block=agent_pb2.Block(kind=agent_pb2.Block.KIND_ZERO, start=0, length=512))


def summary(**counts: int) -> agent_pb2.ReadBlocksReply:
    return agent_pb2.ReadBlocksReply(summary=agent_pb2.Summary(**counts))


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([ZERO], errors.TransportError),
        ([], errors.TransportError),
        ([ZERO, summary(blocks=2, dirty_bytes=512)], agent_errors.ProtocolError),
        ([ZERO, summary(blocks=1, dirty_bytes=1024)], agent_errors.ProtocolError),
        ([ZERO, summary(blocks=1, dirty_bytes=512, moved_bytes=1)], agent_errors.ProtocolError),
        ([agent_pb2.ReadBlocksReply(block=agent_pb2.Block(length=512)), summary()], agent_errors.ProtocolError),
    ],
)
def test_a_stream_that_does_not_add_up_is_refused(
    replies: list[agent_pb2.ReadBlocksReply], error: type[errors.Error]
) -> None:
    with pytest.raises(error):
        list(AgentReading(Call(replies), contextlib.nullcontext, "the agent"))


@pytest.mark.parametrize(
    "listed",
    [
        [(0, 512)],
        [],
        [(0, 512), (1024, 512)],
        [(0, 1024), (512, 1024)],
        [(0, 512), (512, 0), (512, 1024)],
        [(0, 2048)],
        [(512, 1024)],
    ],
)
def test_a_list_of_extents_with_a_gap_is_refused(target: Target, listed: list[tuple[int, int]]) -> None:
    extents = [Extent(start, length, dirty=False, zero=False) for start, length in listed]
    with pytest.raises(agent_errors.ProtocolError, match=r"listed \d+ of 1536 bytes"):
        imageio._check_complete(extents, target._replace(size=1536))


def test_a_disk_is_listed_once(host: Host, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full read asks for the extents of each piece; Image I/O takes minutes to list a large disk."""
    asked = 0
    extents: Callable[..., object] = imageio.client.ImageioClient.extents

    def counting(*arguments: object) -> object:
        nonlocal asked
        asked += 1
        return extents(*arguments)

    monkeypatch.setattr(imageio.client.ImageioClient, "extents", counting)
    with contextlib.closing(ImageioTransport(str(host.directory / "ca.pem")).open(target)) as disk:
        for start in range(0, SIZE, MiB):
            read(disk, start=start, length=min(MiB, SIZE - start))
    assert asked == 1


def test_the_proxy_carries_the_disk_when_the_host_does_not_answer(host: Host, target: Target) -> None:
    closed = f"https://127.0.0.1:{processes.free_port()}/images/{target.ticket_id}"
    reachable = target._replace(transfer_url=closed, proxy_url=target.transfer_url)
    with contextlib.closing(ImageioTransport(str(host.directory / "ca.pem")).open(reachable)) as disk:
        assert sum(block.length for block in read(disk)) == SIZE


def test_image_io_is_read_no_faster_than_the_host_may(host: Host, target: Target) -> None:
    """Nobody else keeps that limit there. It is for all disks of a host together, so it lasts from disk to disk."""
    transport = ImageioTransport(str(host.directory / "ca.pem"), bytes_per_second=4 * MiB)
    began = time.monotonic()
    for _ in range(2):
        with contextlib.closing(transport.open(target)) as disk:
            read(disk)
    # 2 MiB each time, the first quarter of a second of which is free.
    assert time.monotonic() - began > 0.7
