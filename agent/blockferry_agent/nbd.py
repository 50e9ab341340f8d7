"""
An NBD client: one connection is a `source.Source`, and where the export may be written a `sink.Sink`.

    handshake    structured replies, meta contexts, GO (`handshake`)
    extents      BLOCK_STATUS with "base:allocation", and with the dirty bitmap's context when changes are asked for
    readinto     READ requests of 256 KiB, several in flight, received straight into the caller's buffer
    write        WRITE requests likewise, sent straight from the caller's buffer
    zero         WRITE_ZEROES, for what does not read as zeros already; never TRIM, after which anything may be read

The server is taken for hostile: every length and offset that it names is checked against what was asked before a byte
is allocated or written, and nothing that it sends or leaves out can make the client wait for ever.

The protocol: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple, Union

from blockferry_agent import errors, extents, handshake
from blockferry_agent.extents import Run
from blockferry_agent.source import Extent
from blockferry_agent.stream import Stream
from blockferry_agent.units import GiB, KiB, MiB

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a whole handshake. The ninth connection to a qemu-nbd is accepted and never greeted."""

IO_TIMEOUT = 60.0
"""Seconds for each piece of a reply: a storage that hangs longer than this has failed."""

REQUEST_LENGTH = 256 * KiB
"""Bytes of one READ. Measured against QEMU: a few of 256 KiB in flight are faster than one of 1 or 4 MiB."""

MAX_IN_FLIGHT = 16
"""READs that wait for their replies: as many as QEMU works on at once for one client."""

ZERO_LENGTH = 32 * MiB
"""Bytes of one WRITE_ZEROES: a storage that really writes them answers all that are in flight within IO_TIMEOUT."""

STATUS_LENGTH = 1 * GiB
"""Bytes of one BLOCK_STATUS."""

MAX_RUNS = 2**20
"""Runs that are accepted in one context's answer to BLOCK_STATUS. QEMU sends at most 2^17."""

MAX_CHUNKS = 1024
"""Chunks that are accepted in reply to one request. A READ of 256 KiB has 512 sectors."""

_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")
_SIMPLE = struct.Struct(">IIQ")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_RUN = struct.Struct(">II")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_REQUEST_MAGIC = 0x25609513
_CHUNK_MAGIC = 0x668E33EF
_SIMPLE_MAGIC = 0x67446698
_READ, _WRITE, _DISCONNECT, _FLUSH, _WRITE_ZEROES, _BLOCK_STATUS = 0, 1, 2, 3, 6, 7
# Transmission flags.
_READ_ONLY = 1 << 1
_CAN_FLUSH = 1 << 2
_CAN_ZERO = 1 << 6
_CAN_DF = 1 << 7
_CAN_MULTI_CONN = 1 << 8
# Command flags.
_NO_HOLE = 1 << 1  # write zeros into allocated space
_DF = 1 << 2  # do not fragment the reply
_DONE = 1
_NONE_CHUNK, _DATA_CHUNK, _HOLE_CHUNK, _STATUS_CHUNK = 0, 1, 2, 5
_ERROR_CHUNK = 1 << 15
_ZERO_STATE = 2  # of base:allocation
_DIRTY_STATE = 1  # of a dirty bitmap
_ENOSPC, _ESHUTDOWN = 28, 108

_ZEROS = bytes(REQUEST_LENGTH)


class Address(NamedTuple):
    """
    An export of an NBD server.

    path: of its unix socket.  export: name, may be empty.
    """

    path: str
    export: str

    def __str__(self) -> str:
        return f"The NBD server at {self.path}"


