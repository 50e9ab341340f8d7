"""
The fallback: the controller reads over HTTPS from Image I/O on the host, with Image I/O's own client, and writes so
(`imageio_upload`).

No agent takes part; the block reader runs here, over this source, and yields the same blocks.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import http.client
import io
import itertools
import logging
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures

from ovirt_imageio import client

# Its client raises these and exports none of them.
from ovirt_imageio._internal import errors as imageio_errors
from ovirt_imageio._internal import http as imageio_http

from blockferry import errors
from blockferry.transport.disk import Reading, Target
from blockferry_agent import blocks, reader
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.reader import Cut
from blockferry_agent.source import Extent
from blockferry_agent.throttle import Throttle
from blockferry_agent.units import MiB

# Image I/O serves a ticket to 8 connections. Each is one more client of the same NBD server, which hangs at the ninth,
# and Image I/O's own OPTIONS need one too (ovirt-facts, 5 and 6.4).
WORKERS = 4

ZERO_LENGTH = 256 * MiB
"""Bytes that are zeroed with one request: on some storage that is as slow as writing, and the client waits 60 s."""

_log = logging.getLogger(__name__)

# At DEBUG they write the URL, and with it the ticket, which is a secret.
for name in ("client", "backends.http"):
    logging.getLogger(name).setLevel(logging.INFO)


class ImageioTransport:
    """
    Reads through Image I/O.

    ca_file: PEM file with the CA that signed the hosts' certificates (the engine's CA).
    bytes_per_second: limit for what this controller reads of one host; 0 means none. Agents keep theirs for all.
    """

    name = "imageio"
    is_last_resort = True

    def __init__(self, ca_file: str, bytes_per_second: int = 0) -> None:
        self._ca_file = ca_file
        self._throttles: dict[str, Throttle] = collections.defaultdict(lambda: Throttle(bytes_per_second))

    def open(self, target: Target) -> ImageioDisk:
        """See `disk.Transport.open`. Takes the engine's proxy when the host itself cannot be reached."""
        try:
            return self._open(target, target.transfer_url)
        except errors.TransportError as error:
            if target.proxy_url is None:
                raise
            disk = self._open(target, target.proxy_url)
            _log.warning("%s Reading through the engine's proxy instead.", error.message)
            return disk

    def _open(self, target: Target, url: str) -> ImageioDisk:
        disk = ImageioDisk(target, url, self._ca_file, [self._throttles[target.host_address]])
        with contextlib.closing(disk.connect()) as source:
            disk.is_writable = source.is_writable
            if source.is_local:
                disk.remark = "this host's own socket"
            elif url == target.proxy_url:
                disk.remark = "the engine's proxy"
        return disk


class ImageioDisk:
    """
    A disk behind Image I/O (`disk.Disk`). Each reading makes its own connections and closes them.

    Image I/O lists all extents of a disk in one answer (ovirt-facts, 5), so the list is asked for once and kept: memory
    that grows with the number of extents. The agent has no such limit.
    """

    def __init__(self, target: Target, url: str, ca_file: str, throttles: Sequence[Throttle] = ()) -> None:
        """url: of the ticket, at the host or at the proxy.  throttles: limits of speed."""
        self.size = target.size
        self.is_writable = False
        self.remark = ""
        self.throttles = throttles
        self._target = target
        self._url = url
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._listings: dict[str, list[Extent]] = {}

    def connect(self) -> ImageioSource:
        """Return a new connection to the disk, which the caller closes."""
        with _border(self._target):
            connection = client.ImageioClient(self._url, cafile=self._ca_file, buffer_size=1 * MiB)
        return ImageioSource(self, self._target, connection)

    def read(self, request: ReadRequest) -> Reading:
        """See `disk.Disk.read`."""
        return ImageioReading(self, request)

    def close(self) -> None:
        """Nothing is held between readings."""

    def listing(self, context: str, connection: client.ImageioClient) -> list[Extent]:
        """Return all extents, in disk order and without gaps. context: "dirty", or "zero" for all of the disk."""
        with self._lock:
            if context not in self._listings:
                with _border(self._target):
                    listed = [
                        Extent(extent.start, extent.length, extent.dirty if context == "dirty" else True, extent.zero)
                        for extent in connection.extents(context)
                    ]
                _check_complete(listed, self._target)
                self._listings[context] = listed
            return self._listings[context]

    def forget(self) -> None:
        """Ask for the extents again: the disk was written."""
        with self._lock:
            self._listings.clear()


