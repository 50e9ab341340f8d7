"""
The second half of a client's connection: requests and their replies.

A few threads share it. Each receives a request, does it, and sends the reply, so that as many are in flight as there
are threads, replies may come in another order than requests, and a client that asks for more than it reads waits.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence

from blockferry import errors
from blockferry.serving import messages
from blockferry.serving.export import Extent, Piece
from blockferry.serving.messages import Malformed, Request
from blockferry.serving.negotiation import Agreement
from blockferry.serving.stream import Gone
from blockferry_agent.units import GiB, MiB

THREADS = 4
"""Requests of one connection that are worked on at once. Clients that want more open several connections."""

_STATUS_LENGTH = 4 * GiB
"""Bytes that one BLOCK_STATUS looks at."""
_MAX_EXTENTS = 4096
"""Extents in one answer to it; the client asks again for the rest."""

_FLAGS = {
    messages.READ: messages.DF,
    messages.WRITE: messages.FUA,
    messages.FLUSH: 0,
    messages.TRIM: messages.FUA,
    messages.WRITE_ZEROES: messages.FUA | messages.NO_HOLE,
    messages.BLOCK_STATUS: messages.REQ_ONE,
}
"""The flags that each command may have."""
_ERRORS = {errno.ENOSPC: messages.ENOSPC, errno.EDQUOT: messages.ENOSPC}
"""What the scratch file's errors are to clients; others are EIO."""

_ZEROS = memoryview(bytes(1 * MiB))

_log = logging.getLogger(__name__)


class Refused(Exception):
    """The request cannot be done; the connection goes on. number: the protocol's error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Transmission:
    """One client's requests."""

    def __init__(self, agreement: Agreement) -> None:
        self._stream = agreement.stream
        self._export = agreement.export
        self._disk = agreement.export.disk
        self._structured = agreement.structured
        self._allocation = agreement.allocation
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._ended = False

    def run(self) -> None:
        """Answer until the client goes, or breaks the protocol. Never raises for what a client does."""
        threads = [threading.Thread(target=self._work, name="nbd-request") for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while (received := self._next()) is not None:
                self._answer(*received)
        except (Gone, Malformed) as error:
            _log.info("A client of %s: %s.", self._export.name, error)
        except Exception:
            _log.exception("A defect while %s was served", self._export.name)
        finally:
            # Other threads wait for the client, or for its buffers.
            self._ended = True
            self._stream.hang_up()

    def _next(self) -> tuple[Request, bytearray] | None:
        """Return the next request with what is to be written, None when there is no more. Raises Gone, Malformed."""
        with self._receiving:
            if self._ended:
                return None
            self._stream.wait()
            request = messages.request(self._stream.receive(messages.REQUEST_LENGTH))
            if request.command == messages.DISCONNECT:
                self._ended = True
                return None
            if request.command != messages.WRITE:
                return request, bytearray()
            if request.length > messages.MAX_PAYLOAD:
                raise Malformed(f"a WRITE of {request.length} bytes")
            return request, self._stream.receive(request.length)

    def _answer(self, request: Request, payload: bytearray) -> None:
        """Raises Gone."""
        try:
            self._check(request)
            reply = self._do(request, memoryview(payload))
        except Refused as refusal:
            reply = [self._failure(request, refusal.number)]
        except errors.Error as error:
            _log.error(
                "%s cannot be read from %d to %d: %s",
                self._export.name, request.start, request.start + request.length, error,
            )  # fmt: skip
            reply = [self._failure(request, messages.EIO)]
        except OSError as error:
            _log.error("The overlay of %s failed: %s.", self._export.name, error.strerror or error)
            reply = [self._failure(request, _ERRORS.get(error.errno or 0, messages.EIO))]
        with self._sending:
            self._stream.send(reply)

    def _check(self, request: Request) -> None:
        """Raises Refused."""
        writes = request.command in (messages.WRITE, messages.TRIM, messages.WRITE_ZEROES)
        if request.command not in _FLAGS or request.flags & ~_FLAGS[request.command]:
            raise Refused(messages.EINVAL)
        if request.command == messages.BLOCK_STATUS and not self._allocation:
            raise Refused(messages.EINVAL)
        if request.flags & messages.DF and not self._structured:
            raise Refused(messages.EINVAL)
        if writes and self._disk.read_only:
            raise Refused(messages.EPERM)
        if request.command == messages.FLUSH:
            return
        if request.length == 0:
            raise Refused(messages.EINVAL)
        if request.start + request.length > self._disk.size:
            raise Refused(messages.ENOSPC if writes else messages.EINVAL)
        if request.command == messages.READ and request.length > messages.MAX_PAYLOAD:
            raise Refused(messages.EINVAL)

    def _do(self, request: Request, payload: memoryview) -> list[bytes | memoryview]:
        """
        Do a checked request and return its reply.

        FUA and FLUSH need nothing: what is written is seen by all at once, and is gone with the server anyway.

        Raises errors.Error, OSError.
        """
        if request.command == messages.READ:
            return self._read(request)
        if request.command == messages.BLOCK_STATUS:
            return [messages.status(request.cookie, self._status(request))]
        if request.command == messages.WRITE:
            self._disk.write(request.start, payload)
        elif request.command in (messages.TRIM, messages.WRITE_ZEROES):
            self._disk.zero(request.start, request.length)
        done = messages.done if self._structured else messages.simple_reply
        return [done(request.cookie)]

    def _read(self, request: Request) -> list[bytes | memoryview]:
        pieces = self._disk.read(request.start, request.length)
        if self._structured and not request.flags & messages.DF:
            return list(_chunks(request.cookie, pieces))
        head = (
            messages.data(request.cookie, request.start, request.length, last=True)
            if self._structured
            else messages.simple_reply(request.cookie)
        )
        return [head, *itertools.chain.from_iterable(map(_content, pieces))]

    def _status(self, request: Request) -> Iterator[tuple[int, int]]:
        """Generate the answer to BLOCK_STATUS: (length in bytes, state)."""
        extents = _joined(self._disk.extents(request.start, min(request.length, _STATUS_LENGTH)))
        limit = 1 if request.flags & messages.REQ_ONE else _MAX_EXTENTS
        for extent in itertools.islice(extents, limit):
            yield extent.length, messages.HOLE_AND_ZERO if extent.zero else 0

    def _failure(self, request: Request, number: int) -> bytes:
        if self._structured:
            return messages.failure(request.cookie, number)
        return messages.simple_reply(request.cookie, number)


def _chunks(cookie: int, pieces: Sequence[Piece]) -> Iterator[bytes | memoryview]:
    """Generate a structured reply: zeros are told, not sent."""
    for piece in pieces:
        last = piece is pieces[-1]
        if piece.data is None:
            yield messages.hole(cookie, piece.start, piece.length, last)
        else:
            yield messages.data(cookie, piece.start, piece.length, last)
            yield piece.data


def _content(piece: Piece) -> Iterator[memoryview]:
    """Generate the bytes of a piece, also when it is zeros."""
    if piece.data is not None:
        yield piece.data
        return
    for position in range(0, piece.length, len(_ZEROS)):
        yield _ZEROS[: piece.length - position]


def _joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Generate the extents with neighbours of one kind as one."""
    for zero, alike in itertools.groupby(extents, lambda extent: extent.zero):
        yield Extent(sum(extent.length for extent in alike), zero)
