"""The agent's service over real gRPC and TLS, with the real Image I/O daemon and qemu-nbd behind it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from blockferry.deploy import pki
from blockferry_agent import __version__, digest, errors, imageio, nbd, status
from blockferry_agent.callers import Callers
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.keepalive import KeepAlive
from blockferry_agent.nbd import Address
from blockferry_agent.netcat import Netcat
from blockferry_agent.service import Service, serve
from blockferry_agent.throttle import Throttle
from blockferry_agent.units import KiB, MiB
from blockferry_proto import PROTOCOL, agent_pb2, agent_pb2_grpc
from tests.component import nbd_servers
from tests.component.agent_host import Host

Stub = agent_pb2_grpc.AgentStub
Block = agent_pb2.Block

SIZE = 5 * MiB + 512
WINDOW = 1 * MiB
BITMAP = "c0ffee00-0000-4000-8000-000000000001"
ABSENT = "00000000-0000-4000-8000-00000000dead"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def stub(host: Host) -> Iterator[Stub]:
    with host.serving(max_reads=2) as address, host.client(address) as client:
        yield client


@pytest.fixture(scope="module")
def disk(host: Host) -> Iterator[Address]:
    """A disk with data, changes since its bitmap was made, and zeros among them."""
    image = nbd_servers.qcow2(host.directory / "disk.qcow2", SIZE)
    nbd_servers.write(image, "write -P 0x41 0 2M")
    nbd_servers.add_bitmap(image, BITMAP)
    nbd_servers.write(image, "write -P 0x42 64k 64k", "write -z 1M 128k", f"write -P 0x43 {5 * MiB} 512")
    with nbd_servers.qemu_nbd(image, host.directory, f"--bitmap={BITMAP}") as address:
        yield address


@pytest.fixture(scope="module")
def plain(host: Host) -> Iterator[Address]:
    """A disk without bitmap, 64 MiB of data."""
    image = nbd_servers.qcow2(host.directory / "plain.qcow2", 64 * MiB)
    nbd_servers.write(image, "write -P 0x41 0 64M")
    with nbd_servers.qemu_nbd(image, host.directory) as address:
        yield address


def read(stub: Stub, ticket: agent_pb2.Ticket, **more: object) -> tuple[list[Block], agent_pb2.Summary]:
    request = agent_pb2.ReadBlocksRequest(ticket=ticket, **{"window_bytes": WINDOW, **more})  # type: ignore[arg-type]
    replies = list(stub.ReadBlocks(request, timeout=20))
    assert [reply.WhichOneof("reply") for reply in replies] == ["block"] * (len(replies) - 1) + ["summary"]
    return [reply.block for reply in replies[:-1]], replies[-1].summary


def refusal(call: Callable[[], object]) -> errors.Error:
    """The agent's error that a call ends with, made of the status as the controller makes it."""
    with pytest.raises(grpc.RpcError) as caught:
        result = call()
        if isinstance(result, grpc.Call):
            list(result)
    error = caught.value
    own = status.error_from(error.code().value[0], error.details(), dict(error.trailing_metadata()))
    assert own is not None, error
    return own


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def image_of(blocks: list[Block], base: bytes) -> bytes:
    image = bytearray(base)
    for block in blocks:
        image[block.start : block.start + block.length] = block.data or bytes(block.length)
    return bytes(image)


def test_describe(stub: Stub) -> None:
    reply = stub.Describe(agent_pb2.DescribeRequest(), timeout=10)
    assert (reply.version, reply.protocol, reply.active_reads) == (__version__, PROTOCOL, 0)
    assert reply.python_version.startswith("3.")
    assert reply.host_name
    assert 10 * MiB < reply.resident_bytes < 2048 * MiB
    assert (reply.cores, reply.stopping) == (os.cpu_count(), False)
    assert 0 <= reply.load < 1000
    assert 89 < (reply.certificate_expires - time.time()) / 86400 < 90.1


def test_describe_counts_processor_time(stub: Stub, host: Host, plain: Address) -> None:
    """Image I/O's is counted in hundredths of a second, and each sign of life costs it some."""
    before = stub.Describe(agent_pb2.DescribeRequest(), timeout=10)
    ticket = host.ticket(plain, 64 * MiB)
    deadline = time.monotonic() + 20
    while True:
        read(stub, ticket)
        after = stub.Describe(agent_pb2.DescribeRequest(), timeout=10)
        if after.imageio_cpu_seconds > before.imageio_cpu_seconds > 0:
            break
        assert time.monotonic() < deadline
    assert after.cpu_seconds > before.cpu_seconds > 0