class ImageioReading:
    """A reading (`disk.Reading`) that ends at once when it is closed, also while Image I/O does not answer."""

    def __init__(self, disk: ImageioDisk, request: ReadRequest, cut: Cut = blocks.ranges) -> None:
        """cut: says what is read (see `reader.read`)."""
        self._connections = Connections(disk)
        # Compressing is for those who send; nobody does here.
        request = request._replace(compress=False)
        self._reading = reader.read(self._connections.open, request, WORKERS, disk.throttles, cut)

    def __iter__(self) -> Iterator[Block]:
        for block in self._reading:
            # The reader lends its data.
            yield block._replace(data=bytes(block.data))

    @property
    def wire_bytes(self) -> int:
        """See `disk.Reading.wire_bytes`. Of the answers to reads: the bodies, without HTTP's heads."""
        return self._reading.read_bytes

    @property
    def summary(self) -> Summary:
        """See `disk.Reading.summary`."""
        return self._reading.summary

    def close(self) -> None:
        """See `disk.Reading.close`."""
        self._reading.stop()
        self._connections.hang_up()
        self._reading.close()


class Connections:
    """The connections to one disk that may all be hung up at once. From any thread."""

    def __init__(self, disk: ImageioDisk) -> None:
        self._disk = disk
        self._changed = threading.Condition()  # guards all below
        self._sources: list[ImageioSource] = []
        self._closed = False

    def open(self) -> ImageioSource:
        """
        Return a new connection, which the caller closes, or raise as soon as they are hung up.

        Image I/O opens the disk before it answers, and its client cannot be interrupted before it has an answer. So
        somebody else waits for that, who outlives the reading when need be.
        """
        connecting: futures.Future[ImageioSource] = futures.Future()
        threading.Thread(target=self._finish, args=(connecting,), name="imageio-connect", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: connecting.done() or self._closed)
            if self._closed:
                raise errors.TransportError("The connections to Image I/O were closed.")
        return connecting.result()

    def hang_up(self) -> None:
        """Let what is under way fail at once; no connection is made any more."""
        with self._changed:
            self._closed = True
            for source in self._sources:
                source.hang_up()
            self._changed.notify_all()

    def _finish(self, connecting: futures.Future[ImageioSource]) -> None:
        try:
            source = self._disk.connect()
        except BaseException as error:
            connecting.set_exception(error)
            with self._changed:
                self._changed.notify_all()
            return
        with self._changed:
            if self._closed:
                source.close()
                return
            self._sources = [*(other for other in self._sources if not other.is_closed), source]
            connecting.set_result(source)
            self._changed.notify_all()


