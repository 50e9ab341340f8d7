"""The NBD client writing to servers that lie, fail or stop: success is only what was acknowledged, and flushed."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import pytest

from blockferry_agent import errors, nbd
from blockferry_agent.units import KiB, MiB
from tests.component import nbd_servers as server

SIZE = 1 * MiB
LENGTH = 512 * KiB
"""Two WRITEs, of handles 1 and 2; the FLUSH is 3."""

READ_ONLY, CAN_FLUSH, CAN_ZERO = 1 << 1, 1 << 2, 1 << 6
EPERM, EIO, ENOSPC, ESHUTDOWN = 1, 5, 28, 108


def simple(handle: int, errno: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, errno, handle)


def done(handle: int) -> bytes:
    return server.chunk(0, handle=handle)


def handshake(flags: int = CAN_FLUSH | CAN_ZERO) -> bytes:
    return server.contexts(False) + server.export(SIZE, flags) + server.ack(server.GO)


def write(directory: Path, script: bytes, hang: bool = False, timeout: float = 2) -> None:
    with (
        server.scripted(directory, handshake() + script, hang) as address,
        contextlib.closing(nbd.Connection(address, handshake_timeout=2, timeout=timeout)) as connection,
    ):
        connection.write(0, bytes(LENGTH))
        connection.flush()


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(simple(1) + simple(2) + simple(3), id="simple"),
        pytest.param(done(1) + done(2) + done(3), id="structured"),
        pytest.param(simple(2) + done(1) + simple(3), id="both, out of order"),
    ],
)
def test_all_acknowledged_and_flushed(tmp_path: Path, script: bytes) -> None:
    """All scripts below differ from these in one thing."""
    write(tmp_path, script)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(simple(1) + simple(9), id="another handle"),
        pytest.param(simple(1) + simple(1), id="one handle twice"),
        pytest.param(done(1) + done(1), id="one handle twice, structured"),
        pytest.param(simple(1) + simple(3), id="the flush before the write"),
        pytest.param(bytes(20), id="no magic"),
        pytest.param(server.data(0, b"abcd"), id="data"),
        pytest.param(server.hole(0, 4), id="a hole"),
        pytest.param(server.status(server.ALLOCATION_ID, (SIZE, 0)), id="extents"),
        pytest.param(server.chunk(0, b"abcd"), id="an empty chunk that is none"),
        pytest.param(server.chunk(0, flags=0), id="an empty chunk that is not the last"),
        pytest.param(server.failure(0), id="an error that is none"),
        pytest.param(server.chunk(0x8001, length=2**32 - 1), id="an error of 4 GiB"),
    ],
)
def test_a_write_that_is_answered_with_nonsense(tmp_path: Path, script: bytes) -> None:
    with pytest.raises(errors.ProtocolError, match="NBD server at"):
        write(tmp_path, script)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 32, 33, 47])
def test_replies_that_end_anywhere(tmp_path: Path, length: int) -> None:
    with pytest.raises(errors.SourceGone, match="NBD server at"):
        write(tmp_path, (simple(1) + simple(2) + simple(3))[:length])


@pytest.mark.parametrize("length", [0, 15, 16, 32])
def test_replies_that_stop(tmp_path: Path, length: int) -> None:
    started = time.monotonic()
    with pytest.raises(errors.SourceError, match="NBD server at"):
        write(tmp_path, (simple(1) + simple(2) + simple(3))[:length], hang=True, timeout=0.2)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3])
@pytest.mark.parametrize(
    ("errno", "error", "step"),
    [
        (EPERM, errors.WriteFailed, "logs"),
        (EIO, errors.WriteFailed, "logs"),
        (ENOSPC, errors.WriteFailed, "make room"),
        (ESHUTDOWN, errors.SourceGone, "VM stopped"),
    ],
)
def test_an_error_in_mid_stream(
    tmp_path: Path, errno: int, error: type[errors.Error], step: str, failing: int, structured: bool
) -> None:
    failure = server.failure(errno, handle=failing) if structured else simple(failing, errno)
    script = b"".join(failure if handle == failing else simple(handle) for handle in (1, 2, 3))
    with pytest.raises(error, match="NBD server at") as raised:
        write(tmp_path, script)
    assert step in str(raised.value)


@pytest.mark.parametrize(
    "flags", [0, CAN_FLUSH, CAN_ZERO, READ_ONLY | CAN_FLUSH | CAN_ZERO], ids=["none", "flush", "zero", "read-only"]
)
def test_an_export_that_cannot_be_written_says_so(tmp_path: Path, flags: int) -> None:
    with (
        server.scripted(tmp_path, handshake(flags)) as address,
        contextlib.closing(nbd.Connection(address, handshake_timeout=2, timeout=2)) as connection,
    ):
        assert not connection.is_writable
