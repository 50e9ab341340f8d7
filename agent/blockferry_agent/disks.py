"""
The disks that tickets open, for as long as a call needs one.

Nothing is kept between calls but the limits (`gate`) and the time of the last sign of life (`keepalive`).
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence

from blockferry_agent import compare, errors, nbd, reader, requests, url, writer
from blockferry_agent.compare import Comparison
from blockferry_agent.gate import Gate
from blockferry_agent.imageio import Imageio, Ticket
from blockferry_agent.inbox import Inbox
from blockferry_agent.keepalive import KeepAlive
from blockferry_agent.reader import Reading
from blockferry_agent.throttle import Throttle
from blockferry_agent.writer import Writing
from blockferry_proto import agent_pb2

log = logging.getLogger(__name__)


class Disk:
    """
    A disk that a ticket opens.

    ticket: as Image I/O knows it.  size: bytes.
    """

    def __init__(self, ticket: Ticket, address: nbd.Address) -> None:
        self.ticket = ticket
        self.size = ticket.size
        self._address = address

    def connect_to_write(self) -> nbd.Connection:
        """Return a new connection that may write, which the caller closes. Raises SourceError, TicketRefused."""
        connection = self.connect(bitmap=False)
        if not connection.is_writable:
            connection.close()
            raise errors.TicketRefused(
                f"The export at {self._address.path} cannot be written, flushed, or filled with zeros.",
                "Start a new transfer, of direction upload.",
            )
        return connection

    def connect(self, bitmap: bool) -> nbd.Connection:
        """Return a new connection, which the caller closes. Raises SourceError, BitmapMissing."""
        connection = nbd.Connection(self._address, bitmap)
        if connection.size != self.size:
            connection.close()
            raise errors.ProtocolError(
                f"The ticket of transfer {self.ticket.transfer_id} is for {self.size} bytes, "
                f"but the export at {self._address.path} has {connection.size}.",
                "Start a new transfer.",
            )
        return connection


class Disks:
    """
    Opens disks. May be used by any number of threads.

    imageio: the host's daemon.  keepalive: signs of life to it.  gate: limits.
    nbd_directories: the only ones in which sockets are opened.  workers: connections that read one disk.
    throttle: the limit of speed for all readings together.
    """

    def __init__(
        self,
        imageio: Imageio,
        keepalive: KeepAlive,
        gate: Gate,
        nbd_directories: Sequence[str],
        workers: int,
        throttle: Throttle,
    ) -> None:
        self._imageio = imageio
        self._keepalive = keepalive
        self._gate = gate
        self._nbd_directories = nbd_directories
        self._workers = workers
        self._throttle = throttle

    def ticket(self, message: agent_pb2.Ticket) -> Ticket:
        """Return what Image I/O knows of a ticket. Raises TicketNotFound, TicketRefused, Busy."""
        with self._gate.lookup(message.ticket_id):
            return self._imageio.ticket(message.ticket_id, message.transfer_id)

    @contextlib.contextmanager
    def open(self, message: agent_pb2.Ticket, connections: int) -> Iterator[Disk]:
        """Look a ticket up, and keep it alive inside, where so many connections to its disk may be made."""
        ticket = self.ticket(message)
        address = url.parse(ticket.url, self._nbd_directories)
        with self._gate.connections(ticket, connections), self._keepalive.hold(ticket):
            yield Disk(ticket, address)

    @contextlib.contextmanager
    def reading(self, message: agent_pb2.ReadBlocksRequest, caller: str) -> Iterator[Reading]:
        """
        Have a reading of what `message` asks for, after having waited in line for it.

        caller: for whom (`gate`).

        At the end it has stopped, and all that it took is given back. So its summary is sent behind the end: who has
        that may read on at once.
        """
        started = time.monotonic()
        with (
            self._gate.read(self._workers, requests.window_of(message), caller) as workers,
            self.open(message.ticket, connections=workers + 1) as disk,
        ):
            request = requests.read_request(message, disk.size)
            with reader.read(lambda: disk.connect(request.incremental), request, workers, [self._throttle]) as reading:
                yield reading
        if reading.finished:
            summary = reading.summary
            log.info(
                "transfer %s: bytes %d to %d: %d dirty, %d read, %d moved, in %d blocks and %.1f s",
                disk.ticket.transfer_id,
                request.start,
                request.start + request.length,
                summary.dirty,
                summary.read,
                summary.moved,
                summary.blocks,
                time.monotonic() - started,
            )

    @contextlib.contextmanager
    def writing(self, message: agent_pb2.WriteTarget, inbox: Inbox, caller: str) -> Iterator[Writing]:
        """Have a writing of what comes in to what `message` names, after having waited in line for it."""
        started = time.monotonic()
        window = requests.window_of(message)
        with (
            self._gate.read(self._workers, window, caller) as workers,
            self.open(message.ticket, connections=workers) as disk,
        ):
            if not disk.ticket.writable:
                raise errors.TicketRefused(
                    f"The ticket of transfer {disk.ticket.transfer_id} is not for writing.",
                    "Start a new transfer, of direction upload.",
                )
            target = writer.Target(disk.connect_to_write, disk.size, disk.ticket.sparse)
            writing = Writing(target, inbox, window, workers, [self._throttle], inbox.close)
            with contextlib.closing(writing):
                yield writing
        if writing.finished:
            written = writing.written
            log.info(
                "transfer %s: %d bytes written, %d zero, in %d blocks and %.1f s",
                disk.ticket.transfer_id,
                written.data,
                written.zeros,
                written.blocks,
                time.monotonic() - started,
            )

    @contextlib.contextmanager
    def comparing(self, message: agent_pb2.CompareBlocksRequest, caller: str) -> Iterator[Comparison]:
        """Have a comparison that `message` asks for, after having waited in line for it. At its end it has stopped."""
        known = requests.expected(message)
        request = compare.request(known)
        with (
            self._gate.read(self._workers, request.window, caller) as workers,
            self.open(message.ticket, connections=workers + 1) as disk,
        ):
            requests.length_of(request.start, request.length, disk.size)
            with reader.read(
                lambda: disk.connect(bitmap=False), request, workers, [self._throttle], compare.cut(known)
            ) as reading:
                yield Comparison(request, reading)