class ImageioSource:
    """One HTTPS connection to a disk (`blockferry_agent.source.Source`, and `sink.Sink` where that is writable)."""

    def __init__(self, disk: ImageioDisk, target: Target, connection: client.ImageioClient) -> None:
        self.size = disk.size
        self._disk = disk
        self._target = target
        self._connection = connection
        self.is_closed = False

    @property
    def is_local(self) -> bool:
        """Whether the client found itself on the host, and goes through Image I/O's Unix socket, without TLS."""
        return not isinstance(self._connection._backend._con.sock, ssl.SSLSocket)

    @property
    def is_writable(self) -> bool:
        """Whether the ticket allows to write: only then Image I/O offers these."""
        backend = self._connection._backend
        return bool(backend._can_zero and backend._can_flush)

    @property
    def is_shareable(self) -> bool:
        """See `Sink.is_shareable`."""
        return bool(self._connection.max_writers > 1)

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        """See `Source.extents`."""
        end = start + length
        listing = self._disk.listing("dirty" if incremental else "zero", self._connection)
        first = bisect.bisect_right(listing, start, key=lambda extent: extent.start) - 1
        for extent in itertools.islice(listing, max(first, 0), None):
            if extent.start >= end:
                break
            begin = max(start, extent.start)
            yield extent._replace(start=begin, length=min(end, extent.end) - begin)

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        """See `Source.readinto`."""
        with _border(self._target):
            # Not `read`: it asks for the disk's size first, for which the client lists all extents on each connection.
            self._connection.write_to(_Sink(buffer), start, len(buffer))

    def write(self, start: int, data: bytes | memoryview) -> None:
        """See `Sink.write`."""
        with _border(self._target, agent_errors.WriteFailed):
            # Not `write`: see `readinto`.
            self._connection.read_from(io.BytesIO(data), start, len(data))

    def zero(self, start: int, length: int, may_punch: bool) -> None:
        """See `Sink.zero`. Whether the space is given up, the ticket says."""
        end = start + length
        with _border(self._target, agent_errors.WriteFailed):
            for place in range(start, end, ZERO_LENGTH):
                self._connection.zero(place, min(ZERO_LENGTH, end - place))

    def flush(self) -> None:
        """See `Sink.flush`."""
        with _border(self._target, agent_errors.WriteFailed):
            self._connection.flush()

    def hang_up(self) -> None:
        """Let what is under way fail at once. From any thread."""
        # The client has no way to do this, and TLS's own shutdown is not for other threads.
        with contextlib.suppress(OSError, ValueError, TypeError):  # closed already
            socket.socket.shutdown(self._connection._backend._con.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Source.close`."""
        self.is_closed = True
        with contextlib.suppress(OSError):
            self._connection.close()


class _Sink:
    """A writer that fills a buffer from its start."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._view = memoryview(buffer)
        self._position = 0

    def write(self, data: memoryview) -> None:
        end = self._position + len(data)
        self._view[self._position : end] = data
        self._position = end


def _check_complete(listed: Sequence[Extent], target: Target) -> None:
    """Raise ProtocolError unless the extents cover the disk without gaps: a hole in the list is no clean range."""
    end = 0
    for extent in listed:
        if extent.start != end or extent.length <= 0:
            break
        end = extent.end
    if end != target.size:
        raise agent_errors.ProtocolError(
            f"Image I/O on host {target.host_name} listed {end} of {target.size} bytes of the disk.",
            "See Image I/O's log on the host.",
        )


@contextlib.contextmanager
def _border(target: Target, failure: type[agent_errors.SourceError] = agent_errors.ReadFailed) -> Iterator[None]:
    """
    Turn what Image I/O's client raises into our errors. The ticket, which is in the URL, stays out of the text.

    failure: what it is when Image I/O answers that it could not do it.
    """
    where = f"Image I/O on host {target.host_name}"
    try:
        yield
    except imageio_http.Error as error:
        if error.code == http.client.FORBIDDEN:
            raise agent_errors.TicketRefused(
                f"{where} refuses the ticket of transfer {target.transfer_id}: it expired or was cancelled.",
                "See the engine's events, then run the backup again.",
            ) from None
        done = "written" if failure is agent_errors.WriteFailed else "read"
        raise failure(
            f"{where} answered {error.code} while the disk was {done}.", "See Image I/O's log on the host."
        ) from None
    except imageio_errors.UnsupportedOperation:
        raise agent_errors.BitmapMissing(f"{where} has no dirty extents for this disk.") from None
    except ssl.SSLCertVerificationError as error:
        raise errors.TransportError(
            f"{where} shows a certificate that the configured CA did not sign ({error.verify_message}).",
            "Check engine.ca_file.",
        ) from None
    except (BrokenPipeError, ConnectionResetError, http.client.IncompleteRead) as error:
        raise errors.TransportError(
            f"{where} hung up in the middle of the disk ({type(error).__name__}).",
            "See its log on the host, and in the engine's events whether the transfer was cancelled; then run again.",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise errors.TransportError(
            f"{where} does not answer: {type(error).__name__} {error}.",
            "Check that the host's Image I/O port can be reached from here.",
        ) from None
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        # What the client raises when an answer is not what it should be: short bodies, bad JSON, missing keys.
        raise agent_errors.ProtocolError(f"{where} answered nonsense ({type(error).__name__}).") from None
