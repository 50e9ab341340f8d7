"""WriteBlocks and CompareBlocks at their worst: callers that lie, break off, fall silent, or are two at one disk."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockferry_agent import digest, errors, inbox
from blockferry_agent.nbd import Address
from blockferry_agent.units import KiB, MiB
from blockferry_proto import agent_pb2
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.test_agent_service import ABSENT, Stub, refusal, wait_until

SIZE = 3 * MiB + 512
WINDOW = 256 * KiB
BEFORE = b"\x11"

Request = agent_pb2.WriteBlocksRequest
Block = agent_pb2.Block


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def stub(host: Host) -> Iterator[Stub]:
    with host.serving(max_reads=2) as address, host.client(address) as client:
        yield client


class Disk:
    """A disk full of one byte, as vdsm serves it."""

    def __init__(self, host: Host, path: Path, address: Address) -> None:
        self._host = host
        self._path = path
        self._address = address

    def ticket(self, *ops: str) -> agent_pb2.Ticket:
        return self._host.ticket(self._address, SIZE, ops=list(ops or ("write",)))

    @property
    def content(self) -> bytes:
        return self._path.read_bytes()


@contextlib.contextmanager
def served(host: Host, path: Path) -> Iterator[Disk]:
    path.write_bytes(BEFORE * SIZE)
    address = Address(str(host.directory / f"{path.stem}.sock"), "")
    command = ["qemu-nbd", f"--socket={address.path}", "--persistent", "--shared=16", "--format=raw", str(path)]
    with nbd_servers.served(command, address):
        yield Disk(host, path, address)


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[Disk]:
    with served(host, tmp_path / "disk.raw") as found:
        yield found


def target(ticket: agent_pb2.Ticket, window: int = WINDOW) -> Request:
    return Request(target=agent_pb2.WriteTarget(ticket=ticket, window_bytes=window))


def data(start: int, content: bytes, **changes: object) -> Request:
    fields = {"kind": Block.KIND_DATA, "start": start, "length": len(content), "xxh3": digest.xxh3(content)}
    return Request(block=Block(**{**fields, "data": content, **changes}))  # type: ignore[arg-type]


def zero(start: int, length: int) -> Request:
    return Request(block=Block(kind=Block.KIND_ZERO, start=start, length=length))


def end(blocks: int) -> Request:
    return Request(end=agent_pb2.WriteEnd(blocks=blocks))


def write(stub: Stub, requests: Iterable[Request]) -> agent_pb2.WriteSummary:
    """Write to the end; return what the agent says it did."""
    replies = list(stub.WriteBlocks(iter(requests), timeout=30))
    positions = [reply.position for reply in replies[:-1]]
    assert positions == sorted(positions)
    assert replies[-1].WhichOneof("reply") == "summary"
    return replies[-1].summary


def assert_free(stub: Stub) -> None:
    """Nothing that a call held is held any more."""
    wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=10).active_reads == 0)


A, B = (bytes([byte]) * WINDOW for byte in b"AB")


@pytest.mark.parametrize(
    "requests",
    [
        lambda ticket: [],
        lambda ticket: [end(0)],
        lambda ticket: [data(0, A), end(1)],
        lambda ticket: [Request()],
        lambda ticket: [target(ticket), target(ticket), end(0)],
        lambda ticket: [target(ticket), Request(), end(0)],
        lambda ticket: [target(ticket), data(0, A)],
        lambda ticket: [target(ticket), data(0, A), end(2)],
        lambda ticket: [target(ticket), data(0, A), end(0)],
        lambda ticket: [target(ticket, 0), end(0)],
        lambda ticket: [target(ticket, 16 * MiB), end(0)],
        lambda ticket: [target(ticket, WINDOW + 1), end(0)],
        lambda ticket: [Request(target=agent_pb2.WriteTarget(window_bytes=WINDOW)), end(0)],
    ],
)
def test_streams_that_are_none(stub: Stub, disk: Disk, requests: Callable[[agent_pb2.Ticket], list[Request]]) -> None:
    error = refusal(lambda: stub.WriteBlocks(iter(requests(disk.ticket())), timeout=30))
    assert isinstance(error, errors.InvalidRequest)
    assert set(disk.content) <= {BEFORE[0], A[0]}
    assert_free(stub)


@pytest.mark.parametrize(
    "bad",
    [
        data(0, A, xxh3=digest.xxh3(B)),
        data(0, A, xxh3=b""),
        data(0, A, length=WINDOW - 512),
        data(0, A, length=0),
        data(0, A, data=b""),
        data(0, A, data=b"", zstd=b"\x28\xb5\x2f\xfd" + bytes(40)),
        data(0, A, data=b"", zstd=b"no frame"),
        data(0, A + A),
        data(SIZE - 512, A),
        data(2**63, A),
        data(0, A, kind=Block.KIND_SAME),
        data(0, A, kind=Block.KIND_UNSPECIFIED),
        zero(0, 0),
        zero(0, SIZE + 1),
        zero(SIZE, 1),
        zero(2**64 - 1, 2**64 - 1),
    ],
    ids=lambda bad: f"{bad.block.kind} {bad.block.start} {bad.block.length} {len(bad.block.data)}",
)
def test_blocks_that_cannot_be_true_are_not_written(stub: Stub, disk: Disk, bad: Request) -> None:
    error = refusal(lambda: stub.WriteBlocks(iter([target(disk.ticket()), bad, end(1)]), timeout=30))
    assert isinstance(error, errors.InvalidRequest)
    assert disk.content == BEFORE * SIZE
    assert_free(stub)


@pytest.mark.parametrize("second", [data(0, B), data(WINDOW - 512, B), zero(WINDOW - 1, 512), zero(0, SIZE)])
def test_blocks_come_in_order(stub: Stub, disk: Disk, second: Request) -> None:
    error = refusal(lambda: stub.WriteBlocks(iter([target(disk.ticket()), data(0, A), second, end(2)]), timeout=30))
    assert isinstance(error, errors.InvalidRequest)
    assert disk.content in (A + BEFORE * (SIZE - WINDOW), BEFORE * SIZE)


@pytest.fixture(scope="module")
def raw(host: Host, stub: Stub) -> Iterator[grpc.StreamStreamMultiCallable[bytes, bytes]]:
    """WriteBlocks for messages that no library made."""
    own = host.pki.controller()
    credentials = grpc.ssl_channel_credentials(host.pki.trusted, own.key, own.certificate)
    address = json.loads((host.directory / "agent.json").read_text())["listen"][0]
    with grpc.secure_channel(address, credentials) as channel:
        yield channel.stream_stream("/blockferry.v1.Agent/WriteBlocks")


@given(messages=st.lists(st.binary(max_size=200) | st.binary(max_size=200).map(b"\x0a".__add__), max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(
    raw: grpc.StreamStreamMultiCallable[bytes, bytes], disk: Disk, messages: list[bytes]
) -> None:
    """Behind a true target; and nothing of them is written, for no digest is right by chance."""
    error = refusal(lambda: raw(iter([target(disk.ticket()).SerializeToString(), *messages]), timeout=30))
    assert isinstance(error, errors.InvalidRequest)
    assert disk.content == BEFORE * SIZE


def requests_for(ticket: agent_pb2.Ticket) -> list[Request]:
    places = range(0, SIZE - 512, WINDOW)
    blocks = [data(start, bytes([number + 1]) * WINDOW) for number, start in enumerate(places)]
    return [target(ticket), *blocks, zero(SIZE - 512, 512), end(len(blocks) + 1)]


WHOLE = b"".join(bytes([number + 1]) * WINDOW for number in range(SIZE // WINDOW)) + bytes(512)


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["ended", "cancelled"])
def test_a_stream_that_breaks_off_anywhere_is_written_from_its_last_position(
    stub: Stub, disk: Disk, is_cancelled: bool
) -> None:
    requests = requests_for(disk.ticket())
    for taken in range(len(requests)):
        go_on = threading.Event()

        def messages(taken: int = taken, go_on: threading.Event = go_on) -> Iterator[Request]:
            yield from requests[:taken]
            if is_cancelled:
                go_on.wait(20)

        call = stub.WriteBlocks(messages(), timeout=30)
        positions: list[int] = []
        with contextlib.suppress(grpc.RpcError):
            if is_cancelled:
                # After whatever it has done by now.
                threading.Timer(0.05, call.cancel).start()
            for reply in call:
                assert reply.WhichOneof("reply") == "position", "an unfinished stream has no summary"
                positions.append(reply.position)
        go_on.set()
        assert call.code() is not grpc.StatusCode.OK
        assert_free(stub)
        reached = max(positions, default=0)
        assert disk.content[:reached] == WHOLE[:reached]
    assert write(stub, requests).blocks == len(requests) - 2
    assert disk.content == WHOLE


def test_callers_that_never_say_what_they_want_are_hung_up_on(
    stub: Stub, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take threads, and so would keep everybody out."""
    monkeypatch.setattr(inbox, "PATIENCE", 1.0)
    silence = threading.Event()

    def say_nothing() -> Iterator[Request]:
        silence.wait(60)
        yield from ()

    calls = [stub.WriteBlocks(say_nothing(), timeout=60) for _ in range(12)]
    try:
        assert write(stub, requests_for(disk.ticket())).blocks == len(WHOLE) // WINDOW + 1
        for call in calls:
            assert isinstance(refusal(lambda call=call: call), errors.InvalidRequest)  # type: ignore[misc]
    finally:
        silence.set()