class Connection:
    """
    One connection to an export (`source.Source`).

    size: of the disk, in bytes.  has_bitmap: extents can be asked for incrementally.
    is_writable: `write`, `zero` and `flush` may be called.  is_shareable: several connections may write side by side,
    and `flush` on one of them covers all.
    """

    def __init__(
        self,
        address: Address,
        bitmap: bool = False,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        timeout: float = IO_TIMEOUT,
    ) -> None:
        """
        Connect.

        bitmap: look for a dirty bitmap. Only for those who need it: the server walks it for every answer from then on.
        handshake_timeout, timeout: seconds for the whole handshake, and for each piece of a reply after it.

        Raises SourceGone, ProtocolError, and BitmapMissing when there is more than one bitmap.
        """
        self._where = str(address)
        self._handles = itertools.count(1)
        self._chunk_head = memoryview(bytearray(_CHUNK.size))
        self._stream = Stream(address.path, timeout)
        try:
            with self._stream.within(handshake_timeout):
                export = handshake.negotiate(self._stream, self._where, address.export, bitmap)
        except BaseException:
            self.close()
            raise
        self._export = export
        self.size = export.size
        self.has_bitmap = export.bitmap is not None
        # Only data is read, so the server need not look for holes in it once more.
        self._read_flags = _DF if export.flags & _CAN_DF else 0
        self.is_writable = export.flags & (_READ_ONLY | _CAN_FLUSH | _CAN_ZERO) == _CAN_FLUSH | _CAN_ZERO
        self.is_shareable = bool(export.flags & _CAN_MULTI_CONN)

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        """See `Source.extents`."""
        if incremental and not self.has_bitmap:
            raise errors.BitmapMissing(
                f"{self._where} offers no dirty bitmap with this export.", "Read the whole disk instead."
            )
        return extents.coalesce(self._extents(start, start + length, incremental))

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        """See `Source.readinto`. When the storage fails, all replies are taken in before that is raised."""
        view = memoryview(buffer)
        reads = (
            _Read(start + offset, view[offset : offset + REQUEST_LENGTH], self._read_flags)
            for offset in range(0, len(view), REQUEST_LENGTH)
        )
        self._run(reads)

    def write(self, start: int, data: bytes | memoryview) -> None:
        """See `Sink.write`. When the storage fails, all replies are taken in before that is raised."""
        view = memoryview(data)
        self._run(
            _Write(start + offset, view[offset : offset + REQUEST_LENGTH])
            for offset in range(0, len(view), REQUEST_LENGTH)
        )

    def zero(self, start: int, length: int, may_punch: bool) -> None:
        """See `Sink.zero`. Asks first what reads as zeros already: that is left alone."""
        flags = 0 if may_punch else _NO_HOLE
        end = start + length
        for begin in range(start, end, STATUS_LENGTH):
            piece = list(self.extents(begin, min(STATUS_LENGTH, end - begin), incremental=False))
            self._run(
                _Zero(offset, min(ZERO_LENGTH, extent.end - offset), flags)
                for extent in piece
                if not extent.zero
                for offset in range(extent.start, extent.end, ZERO_LENGTH)
            )

    def flush(self) -> None:
        """See `Sink.flush`."""
        self._run([_Flush()])

    def close(self) -> None:
        """See `Source.close`."""
        self._stream.close(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))

    def _extents(self, start: int, end: int, incremental: bool) -> Iterator[Extent]:
        while start < end:
            for extent in extents.clip(self._described(start, min(STATUS_LENGTH, end - start), incremental), end):
                yield extent
                start = extent.end

    def _described(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        """Generate the extents that one BLOCK_STATUS tells of: at least one, possibly less or more than `length`."""
        status = _Status(start, length, self._export)
        self._run([status])
        zero = self._runs(status.runs[self._export.allocation], _ZERO_STATE)
        if not incremental:
            return extents.all_dirty(start, zero)
        assert self._export.bitmap is not None
        return extents.merge(start, zero, self._runs(status.runs[self._export.bitmap], _DIRTY_STATE))

    def _runs(self, answer: bytearray, flag: int) -> Iterator[Run]:
        for length, state in _RUN.iter_unpack(answer):
            if not length:
                raise self._nonsense("an extent without length")
            yield Run(length, bool(state & flag))

    def _run(self, requests: Iterator[_Request] | list[_Request]) -> None:
        """Send requests, up to MAX_IN_FLIGHT at once, and take in the replies. Raises the first failure at the end."""
        waiting = iter(requests)
        pending: dict[int, _Request] = {}
        failure: errors.SourceError | None = None
        while True:
            if failure is None:
                self._send(itertools.islice(waiting, MAX_IN_FLIGHT - len(pending)), pending)
            if not pending:
                break
            failure = self._take_reply(pending) or failure
        if failure is not None:
            raise failure

    def _send(self, requests: Iterator[_Request], pending: dict[int, _Request]) -> None:
        message = b""
        for request in requests:
            handle = next(self._handles)
            pending[handle] = request
            message += _REQUEST.pack(
                _REQUEST_MAGIC, request.flags, request.command, handle, request.start, request.length
            )
            if isinstance(request, _Write):
                self._stream.send(message)
                self._stream.send(request.data)
                message = b""
        if message:
            self._stream.send(message)

    def _take_reply(self, pending: dict[int, _Request]) -> errors.SourceError | None:
        """
        Take in one chunk of a reply; forget its request after the last. Returns the failure that it reports.

        What is no READ may be answered by a simple reply, which is shorter than the head of a chunk.
        """
        if any(isinstance(request, _Read) for request in pending.values()):
            self._stream.receive_into(self._chunk_head)
        else:
            self._stream.receive_into(self._chunk_head[: _SIMPLE.size])
            magic, number, handle = _SIMPLE.unpack_from(self._chunk_head)
            if magic == _SIMPLE_MAGIC:
                return self._take_simple(pending, handle, number)
            self._stream.receive_into(self._chunk_head[_SIMPLE.size :])
        return self._take_chunk(pending)

    def _take_simple(self, pending: dict[int, _Request], handle: int, number: int) -> errors.SourceError | None:
        """Forget the request that a simple reply is for. Returns the failure that it reports."""
        request = pending.pop(handle, None)
        if request is None or request.chunks or not (number or request.is_complete()):
            raise self._nonsense("a simple reply that nobody waits for")
        return self._failure(request, number, "") if number else None

    def _take_chunk(self, pending: dict[int, _Request]) -> errors.SourceError | None:
        """Take in the rest of a chunk whose head is there."""
        magic, flags, kind, handle, length = _CHUNK.unpack(self._chunk_head)
        request = pending.get(handle)
        if magic != _CHUNK_MAGIC or request is None:
            raise self._nonsense("a reply that nobody waits for")
        done = bool(flags & _DONE)
        request.chunks += 1
        if request.chunks > MAX_CHUNKS:
            raise self._nonsense(f"more than {MAX_CHUNKS} chunks in one reply")
        failure = None
        if kind & _ERROR_CHUNK:
            failure = self._take_error(request, length)
            request.failed = True
        elif kind != _NONE_CHUNK:
            problem = request.take(kind, length, self._stream)
            if problem:
                raise self._nonsense(problem)
        elif length or not done:
            raise self._nonsense("an empty chunk that is none")
        if done:
            del pending[handle]
            if not request.failed and not request.is_complete():
                raise self._nonsense("a reply with gaps")
        return failure

    def _take_error(self, request: _Request, length: int) -> errors.SourceError:
        """Return what an error chunk says: number, text, and (of no interest here) where it happened."""
        if not _ERROR.size <= length <= _ERROR.size + handshake.MAX_STRING + _U64.size:
            raise self._nonsense(f"an error of {length} bytes")
        payload = self._stream.receive(length)
        number, text_length = _ERROR.unpack_from(payload)
        if not number or text_length > length - _ERROR.size:
            raise self._nonsense("an error that is none")
        text = payload[_ERROR.size : _ERROR.size + text_length].decode(errors="replace")
        return self._failure(request, number, "".join(filter(str.isprintable, text)))

    def _failure(self, request: _Request, number: int, text: str) -> errors.SourceError:
        """Return our error for the server's. text: what it says beside the number, may be empty."""
        where = f"at bytes {request.start} to {request.start + request.length}" if request.length else "to flush"
        message = f"{self._where} failed {where}: {os.strerror(number)}" + (f" ({text})." if text else ".")
        if number == _ESHUTDOWN:
            return errors.SourceGone(message, "See whether the VM stopped, or the backup ended.")
        if number == _ENOSPC:
            return errors.WriteFailed(message, "The storage of the disk is full: make room there, then repeat.")
        cls = errors.ReadFailed if isinstance(request, (_Read, _Status)) else errors.WriteFailed
        return cls(message, "See the host's logs for its storage, then repeat.")

    def _nonsense(self, what: str) -> errors.ProtocolError:
        return errors.ProtocolError(f"{self._where} sent {what}.", "See what serves that socket on the host.")


class _Read:
    """A READ into a part of the caller's buffer, and what has arrived of it."""

    command = _READ

    def __init__(self, start: int, view: memoryview, flags: int) -> None:
        self.start = start
        self.length = len(view)
        self.flags = flags
        self.chunks = 0
        self.failed = False
        self._view = view
        self._filled: list[tuple[int, int]] = []

    def take(self, kind: int, length: int, stream: Stream) -> str:
        """Take in a chunk's payload of `length` bytes. Returns what is wrong with it, empty when nothing is."""
        if kind == _DATA_CHUNK and _U64.size < length <= _U64.size + self.length:
            (start,) = _U64.unpack(stream.receive(_U64.size))
            part = self._part(start, length - _U64.size)
            if part:
                stream.receive_into(part)
                return ""
        elif kind == _HOLE_CHUNK and length == _HOLE.size:
            part = self._part(*_HOLE.unpack(stream.receive(_HOLE.size)))
            if part:
                part[:] = _ZEROS[: len(part)]
                return ""
        return f"chunk type {kind} of {length} bytes that does not fit the READ of {self.length} bytes at {self.start}"

    def is_complete(self) -> bool:
        """Tell whether each byte has arrived once."""
        end = 0
        for start, length in sorted(self._filled):
            if start != end:
                return False
            end += length
        return end == self.length

    def _part(self, start: int, length: int) -> memoryview | None:
        """Return the piece of the buffer for bytes of the disk; None when they were not asked for."""
        offset = start - self.start
        if offset < 0 or not 0 < length <= self.length - offset:
            return None
        self._filled.append((offset, length))
        return self._view[offset : offset + length]


class _Status:
    """
    A BLOCK_STATUS, and what each context answered.

    runs: by context id, as they came: 8 bytes each.
    """

    command = _BLOCK_STATUS
    flags = 0

    def __init__(self, start: int, length: int, export: handshake.Export) -> None:
        self.start = start
        self.length = length
        self.chunks = 0
        self.failed = False
        self.runs: dict[int, bytearray] = {}
        self._contexts = {export.allocation, export.bitmap} - {None}

    def take(self, kind: int, length: int, stream: Stream) -> str:
        """As in `_Read.take`."""
        runs = length - _U32.size
        if kind != _STATUS_CHUNK or not 0 < runs <= MAX_RUNS * _RUN.size or runs % _RUN.size:
            return f"chunk type {kind} of {length} bytes in reply to BLOCK_STATUS"
        (context,) = _U32.unpack(stream.receive(_U32.size))
        if context in self.runs or context not in self._contexts:
            return f"the status of context {context}, which nobody asked for"
        self.runs[context] = stream.receive(runs)
        return ""

    def is_complete(self) -> bool:
        """Tell whether each context has answered."""
        return len(self.runs) == len(self._contexts)


class _Change:
    """A request that changes the disk: all that is said of it is whether it was done."""

    command: int
    start = 0
    length = 0
    flags = 0

    def __init__(self) -> None:
        self.chunks = 0
        self.failed = False

    def take(self, kind: int, length: int, stream: Stream) -> str:
        """As in `_Read.take`."""
        return f"chunk type {kind} of {length} bytes in reply to command {self.command}"

    def is_complete(self) -> bool:
        """As in `_Read.is_complete`."""
        return True


class _Write(_Change):
    """A WRITE of a part of the caller's data."""

    command = _WRITE

    def __init__(self, start: int, data: memoryview) -> None:
        super().__init__()
        self.start = start
        self.length = len(data)
        self.data = data


class _Zero(_Change):
    """A WRITE_ZEROES."""

    command = _WRITE_ZEROES

    def __init__(self, start: int, length: int, flags: int) -> None:
        super().__init__()
        self.start = start
        self.length = length
        self.flags = flags


class _Flush(_Change):
    """A FLUSH of all that was answered before."""

    command = _FLUSH


_Request = Union[_Read, _Status, _Change]
