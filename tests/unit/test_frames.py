"""The frames of the netcat transport: what is sent comes back as it was, and nothing else is taken."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockferry_agent import errors, frames, requests, status
from blockferry_agent.blocks import MAX_WINDOW, Block, Kind, Summary
from blockferry_agent.link import Broken
from blockferry_proto import agent_pb2

WINDOW = 4096
LARGEST = max(WINDOW, frames.MAX_ERROR, frames.MAX_SUMMARY, frames.HEADER.size)


class Stream:
    """Bytes that have come, and then the end. Nobody may ask for more at once than a frame can hold."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def receive(self, length: int) -> bytes:
        assert 0 <= length <= LARGEST
        end = self.position + length
        if end > len(self.data):
            raise Broken("the end")
        taken, self.position = self.data[self.position : end], end
        return taken


def reader(data: bytes) -> frames.Reader:
    return frames.Reader(Stream(data).receive, WINDOW, "the agent")


def everything(data: bytes) -> list[Block | Summary]:
    """Read until the summary."""
    read, received = reader(data), []
    while not received or not isinstance(received[-1], Summary):
        received.append(read.next())
    assert read.received == len(data)
    return received


STARTS = st.integers(0, 2**62 - 1)
DIGESTS = st.binary(min_size=16, max_size=16)
DATA = st.builds(
    lambda start, data, digest: Block(start, len(data), Kind.DATA, digest, data),
    STARTS,
    st.binary(min_size=1, max_size=WINDOW),
    DIGESTS,
)
COMPRESSED = st.builds(
    lambda start, data, digest: Block(start, len(data) + 1, Kind.DATA, digest, data, compressed=True),
    STARTS,
    st.binary(min_size=1, max_size=WINDOW - 1),
    DIGESTS,
)
ZERO = st.builds(lambda start, length: Block(start, length, Kind.ZERO), STARTS, st.integers(1, 2**62))
SAME = st.builds(lambda start, length: Block(start, length, Kind.SAME), STARTS, st.integers(1, WINDOW))
COUNTS = st.integers(0, 2**64 - 1)
SUMMARIES = st.builds(Summary, COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 1e6))


@given(st.lists(st.one_of(DATA, COMPRESSED, ZERO, SAME), max_size=8), SUMMARIES)
def test_what_is_sent_comes_back(blocks: list[Block], summary: Summary) -> None:
    sent = b"".join(b"".join(frames.of_block(block)) for block in blocks) + frames.of_summary(summary)
    assert everything(sent) == [*blocks, summary]


@pytest.mark.parametrize("cls", status.CODES)
def test_errors_come_back_with_their_class_and_hint(cls: type[errors.Error]) -> None:
    with pytest.raises(cls) as caught:
        reader(frames.of_error(cls("Größe 5\0 is wrong.", "Mend it: 100 %."))).next()
    assert type(caught.value) is cls
    assert (caught.value.message, caught.value.hint) == ("Größe 5  is wrong.", "Mend it: 100 %.")


def test_an_error_without_end_is_cut() -> None:
    with pytest.raises(errors.Busy) as caught:
        reader(frames.of_error(errors.Busy("ü" * 10**6, "ß" * 10**6))).next()
    assert caught.value.message.startswith("ü" * 1000)
    assert len(caught.value.message) + len(caught.value.hint) < frames.MAX_ERROR


@given(st.binary(max_size=200))
def test_garbage_is_no_frame(garbage: bytes) -> None:
    with pytest.raises((errors.Error, Broken)):
        everything(garbage)


@given(
    st.binary(min_size=1, max_size=1),
    st.binary(min_size=1, max_size=1),
    st.lists(
        st.sampled_from([0, 1, 16, WINDOW, WINDOW + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1]), min_size=2, max_size=2
    ),
    st.sampled_from([0, 1, WINDOW, WINDOW + 1, frames.MAX_SUMMARY + 1, frames.MAX_ERROR + 1, 2**32 - 1]),
    st.sampled_from([bytes(16), b"x" * 16]),
    st.binary(max_size=64),
)
def test_a_header_that_is_nearly_right_costs_no_memory(
    kind: bytes, flags: bytes, place: list[int], size: int, digest: bytes, payload: bytes
) -> None:
    """`Stream` watches over what is asked for at once."""
    header = b"BFRY" + kind + flags + b"\0\0" + struct.pack(">QQI", *place, size) + digest
    try:
        received = reader(header + payload).next()
    except (errors.Error, Broken):
        return
    if isinstance(received, Block) and received.kind is not Kind.ZERO:
        assert 0 < received.length <= WINDOW
        assert len(received.data) <= received.length