def test_a_caller_that_falls_silent_is_alone_with_it(stub: Stub, disk: Disk, host: Host, tmp_path: Path) -> None:
    silence = threading.Event()

    def stall() -> Iterator[Request]:
        yield target(disk.ticket())
        yield data(0, A)
        silence.wait(60)

    call = stub.WriteBlocks(stall(), timeout=60)
    wait_until(lambda: stub.Describe(agent_pb2.DescribeRequest(), timeout=10).active_reads == 1)
    with served(host, tmp_path / "other.raw") as other:
        write(stub, requests_for(other.ticket()))
        assert other.content == WHOLE
    call.cancel()
    silence.set()
    assert_free(stub)


def test_two_writers_of_one_disk_write_what_they_were_told(stub: Stub, disk: Disk) -> None:
    """The engine locks a disk for its transfer, so this does not happen; if it does, every block is one's or another's."""
    contents = [bytes([byte]) * WINDOW for byte in b"XY"]
    places = range(0, SIZE - 512, WINDOW)
    done: list[agent_pb2.WriteSummary] = []

    def write_all(content: bytes) -> None:
        blocks = [data(start, content) for start in places]
        done.append(write(stub, [target(disk.ticket()), *blocks, end(len(blocks))]))

    writers = [threading.Thread(target=write_all, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [summary.blocks for summary in done] == [len(places)] * 2
    assert all(disk.content[start : start + WINDOW] in contents for start in places)


def expected(start: int, content: bytes, **changes: object) -> agent_pb2.ExpectedRange:
    fields = {"start": start, "length": len(content), "xxh3": digest.xxh3(content), **changes}
    return agent_pb2.ExpectedRange(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [expected(0, A, xxh3=b"short")],
        [expected(0, A, length=0)],
        [expected(0, A, length=8 * MiB + 1)],
        [expected(SIZE - 512, A)],
        [expected(2**64 - 1, A, length=2**64 - 1, xxh3=b"")],
        [expected(0, A), expected(0, A)],
        [expected(0, A), expected(WINDOW - 512, A)],
        [expected(WINDOW, A), expected(0, A)],
        [expected(start, b"x", xxh3=b"") for start in range(65537)],
    ],
)
def test_comparisons_that_make_no_sense(stub: Stub, disk: Disk, ranges: list[agent_pb2.ExpectedRange]) -> None:
    request = agent_pb2.CompareBlocksRequest(ticket=disk.ticket("read"), ranges=ranges)
    assert isinstance(refusal(lambda: stub.CompareBlocks(request, timeout=30)), errors.InvalidRequest)
    assert_free(stub)


def test_a_comparison_that_is_dropped_frees_the_disk(stub: Stub, disk: Disk) -> None:
    ranges = [expected(start, A) for start in range(0, SIZE - 512, WINDOW)]
    for _ in range(5):
        call = stub.CompareBlocks(agent_pb2.CompareBlocksRequest(ticket=disk.ticket("read"), ranges=ranges), timeout=30)
        call.cancel()
    assert_free(stub)


@pytest.mark.parametrize("method", ["WriteBlocks", "CompareBlocks"])
def test_tickets_that_do_not_allow_it(stub: Stub, disk: Disk, method: str) -> None:
    def ask(ticket: agent_pb2.Ticket) -> errors.Error:
        if method == "WriteBlocks":
            return refusal(lambda: stub.WriteBlocks(iter([target(ticket), end(0)]), timeout=30))
        request = agent_pb2.CompareBlocksRequest(ticket=ticket, ranges=[expected(0, A)])
        return refusal(lambda: stub.CompareBlocks(request, timeout=30))

    wrong = disk.ticket("read" if method == "WriteBlocks" else "write")
    assert isinstance(ask(agent_pb2.Ticket(ticket_id=ABSENT, transfer_id=ABSENT)), errors.TicketNotFound)
    assert isinstance(ask(agent_pb2.Ticket(ticket_id=wrong.ticket_id, transfer_id=ABSENT)), errors.TicketRefused)
    if method == "WriteBlocks":
        assert isinstance(ask(wrong), errors.TicketRefused)
    assert_free(stub)