def test_image_io_that_is_not_there_has_used_no_processor_time(tmp_path: Path) -> None:
    assert imageio.Imageio(str(tmp_path / "none"), str(tmp_path / "none")).cpu_seconds() == 0


def test_describe_disk(stub: Stub, host: Host, disk: Address, plain: Address) -> None:
    reply = stub.DescribeDisk(agent_pb2.DescribeDiskRequest(ticket=host.ticket(disk, SIZE)), timeout=10)
    assert (reply.size_bytes, reply.dirty_bitmap) == (SIZE, True)
    reply = stub.DescribeDisk(agent_pb2.DescribeDiskRequest(ticket=host.ticket(plain, 64 * MiB)), timeout=10)
    assert (reply.size_bytes, reply.dirty_bitmap) == (64 * MiB, False)


@pytest.mark.parametrize("incremental", [True, False])
def test_list_extents(stub: Stub, host: Host, disk: Address, incremental: bool) -> None:
    with contextlib.closing(nbd.Connection(disk, bitmap=True)) as connection:
        expected = list(connection.extents(0, SIZE, incremental))
    request = agent_pb2.ListExtentsRequest(ticket=host.ticket(disk, SIZE), incremental=incremental)
    (page,) = stub.ListExtents(request, timeout=10)
    assert [(e.start, e.length, e.dirty, e.zero) for e in page.extents] == expected

    request.start, request.length = 96 * KiB, 64 * KiB
    (page,) = stub.ListExtents(request, timeout=10)
    assert (page.extents[0].start, page.extents[-1].start + page.extents[-1].length) == (96 * KiB, 160 * KiB)


def test_extents_come_in_pages(stub: Stub, host: Host) -> None:
    listed = host.directory / "extents"
    listed.write_text(
        "".join(f"{start} 512 {'hole,zero' if start % 1024 else ''}\n" for start in range(0, 3 * MiB, 512))
    )
    with nbd_servers.nbdkit(host.directory, "--filter=extentlist", "memory", "3M", f"extentlist={listed}") as address:
        request = agent_pb2.ListExtentsRequest(ticket=host.ticket(address, 3 * MiB))
        pages = list(stub.ListExtents(request, timeout=10))
    assert [len(page.extents) for page in pages] == [4096, 2048]


def test_a_full_read_is_what_nbdcopy_reads(stub: Stub, host: Host, disk: Address, tmp_path: Path) -> None:
    blocks, summary = read(stub, host.ticket(disk, SIZE))
    assert image_of(blocks, b"\xff" * SIZE) == nbd_servers.copy(disk, tmp_path / "copy.raw")
    assert all(block.xxh3 == (digest.xxh3(block.data) if block.data else b"") for block in blocks)
    assert (summary.blocks, summary.dirty_bytes) == (len(blocks), SIZE)
    assert summary.moved_bytes == sum(len(block.data) for block in blocks)


def test_an_incremental_read_is_what_changed(stub: Stub, host: Host, disk: Address, tmp_path: Path) -> None:
    blocks, summary = read(stub, host.ticket(disk, SIZE), incremental=True)
    assert [(block.start, block.length, block.kind) for block in blocks] == [
        (64 * KiB, 64 * KiB, Block.KIND_DATA),
        (1 * MiB, 128 * KiB, Block.KIND_ZERO),
        (5 * MiB, 512, Block.KIND_DATA),
    ]
    base = b"A" * 2 * MiB + bytes(SIZE - 2 * MiB)
    assert image_of(blocks, base) == nbd_servers.copy(disk, tmp_path / "copy.raw")
    assert summary == agent_pb2.Summary(
        blocks=3, dirty_bytes=192 * KiB + 512, read_bytes=64 * KiB + 512, moved_bytes=64 * KiB + 512
    )


