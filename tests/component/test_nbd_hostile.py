"""The NBD client against servers that lie, stop half-way, or say anything at all."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockferry_agent import errors, nbd
from blockferry_agent.source import Extent
from blockferry_agent.units import KiB, MiB
from tests.component import nbd_servers as server
from tests.component.nbd_servers import ALLOCATION, ALLOCATION_ID, BITMAP, BITMAP_ID, GO, LIST, SET, STRUCTURED_REPLY

SIZE = 1 * MiB


def connect(directory: Path, script: bytes, bitmap: bool = False) -> nbd.Connection:
    with server.scripted(directory, script) as address:
        connection = nbd.Connection(address, bitmap, handshake_timeout=2, timeout=2)
        connection.close()
        return connection


def read(directory: Path, script: bytes, start: int, length: int) -> bytes:
    buffer = bytearray(b"\xff" * length)
    with (
        server.scripted(directory, server.handshake(SIZE) + script) as address,
        contextlib.closing(nbd.Connection(address, handshake_timeout=2, timeout=2)) as connection,
    ):
        connection.readinto(start, buffer)
    return bytes(buffer)


def extents(directory: Path, script: bytes, start: int = 0, length: int = SIZE, bitmap: bool = False) -> list[Extent]:
    with (
        server.scripted(directory, server.handshake(SIZE, bitmap) + script) as address,
        contextlib.closing(nbd.Connection(address, bitmap, handshake_timeout=2, timeout=2)) as connection,
    ):
        return list(connection.extents(start, length, incremental=bitmap))


def test_an_honest_script(tmp_path: Path) -> None:
    """The scripts themselves are right: all below differ from this in one thing."""
    assert connect(tmp_path, server.handshake(SIZE)).size == SIZE
    assert connect(tmp_path, server.handshake(SIZE, bitmap=True), bitmap=True).has_bitmap
    assert read(tmp_path, server.data(8, b"abcd"), 8, 4) == b"abcd"
    assert extents(tmp_path, server.status(ALLOCATION_ID, (SIZE, 3))) == [Extent(0, SIZE, True, True)]


AFTER_GREETING = server.greeting() + server.ack(STRUCTURED_REPLY)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="another protocol"),
        pytest.param(b"NBDMAGIC" + bytes(10), id="old style"),
        pytest.param(server.greeting(flags=0), id="not fixed newstyle"),
        pytest.param(server.greeting() + bytes(20), id="no reply magic"),
        pytest.param(server.greeting() + server.ack(GO), id="reply to another option"),
        pytest.param(server.greeting() + server.reply(STRUCTURED_REPLY, 1, b"x"), id="ACK with payload"),
        pytest.param(server.greeting() + server.reply(STRUCTURED_REPLY, 99), id="unknown reply"),
        pytest.param(AFTER_GREETING + server.ack(SET), id="no context"),
        pytest.param(AFTER_GREETING + server.context(SET, 1, "x:y") + server.ack(SET), id="another context"),
        pytest.param(AFTER_GREETING + server.reply(SET, 4, b"abcd"), id="context without name"),
        pytest.param(AFTER_GREETING + server.reply(SET, 4, bytes(5000)), id="endless name"),
        pytest.param(AFTER_GREETING + server.reply(SET, 4, b"abcd\xff\xff"), id="name that is no text"),
        pytest.param(AFTER_GREETING + struct.pack(">QIII", 0x0003E889045565A9, SET, 4, 2**32 - 1), id="reply of 4 GiB"),
        pytest.param(AFTER_GREETING + server.context(SET, 1, ALLOCATION) * 100, id="endless replies"),
        pytest.param(server.contexts(False) + server.ack(GO), id="no export"),
        pytest.param(server.contexts(False) + server.export(2**63) + server.ack(GO), id="impossible size"),
        pytest.param(server.contexts(False) + server.export(SIZE) * 2 + server.ack(GO), id="two exports"),
        pytest.param(server.contexts(False) + server.reply(GO, 3, b"\0"), id="half an info type"),
        pytest.param(server.contexts(False) + server.reply(GO, 3, b"\0\0abc"), id="half an export"),
    ],
)
def test_a_handshake_that_makes_no_sense(tmp_path: Path, script: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        connect(tmp_path, script)


def test_a_server_without_structured_replies_is_left_to_another_transport(tmp_path: Path) -> None:
    with pytest.raises(errors.TicketRefused, match="not supported"):
        connect(tmp_path, server.greeting() + server.reply(STRUCTURED_REPLY, 1 << 31 | 1))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(server.context(SET, 1, ALLOCATION), id="one missing"),
        pytest.param(server.context(SET, 1, ALLOCATION) * 2, id="one twice"),
        pytest.param(server.context(SET, 1, ALLOCATION) + server.context(SET, 1, BITMAP), id="same id"),
    ],
)
def test_contexts_that_were_not_asked_for(tmp_path: Path, answer: bytes) -> None:
    script = AFTER_GREETING + server.context(LIST, 0, BITMAP) + server.ack(LIST) + answer + server.ack(SET)
    with pytest.raises(errors.ProtocolError, match="other meta contexts"):
        connect(tmp_path, script, bitmap=True)


def test_a_listed_context_that_is_no_bitmap(tmp_path: Path) -> None:
    script = AFTER_GREETING + server.context(LIST, 0, ALLOCATION) + server.ack(LIST)
    with pytest.raises(errors.ProtocolError, match="nobody asked for"):
        connect(tmp_path, script, bitmap=True)


def test_unknown_infos_are_skipped(tmp_path: Path) -> None:
    script = server.contexts(False) + server.reply(GO, 3, b"\0\x07whatever") + server.export(SIZE) + server.ack(GO)
    assert connect(tmp_path, script).size == SIZE


@pytest.mark.parametrize("length", range(0, len(server.handshake(SIZE, bitmap=True)), 7))
def test_a_handshake_that_ends_anywhere(tmp_path: Path, length: int) -> None:
    with pytest.raises(errors.SourceGone):
        connect(tmp_path, server.handshake(SIZE, bitmap=True)[:length], bitmap=True)


@pytest.mark.parametrize("length", [0, 10, 18, 30])
def test_a_handshake_that_stops(tmp_path: Path, length: int) -> None:
    started = time.monotonic()
    with (
        server.scripted(tmp_path, server.handshake(SIZE)[:length], hang=True) as address,
        pytest.raises(errors.SourceGone, match="does not answer"),
    ):
        nbd.Connection(address, handshake_timeout=0.2)
    assert time.monotonic() - started < 8


def test_chunks_in_any_order_and_holes(tmp_path: Path) -> None:
    half = 256 * KiB
    script = (
        server.data(half + 100, b"C" * (half - 100), handle=2, flags=0)
        + server.data(0, b"A" * 100, handle=1, flags=0)
        + server.hole(half, 100, handle=2)
        + server.hole(100, half - 200, handle=1, flags=0)
        + server.data(half - 100, b"B" * 100, handle=1, flags=0)
        + server.chunk(0, handle=1)
    )
    assert read(tmp_path, script, 0, 2 * half) == (
        b"A" * 100 + bytes(half - 200) + b"B" * 100 + bytes(100) + b"C" * (half - 100)
    )


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(bytes(64), id="no magic"),
        pytest.param(struct.pack(">IIQ", 0x67446698, 0, 1) + b"abcdefgh", id="simple reply"),
        pytest.param(server.data(8, b"abcd", handle=7), id="unknown handle"),
        pytest.param(server.data(7, b"abcd"), id="starts before"),
        pytest.param(server.data(2**64 - 4, b"abcd"), id="starts far away"),
        pytest.param(server.data(9, b"abcd"), id="ends behind"),
        pytest.param(server.data(8, b"abcdefgh"), id="too long"),
        pytest.param(server.chunk(1, b"", length=2**32 - 1), id="4 GiB of data"),
        pytest.param(server.chunk(1, bytes(7)), id="half an offset"),
        pytest.param(server.data(8, b""), id="no data"),
        pytest.param(server.data(8, b"ab"), id="a gap at the end"),
        pytest.param(server.data(10, b"cd"), id="a gap at the start"),
        pytest.param(server.data(8, b"ab", flags=0) + server.data(8, b"ab"), id="the same twice"),
        pytest.param(server.data(8, b"abcd", flags=0) + server.data(8, b"abcd"), id="all twice"),
        pytest.param(server.chunk(0), id="nothing at all"),
        pytest.param(server.chunk(0, b"x"), id="nothing with a payload"),
        pytest.param(server.chunk(0, flags=0), id="nothing, to be continued"),
        pytest.param(server.hole(8, 0), id="empty hole"),
        pytest.param(server.hole(8, 2**32 - 1), id="4 GiB of hole"),
        pytest.param(server.chunk(2, bytes(11)), id="half a hole"),
        pytest.param(server.status(ALLOCATION_ID, (4, 0)), id="a block status"),
        pytest.param(server.chunk(99, b"abcd"), id="unknown chunk"),
        pytest.param(server.chunk(0x8001, b"abc"), id="half an error"),
        pytest.param(server.failure(0), id="error without number"),
        pytest.param(server.chunk(0x8001, struct.pack(">IH", 5, 100)), id="error text that is not there"),
        pytest.param(server.chunk(0x8001, b"", length=2**31), id="error of 2 GiB"),
        pytest.param(server.failure(5, flags=0) * 2000, id="endless errors"),
    ],
)
def test_a_read_that_is_answered_with_nonsense(tmp_path: Path, script: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        read(tmp_path, script, 8, 4)


def test_errors_say_what_the_server_said(tmp_path: Path) -> None:
    with pytest.raises(errors.ReadFailed, match=r"bytes 8 to 12: Input/output error \(bad sector\)"):
        read(tmp_path, server.failure(5, b"bad\x1b\n sector"), 8, 4)
    with pytest.raises(errors.SourceGone, match="shutdown"):
        read(tmp_path, server.failure(108), 8, 4)


def test_an_error_that_is_not_the_last_chunk(tmp_path: Path) -> None:
    with pytest.raises(errors.ReadFailed, match="Input/output error"):
        read(tmp_path, server.failure(5, flags=0) + server.chunk(0), 8, 4)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(server.status(ALLOCATION_ID), id="no runs"),
        pytest.param(server.status(ALLOCATION_ID, (0, 0)), id="a run without length"),
        pytest.param(server.status(99, (SIZE, 0)), id="another context"),
        pytest.param(server.status(ALLOCATION_ID, (SIZE, 0), flags=0) * 2, id="a context twice"),
        pytest.param(server.chunk(5, bytes(11)), id="half a run"),
        pytest.param(server.chunk(5, b"", length=2**32 - 4), id="4 GiB of runs"),
        pytest.param(server.data(0, b"abcd"), id="data"),
        pytest.param(server.chunk(0), id="nothing"),
    ],
)
def test_a_status_that_makes_no_sense(tmp_path: Path, script: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        extents(tmp_path, script)


def test_a_bitmap_that_is_not_told_of(tmp_path: Path) -> None:
    with pytest.raises(errors.ProtocolError, match="gaps"):
        extents(tmp_path, server.status(ALLOCATION_ID, (SIZE, 0)), bitmap=True)


def test_contexts_that_reach_differently_far(tmp_path: Path) -> None:
    """The shorter counts, the rest is asked for again; what lies behind the range is cut."""
    script = (
        server.status(ALLOCATION_ID, (100, 3), (400, 0), flags=0)
        + server.status(BITMAP_ID, (300, 1))
        + server.status(BITMAP_ID, (2**32 - 1, 0), handle=2, flags=0)
        + server.status(ALLOCATION_ID, (200, 0), (SIZE, 3), handle=2)
    )
    assert extents(tmp_path, script, bitmap=True) == [
        Extent(0, 100, dirty=True, zero=True),
        Extent(100, 200, dirty=True, zero=False),
        Extent(300, 200, dirty=False, zero=False),
        Extent(500, SIZE - 500, dirty=False, zero=True),
    ]


CHUNKS = st.builds(
    server.chunk,
    kind=st.sampled_from([0, 1, 2, 5, 0x8001, 0x8002, 77]),
    payload=st.one_of(
        st.binary(max_size=24),
        st.builds(lambda start, data: struct.pack(">Q", start) + data, st.integers(0, 16), st.binary(max_size=16)),
        st.builds(lambda *runs: struct.pack(">IIIII", ALLOCATION_ID, *runs), *[st.integers(0, SIZE)] * 4),
    ),
    handle=st.integers(0, 4),
    flags=st.integers(0, 3),
    length=st.one_of(st.none(), st.integers(0, 40), st.just(2**32 - 1)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHUNKS, max_size=8))
def test_any_chunks_end_in_an_answer_or_an_error_of_ours(tmp_path: Path, chunks: list[bytes]) -> None:
    script = b"".join(chunks)
    with contextlib.suppress(errors.SourceError):
        assert len(read(tmp_path, script, 4, 8)) == 8
    with contextlib.suppress(errors.SourceError):
        found = extents(tmp_path, script)
        assert sum(extent.length for extent in found) == SIZE


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(server.handshake(SIZE, bitmap=True)) - 1), st.binary(min_size=1, max_size=12))
def test_any_damage_to_a_handshake_ends_in_a_connection_or_an_error_of_ours(
    tmp_path: Path, position: int, damage: bytes
) -> None:
    script = bytearray(server.handshake(SIZE, bitmap=True))
    script[position : position + len(damage)] = damage
    with contextlib.suppress(errors.SourceError, errors.BitmapMissing, errors.TicketRefused):
        assert connect(tmp_path, bytes(script), bitmap=True).size >= 0
