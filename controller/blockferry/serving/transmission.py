"""
The second half of a client's connection: requests and their replies.

A few threads share it. Each receives a request, does it, and sends the reply, so that as many are in flight as there
are threads, replies may come in another order than requests, and a client that asks for more than it reads waits.

Long requests are done in steps, each sent or written before the next one is begun: what a client makes us hold is a few
MiB, whatever it asks for, and however long it does not take it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from blockferry import errors
from blockferry.serving import messages
from blockferry.serving.export import Extent, Piece
from blockferry.serving.messages import Malformed, Request
from blockferry.serving.negotiation import Agreement
from blockferry.serving.stream import Gone
from blockferry_agent.units import GiB, MiB

THREADS = 4
"""Requests of one connection that are worked on at once. Clients that want more open several connections."""

_FAILED = 1000
"""Failed requests that are told once only."""
_STEP = 2 * MiB
"""Bytes of a READ or WRITE that are held at a time."""
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
        self._failed: set[tuple[int, int]] = set()

    def run(self) -> None:
        """Answer until the client goes, or breaks the protocol. Never raises for what a client does."""
        threads = [threading.Thread(target=self._work, name="nbd-request") for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        try:
            while self._serve_one():
                pass
        except (Gone, Malformed) as error:
            _log.info("A client of %s: %s.", self._export.name, error)
        except Exception:
            _log.exception("A defect while %s was served", self._export.name)
        finally:
            # Other threads wait for the client, or for its buffers.
            self._ended = True
            self._stream.hang_up()

    def _serve_one(self) -> bool:
        """Answer the next request; False when there is no more. Raises Gone, Malformed."""
        with self._receiving:
            if self._ended:
                return False
            self._stream.wait()
            request = messages.request(self._stream.receive(messages.REQUEST_LENGTH))
            if request.command == messages.DISCONNECT:
                self._ended = True
                return False
            # What is to be written comes behind its request, before the next one.
            error = self._tried(self._write, request) if request.command == messages.WRITE else None
        if error is None:
            error = self._tried(self._do, request)
        if error:
            self._send([self._failure(request, error)])
        elif request.command not in (messages.READ, messages.BLOCK_STATUS):
            done = messages.done if self._structured else messages.simple_reply
            self._send([done(request.cookie)])
        return True

    def _tried(self, act: Callable[[Request], None], request: Request) -> int:
        """Do a request; return the protocol's number of what went wrong, or 0. Raises Gone, Malformed."""
        try:
            act(request)
        except Refused as refusal:
            return refusal.number
        except (errors.Error, OSError) as error:
            return self._told(request, error)
        return 0

    def _told(self, request: Request, error: errors.Error | OSError) -> int:
        """Log what went wrong with a checked request, and return its number in the protocol."""
        if isinstance(error, OSError):
            _log.error("The overlay of %s failed: %s.", self._export.name, error.strerror or error)
            return _ERRORS.get(error.errno or 0, messages.EIO)
        if (request.start, request.length) not in self._failed:
            # Some clients ask again and again.
            if len(self._failed) < _FAILED:
                self._failed.add((request.start, request.length))
            _log.error(
                "%s cannot be read from %d to %d: %s",
                self._export.name, request.start, request.start + request.length, error,
            )  # fmt: skip
        return messages.EIO

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
        if request.flags & messages.DF and request.length > _STEP:
            raise Refused(messages.EOVERFLOW)

    def _do(self, request: Request) -> None:
        """
        Do a request that is not WRITE; the replies to READ and BLOCK_STATUS are sent, those to others are not.

        FLUSH needs nothing, nor does FUA: what is written is seen by all at once, and is gone with the server anyway.

        Raises Refused, Gone, errors.Error, OSError.
        """
        self._check(request)
        if request.command == messages.READ and self._structured:
            self._read(request)
        elif request.command == messages.READ:
            self._read_simply(request)
        elif request.command == messages.BLOCK_STATUS:
            self._send([messages.status(request.cookie, self._status(request))])
        elif request.command in (messages.TRIM, messages.WRITE_ZEROES):
            self._disk.zero(request.start, request.length)

    def _write(self, request: Request) -> None:
        """Take what is to be written, all of it whatever happens, and write it. Raises as `_do`, and Malformed."""
        if request.length > messages.MAX_PAYLOAD:
            raise Malformed(f"a WRITE of {request.length} bytes")
        failed: Refused | errors.Error | OSError | None = None
        try:
            self._check(request)
        except Refused as refusal:
            failed = refusal
        for start, length in _steps(request):
            data = self._stream.receive(length)
            if failed is None:
                try:
                    self._disk.write(start, memoryview(data))
                except (errors.Error, OSError) as error:
                    failed = error
        if failed is not None:
            raise failed

    def _read(self, request: Request) -> None:
        """Send a structured reply, whose end may be an error."""
        if request.flags & messages.DF:
            pieces = self._disk.read(request.start, request.length)
            head = messages.data(request.cookie, request.start, request.length, last=True)
            self._send([head, *itertools.chain.from_iterable(map(_content, pieces))])
            return
        end = request.start + request.length
        for start, length in _steps(request):
            pieces = self._disk.read(start, length)
            self._send(_chunks(request.cookie, pieces, last=start + length == end))

    def _read_simply(self, request: Request) -> None:
        """Send a simple reply. Once it has begun, it knows no error but hanging up, and nothing may come between."""
        steps = _steps(request)
        pieces = self._disk.read(*next(steps))
        with self._sending:
            self._stream.send(
                [messages.simple_reply(request.cookie), *itertools.chain.from_iterable(map(_content, pieces))]
            )
            for start, length in steps:
                try:
                    pieces = self._disk.read(start, length)
                except (errors.Error, OSError) as error:
                    self._told(request, error)
                    raise Gone("it cannot be told of an error in the middle of a reply") from None
                self._stream.send(itertools.chain.from_iterable(map(_content, pieces)))

    def _send(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Raises Gone."""
        with self._sending:
            self._stream.send(buffers)

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


def _steps(request: Request) -> Iterator[tuple[int, int]]:
    """Generate the steps of a request, (start, length) in bytes, cut where grains and windows are cut, too."""
    start, end = request.start, request.start + request.length
    while start < end:
        cut = min(end, (start // _STEP + 1) * _STEP)
        yield start, cut - start
        start = cut


def _chunks(cookie: int, pieces: Sequence[Piece], last: bool) -> Iterator[bytes | memoryview]:
    """Generate a step of a structured reply: zeros are told, not sent. last: the reply ends with it."""
    for piece in pieces:
        ends = last and piece is pieces[-1]
        if piece.data is None:
            yield messages.hole(cookie, piece.start, piece.length, ends)
        else:
            yield messages.data(cookie, piece.start, piece.length, ends)
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