def test_what_the_controller_asks_for_reaches_the_reader(stub: Stub, host: Host, disk: Address) -> None:
    known = agent_pb2.KnownBlock(start=5 * MiB, length=512, xxh3=digest.xxh3(b"C" * 512))
    blocks, _ = read(stub, host.ticket(disk, SIZE), incremental=True, whole_windows=[0], known=[known])
    assert [(block.start, block.length, block.kind) for block in blocks] == [
        (0, 1 * MiB, Block.KIND_DATA),
        (1 * MiB, 128 * KiB, Block.KIND_ZERO),
        (5 * MiB, 512, Block.KIND_SAME),
    ]
    again, _ = read(stub, host.ticket(disk, SIZE), incremental=True, start=1 * MiB)
    assert [(block.start, block.length) for block in again] == [(1 * MiB, 128 * KiB), (5 * MiB, 512)]
    nothing, summary = read(stub, host.ticket(disk, SIZE), start=SIZE)
    assert (nothing, summary) == ([], agent_pb2.Summary())


def test_the_largest_window_fits_a_message(stub: Stub, host: Host, plain: Address) -> None:
    blocks, _ = read(stub, host.ticket(plain, 64 * MiB), window_bytes=8 * MiB)
    assert [len(block.data) for block in blocks] == [8 * MiB] * 8


KNOWN = functools.partial(agent_pb2.KnownBlock, length=512, xxh3=bytes(16))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"window_bytes": 0}, "window_bytes must be a power of two"),
        ({"window_bytes": 128 * KiB}, "window_bytes must be"),
        ({"window_bytes": 16 * MiB}, "window_bytes must be"),
        ({"window_bytes": MiB + 512}, "window_bytes must be"),
        ({"start": SIZE + 1}, "not within the disk"),
        ({"start": 1, "length": SIZE}, "not within the disk"),
        ({"start": 2**64 - 1, "length": 2**64 - 1}, "not within the disk"),
        ({"whole_windows": [512]}, "multiples of window_bytes"),
        ({"whole_windows": [MiB, 0]}, "whole_windows must be in ascending order"),
        ({"whole_windows": [MiB, MiB]}, "whole_windows must be in ascending order"),
        ({"whole_windows": [MiB * number for number in range(65537)]}, "65536 are allowed"),
        ({"known": [KNOWN(start=512), KNOWN(start=0)]}, "known must be in ascending order"),
        ({"known": [KNOWN(start=number) for number in range(65537)]}, "65536 are allowed"),
        ({"known": [KNOWN(start=0, xxh3=b"x")]}, "impossible length or digest"),
        ({"known": [KNOWN(start=0, length=0)]}, "impossible length or digest"),
        ({"known": [KNOWN(start=0, length=2 * MiB)]}, "impossible length or digest"),
    ],
)
def test_requests_that_make_no_sense(
    stub: Stub, host: Host, disk: Address, change: dict[str, object], sentence: str
) -> None:
    error = refusal(lambda: read(stub, host.ticket(disk, SIZE), **change))
    assert type(error) is errors.InvalidRequest
    assert sentence in error.message


@pytest.mark.parametrize(
    "ticket",
    [
        agent_pb2.Ticket(),
        agent_pb2.Ticket(ticket_id=ABSENT),
        agent_pb2.Ticket(ticket_id="../tickets", transfer_id=ABSENT),
        agent_pb2.Ticket(ticket_id="{00000000000040008000000000000000}", transfer_id=ABSENT),
    ],
)
def test_ids_that_are_none(stub: Stub, ticket: agent_pb2.Ticket) -> None:
    error = refusal(lambda: stub.DescribeDisk(agent_pb2.DescribeDiskRequest(ticket=ticket), timeout=10))
    assert type(error) is errors.InvalidRequest
    assert "UUID" in error.message


def test_a_ticket_that_image_io_does_not_know(stub: Stub) -> None:
    ticket = agent_pb2.Ticket(ticket_id=ABSENT, transfer_id=ABSENT)
    error = refusal(lambda: stub.DescribeDisk(agent_pb2.DescribeDiskRequest(ticket=ticket), timeout=10))
    assert type(error) is errors.TicketNotFound
    assert "start a new one" in error.hint