def test_a_stream_that_ends_anywhere_is_broken() -> None:
    sent = b"".join(
        [
            *frames.of_block(Block(0, 40, Kind.DATA, b"d" * 16, b"x" * 40)),
            *frames.of_block(Block(64, 2**40, Kind.ZERO)),
            frames.of_summary(Summary(2, 3, 4, 5, 0.5)),
        ]
    )
    assert len(everything(sent)) == 3
    for length in range(len(sent)):
        with pytest.raises(Broken):
            everything(sent[:length])


def header(
    magic: bytes = b"BFRY",
    kind: int = 1,
    flags: int = 0,
    zero: int = 0,
    start: int = 0,
    length: int = 4,
    size: int = 4,
    digest: bytes = bytes(16),
) -> bytes:
    return struct.pack(">4sBBHQQI16s", magic, kind, flags, zero, start, length, size, digest)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (header(magic=b"HTTP"), "something else than a frame"),
        (header(zero=1), "something else than a frame"),
        (header(kind=0), "a frame of kind 0"),
        (header(kind=6), "a frame of kind 6"),
        (header(length=0, size=0), "a block of 0 bytes"),
        (header(length=WINDOW + 1, size=WINDOW + 1), f"a block of {WINDOW + 1} bytes"),
        (header(start=2**63 - 1), "a block of 4 bytes"),
        (header(size=3), "3 bytes as a block of 4"),
        (header(size=2**32 - 1), "4294967295 bytes as a block of 4"),
        (header(flags=1, size=4), "4 bytes as a block of 4"),
        (header(flags=1, size=0), "0 bytes as a block of 4"),
        (header(flags=2), "4 bytes as a block of 4"),
        (header(kind=2, size=1), "a block of kind zero with a payload"),
        (header(kind=2, size=0, flags=1), "a block of kind zero with a payload"),
        (header(kind=2, size=0, digest=b"x" * 16), "a block of kind zero with a payload"),
        (header(kind=3, length=WINDOW + 1, size=0), f"a block of {WINDOW + 1} bytes"),
        (header(kind=4, length=0, size=frames.MAX_SUMMARY + 1), "where 256 are the most"),
        (header(kind=4, size=0), "a frame of kind 4"),
        (header(kind=4, length=0, size=4) + b"\xff" * 4, "a summary that is none"),
        (header(kind=5, length=0, size=frames.MAX_ERROR + 1), "where 8192 are the most"),
        (header(kind=5, length=0, size=0), "an error that nobody knows"),
        (header(kind=5, length=0, size=2) + b"\xffx", "an error that nobody knows"),
        (header(kind=5, length=0, flags=1, size=2), "a frame of kind 5"),
    ],
)
def test_frames_that_cannot_be(sent: bytes, sentence: str) -> None:
    with pytest.raises(errors.ProtocolError, match=f"The agent sent .*{sentence}"):
        reader(sent + b"\1\2\3\4").next()


@given(
    st.builds(
        agent_pb2.ReadBlocksRequest,
        start=COUNTS,
        whole_windows=st.lists(COUNTS, max_size=5),
        known=st.lists(st.builds(agent_pb2.KnownBlock, start=COUNTS, xxh3=DIGESTS), max_size=5),
    )
)
def test_a_request_comes_back(message: agent_pb2.ReadBlocksRequest) -> None:
    stream = Stream(frames.of_request(message))
    assert frames.receive_request(stream.receive) == message


def test_the_largest_request_that_is_allowed_has_a_place() -> None:
    known = agent_pb2.KnownBlock(start=2**64 - 1, length=MAX_WINDOW, xxh3=bytes(16))
    message = agent_pb2.ReadBlocksRequest(
        ticket=agent_pb2.Ticket(ticket_id="x" * 36, transfer_id="x" * 36),
        start=2**64 - 1,
        length=2**64 - 1,
        window_bytes=2**32 - 1,
        whole_windows=[2**64 - 1] * requests.MAX_LISTED,
        known=[known] * requests.MAX_LISTED,
        bytes_per_second=2**64 - 1,
    )
    assert 0.8 * frames.MAX_REQUEST < message.ByteSize() < frames.MAX_REQUEST


@pytest.mark.parametrize("length", [frames.MAX_REQUEST + 1, 2**32 - 1])
def test_a_request_that_is_too_long_is_refused_before_it_is_read(length: int) -> None:
    with pytest.raises(errors.InvalidRequest, match=f"{length} bytes is too long"):
        frames.receive_request(Stream(frames.LENGTH.pack(length)).receive)


def test_a_request_that_is_none() -> None:
    with pytest.raises(errors.InvalidRequest, match="is no request"):
        frames.receive_request(Stream(frames.LENGTH.pack(3) + b"\xff" * 3).receive)
