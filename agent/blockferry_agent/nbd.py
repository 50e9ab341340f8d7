"""
An NBD client for reading: one connection is a `source.Source`.

    handshake    structured replies, meta contexts, GO (`handshake`)
    extents      BLOCK_STATUS with "base:allocation", and with the dirty bitmap's context when changes are asked for
    readinto     READ requests of 256 KiB, several in flight, received straight into the caller's buffer

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
from blockferry_agent.units import GiB, KiB

HANDSHAKE_TIMEOUT = 10.0
"""Seconds for a whole handshake. The ninth connection to a qemu-nbd is accepted and never greeted."""

IO_TIMEOUT = 60.0
"""Seconds for each piece of a reply: a storage that hangs longer than this has failed."""

REQUEST_LENGTH = 256 * KiB
"""Bytes of one READ. Measured against QEMU: a few of 256 KiB in flight are faster than one of 1 or 4 MiB."""

MAX_IN_FLIGHT = 16
"""READs that wait for their replies: as many as QEMU works on at once for one client."""

STATUS_LENGTH = 1 * GiB
"""Bytes of one BLOCK_STATUS."""

MAX_RUNS = 2**20
"""Runs that are accepted in one context's answer to BLOCK_STATUS. QEMU sends at most 2^17."""

MAX_CHUNKS = 1024
"""Chunks that are accepted in reply to one request. A READ of 256 KiB has 512 sectors."""

_REQUEST = struct.Struct(">IHHQQI")
_CHUNK = struct.Struct(">IHHQI")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_RUN = struct.Struct(">II")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_REQUEST_MAGIC = 0x25609513
_CHUNK_MAGIC = 0x668E33EF
_READ, _DISCONNECT, _BLOCK_STATUS = 0, 2, 7
_CAN_DF = 1 << 7  # transmission flag: the server understands the next one
_DF = 1 << 2  # command flag: do not fragment the reply
_DONE = 1
_NONE_CHUNK, _DATA_CHUNK, _HOLE_CHUNK, _STATUS_CHUNK = 0, 1, 2, 5
_ERROR_CHUNK = 1 << 15
_ZERO_STATE = 2  # of base:allocation
_DIRTY_STATE = 1  # of a dirty bitmap
_ESHUTDOWN = 108

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
            failure = self._take_chunk(pending) or failure
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
        if message:
            self._stream.send(message)

    def _take_chunk(self, pending: dict[int, _Request]) -> errors.SourceError | None:
        """Take in one chunk of a reply; forget its request after the last. Returns the failure that it reports."""
        self._stream.receive_into(self._chunk_head)
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
        said = f" ({''.join(filter(str.isprintable, text))})" if text else ""
        message = f"{self._where} failed at bytes {request.start} to {request.start + request.length}: "
        message += f"{os.strerror(number)}{said}."
        if number == _ESHUTDOWN:
            return errors.SourceGone(message, "See whether the VM stopped, or the backup ended.")
        return errors.ReadFailed(message, "See the host's logs for its storage, then repeat.")

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


_Request = Union[_Read, _Status]