@pytest.mark.parametrize(
    ("change", "cls", "sentence"),
    [
        ({"timeout": 0}, errors.TicketRefused, "has expired"),
        ({"url": "file:///etc/shadow"}, errors.TicketRefused, "local NBD sockets only"),
        ({"url": "nbd:unix:/run/docker.sock"}, errors.TicketRefused, "not in a directory"),
        ({"size": SIZE + 512}, errors.ProtocolError, f"but the export at .* has {SIZE}"),
    ],
)
def test_tickets_that_do_not_allow_it(
    stub: Stub, host: Host, disk: Address, change: dict[str, object], cls: type[errors.Error], sentence: str
) -> None:
    ticket = host.ticket(disk, **{"size": SIZE, **change})  # type: ignore[arg-type]
    for error in (
        refusal(lambda: stub.DescribeDisk(agent_pb2.DescribeDiskRequest(ticket=ticket), timeout=10)),
        refusal(lambda: stub.ListExtents(agent_pb2.ListExtentsRequest(ticket=ticket), timeout=10)),
        refusal(lambda: read(stub, ticket)),
    ):
        assert type(error) is cls
        with pytest.raises(cls, match=sentence):
            raise error
        assert ticket.ticket_id not in str(error)


def test_a_ticket_in_a_form_that_is_not_known_is_left_to_another_transport() -> None:
    with pytest.raises(errors.TicketRefused, match="does not know"):
        imageio._checked(ABSENT, ABSENT, b'{"transfer_id": 7}')


def test_a_ticket_of_another_transfer(stub: Stub, host: Host, disk: Address) -> None:
    ticket = host.ticket(disk, SIZE)
    ticket.transfer_id = ABSENT
    error = refusal(lambda: read(stub, ticket))
    assert type(error) is errors.TicketRefused
    assert "another transfer's" in error.message


def test_no_bitmap(stub: Stub, host: Host, plain: Address) -> None:
    error = refusal(lambda: read(stub, host.ticket(plain, 64 * MiB), incremental=True))
    assert type(error) is errors.BitmapMissing
    assert error.hint == "Read the whole disk instead."


def test_a_disk_whose_server_is_gone(stub: Stub, host: Host) -> None:
    ticket = host.ticket(Address(str(host.directory / "gone.sock"), "sda"), SIZE)
    assert type(refusal(lambda: read(stub, ticket))) is errors.SourceGone


def test_a_disk_that_cannot_be_read(stub: Stub, host: Host) -> None:
    with nbd_servers.nbdkit(
        host.directory, "--filter=error", "pattern", "1M", "error-pread=EIO", "error-pread-rate=100%"
    ) as address:
        error = refusal(lambda: read(stub, host.ticket(address, 1 * MiB)))
    assert type(error) is errors.ReadFailed


def test_more_reads_than_allowed(host: Host, plain: Address, disk: Address) -> None:
    """One is read, one waits in line, the third is refused."""
    with host.serving(max_reads=1) as address, host.client(address) as stub:
        request = agent_pb2.ReadBlocksRequest(ticket=host.ticket(plain, 64 * MiB), window_bytes=WINDOW)
        call = stub.ReadBlocks(request, timeout=20)
        next(call)
        others = [
            stub.ReadBlocks(
                agent_pb2.ReadBlocksRequest(ticket=host.ticket(disk, SIZE), window_bytes=WINDOW), timeout=20
            )
            for _ in range(2)
        ]
        wait_until(lambda: any(other.done() for other in others))
        (refused,) = (other for other in others if other.done())
        (waiting,) = (other for other in others if other is not refused)
        assert type(refusal(lambda: refused)) is errors.Busy
        assert stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 1
        call.cancel()
        assert list(waiting)[-1].summary.dirty_bytes == SIZE
        wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 0)


def test_a_client_that_goes_away_frees_the_disk(stub: Stub, host: Host, plain: Address) -> None:
    ticket = host.ticket(plain, 64 * MiB)
    call = stub.ReadBlocks(agent_pb2.ReadBlocksRequest(ticket=ticket, window_bytes=WINDOW), timeout=20)
    next(call)
    assert any(thread.name.startswith("reader-") for thread in threading.enumerate())
    call.cancel()
    wait_until(lambda: not any(thread.name.startswith("reader-") for thread in threading.enumerate()))
    read(stub, ticket)  # at once: the call waits for the connections, if need be


def test_a_stalled_client_that_goes_away_frees_the_disk(stub: Stub, host: Host, plain: Address) -> None:
    """The storage hangs, nobody waits for it any more."""
    with nbd_servers.nbdkit(host.directory, "--filter=delay", "pattern", "8M", "delay-read=1") as address:
        ticket = host.ticket(address, 8 * MiB)
        call = stub.ReadBlocks(agent_pb2.ReadBlocksRequest(ticket=ticket, window_bytes=WINDOW), timeout=20)
        wait_until(lambda: any(thread.name.startswith("reader-") for thread in threading.enumerate()))
        call.cancel()
        wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=5).active_reads == 0)
        assert not any(thread.name.startswith("reader-") for thread in threading.enumerate())


def test_image_io_hears_of_the_ticket_while_its_disk_is_read(host: Host, plain: Address) -> None:
    with host.serving(keepalive_seconds=0.05) as address, host.client(address) as stub:
        ticket = host.ticket(plain, 64 * MiB)
        before = host.imageio.get_ticket(ticket.ticket_id)
        assert before is not None
        call = stub.ReadBlocks(agent_pb2.ReadBlocksRequest(ticket=ticket, window_bytes=WINDOW), timeout=20)
        next(call)

        def lives_longer() -> bool:
            now = host.imageio.get_ticket(ticket.ticket_id)
            assert before is not None
            assert now is not None
            return int(str(now["expires"])) > int(str(before["expires"]))

        wait_until(lives_longer)
        call.cancel()
    wait_until(lambda: (host.imageio.get_ticket(ticket.ticket_id) or {})["connections"] == 0)


def test_only_a_controller_is_served(host: Host) -> None:
    with host.serving() as address:
        # Another host's agent: its certificate is for servers, so TLS refuses it.
        with (
            host.client(address, host.pki.agent("host-2", "127.0.0.2")) as stub,
            pytest.raises(grpc.RpcError) as caught,
        ):
            stub.Describe(agent_pb2.DescribeRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        # One that may be used for clients too, which the CA never makes, has still the wrong role.
        both = host.pki._issue(pki.AGENT_ROLE, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        with host.client(address, both) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.Describe(agent_pb2.DescribeRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert caught.value.details() == "The agent serves only Blockferry's controller."
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
            Stub(channel).Describe(agent_pb2.DescribeRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        ca_only = grpc.ssl_channel_credentials(host.pki.trusted)
        with grpc.secure_channel(address, ca_only) as channel, pytest.raises(grpc.RpcError) as caught:
            Stub(channel).Describe(agent_pb2.DescribeRequest(), timeout=5)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_unix_socket_is_for_its_owner(host: Host, disk: Address) -> None:
    path = host.directory / "agent.sock"
    with host.serving(listen=[f"unix:{path}"]), grpc.insecure_channel(f"unix:{path}") as channel:
        assert path.stat().st_mode & 0o777 == 0o600
        assert read(Stub(channel), host.ticket(disk, SIZE))[1].dirty_bytes == SIZE


def test_the_log_names_transfers_and_no_tickets(
    stub: Stub, host: Host, disk: Address, caplog: pytest.LogCaptureFixture
) -> None:
    good, expired = host.ticket(disk, SIZE), host.ticket(disk, SIZE, timeout=0)
    with caplog.at_level(logging.DEBUG):
        read(stub, good)
        refusal(lambda: read(stub, expired))
    assert f"transfer {good.transfer_id}: bytes 0 to {SIZE}: {SIZE} dirty, " in caplog.text
    assert f"The ticket of transfer {expired.transfer_id} has expired." in caplog.text
    for ticket in (good, expired):
        assert ticket.ticket_id[:8] not in caplog.text


def test_a_fault_of_the_agent_ends_in_a_sentence_and_its_traceback_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def ticket(self, ticket_id: str, transfer_id: str) -> None:
            raise ZeroDivisionError("secret detail")

        def touch(self, ticket_id: str) -> None: ...

    broken = Broken()
    gate = Gate(1)
    disks = Disks(broken, KeepAlive(broken.touch, 20), gate, [], 1, Throttle(0))  # type: ignore[arg-type]
    service = Service(disks, gate, Netcat(disks, 1, [], range(0), None, clear_text=False), broken, Callers(None), None)  # type: ignore[arg-type]
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    serve(service, server)
    server.add_insecure_port(f"unix:{tmp_path}/s")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            error = refusal(lambda: Stub(channel).DescribeDisk(agent_pb2.DescribeDiskRequest(), timeout=5))
    finally:
        server.stop(0).wait()
    assert type(error) is errors.Error
    assert str(error) == "The agent failed unexpectedly (ZeroDivisionError). See its log on the host."
    assert "secret detail" in caplog.text
