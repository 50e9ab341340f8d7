"""
The agent's gRPC service: what agent.proto says, with every field checked and every error turned into a status.

One call, one story: look the ticket up in Image I/O, open its export, answer, give everything back. Nothing is kept
between calls but the limits (`gate`) and the time of the last sign of life (`keepalive`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from blockferry_agent import __version__, blocks, digest, errors, nbd, reader, status, url
from blockferry_agent.blocks import Block, Kind, ReadRequest, Summary
from blockferry_agent.gate import Gate
from blockferry_agent.imageio import Imageio, Ticket
from blockferry_agent.keepalive import KeepAlive
from blockferry_agent.source import Extent
from blockferry_proto import PROTOCOL, agent_pb2, agent_pb2_grpc

log = logging.getLogger(__name__)

CONTROLLER_ROLE = b"blockferry:controller"
"""URI name in the only certificates that are served; hosts' own have another (`blockferry.deploy.pki`)."""

MAX_EXTENTS = 4096
"""Extents in one message."""

MAX_LISTED = 65536
"""Entries of `whole_windows` and of `known`."""

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_KINDS = {
    Kind.DATA: agent_pb2.Block.KIND_DATA,
    Kind.ZERO: agent_pb2.Block.KIND_ZERO,
    Kind.SAME: agent_pb2.Block.KIND_SAME,
}


class _Disk(NamedTuple):
    """A disk that a ticket opens."""

    ticket: Ticket
    address: nbd.Address

    def connect(self, bitmap: bool) -> nbd.Connection:
        """Return a new connection, which the caller closes. Raises SourceError, BitmapMissing."""
        connection = nbd.Connection(self.address, bitmap)
        if connection.size != self.ticket.size:
            connection.close()
            raise errors.ProtocolError(
                f"The ticket of transfer {self.ticket.transfer_id} is for {self.ticket.size} bytes, "
                f"but the export at {self.address.path} has {connection.size}.",
                "Start a new transfer.",
            )
        return connection


class Service(agent_pb2_grpc.AgentServicer):
    """
    The service. Its methods run in threads of the gRPC server.

    imageio: the host's daemon.  keepalive: signs of life to it.  gate: limits.
    nbd_directories: the only ones in which sockets are opened.  workers: connections that read one disk.
    """

    def __init__(
        self, imageio: Imageio, keepalive: KeepAlive, gate: Gate, nbd_directories: Sequence[str], workers: int
    ) -> None:
        self._imageio = imageio
        self._keepalive = keepalive
        self._gate = gate
        self._nbd_directories = nbd_directories
        self._workers = workers
        self._started = time.monotonic()

    def Describe(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.DescribeReply:
        with _border(context, "describe"):
            return agent_pb2.DescribeReply(
                version=__version__,
                protocol=PROTOCOL,
                python_version=platform.python_version(),
                host_name=socket.gethostname(),
                uptime_seconds=int(time.monotonic() - self._started),
                active_reads=self._gate.reads,
                resident_bytes=_resident_bytes(),
            )

    def DescribeDisk(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.DescribeDiskRequest, context: grpc.ServicerContext
    ) -> agent_pb2.DescribeDiskReply:
        with _border(context, f"describe disk {_label(request)}"), self._disk(request.ticket, connections=1) as disk:
            connection = disk.connect(bitmap=True)
            connection.close()
            return agent_pb2.DescribeDiskReply(size_bytes=connection.size, dirty_bitmap=connection.has_bitmap)

    def ListExtents(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.ListExtentsRequest, context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.ListExtentsReply]:
        with (
            _border(context, f"list extents {_label(request)}"),
            # A page of extents takes less memory than the smallest window.
            self._gate.read(1, blocks.MIN_WINDOW),
            self._disk(request.ticket, connections=1) as disk,
        ):
            length = _length(request.start, request.length, disk.ticket.size)
            with contextlib.closing(disk.connect(request.incremental)) as connection:
                yield from _pages(connection.extents(request.start, length, request.incremental))

    def ReadBlocks(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.ReadBlocksRequest, context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.ReadBlocksReply]:
        with _border(context, f"read {_label(request)}"):
            started = time.monotonic()
            with (
                self._gate.read(self._workers, _window(request)) as workers,
                self._disk(request.ticket, connections=workers + 1) as disk,
            ):
                wanted = _read_request(request, disk.ticket.size)
                with reader.read(lambda: disk.connect(request.incremental), wanted, workers) as reading:
                    if not context.add_callback(reading.stop):
                        return  # the caller is gone already
                    for block in reading:
                        yield agent_pb2.ReadBlocksReply(block=_block(block))
            # All is given back before the last message, so whoever has that may read on at once.
            _log_reading(disk.ticket, wanted, reading.summary, time.monotonic() - started)
            yield agent_pb2.ReadBlocksReply(summary=_summary(reading.summary))

    @contextlib.contextmanager
    def _disk(self, message: agent_pb2.Ticket, connections: int) -> Iterator[_Disk]:
        """Look a ticket up, and keep it alive inside, where so many connections to its disk may be made."""
        ticket = self._imageio.ticket(message.ticket_id, message.transfer_id)
        address = url.parse(ticket.url, self._nbd_directories)
        with self._gate.connections(ticket, connections), self._keepalive.hold(ticket):
            yield _Disk(ticket, address)


# Errors and callers


@contextlib.contextmanager
def _border(context: grpc.ServicerContext, call: str) -> Iterator[None]:
    """Serve the controller only, and end the call with a status when something inside fails."""
    _check_caller(context)
    try:
        yield
    except errors.Error as error:
        log.warning("%s: %s", call, error)
        _abort(context, error)
    except Exception as error:
        log.exception("%s: failed unexpectedly", call)
        _abort(
            context,
            errors.Error(f"The agent failed unexpectedly ({type(error).__name__}).", "See its log on the host."),
        )


def _check_caller(context: grpc.ServicerContext) -> None:
    """
    Refuse a TLS peer that is not a controller, such as another host's agent.

    Whoever comes over the unix socket was let in by its file mode.
    """
    # types-grpcio has the values as plain bytes; they are lists.
    secure: Mapping[str, Sequence[bytes]] = context.auth_context()  # type: ignore[assignment]
    if secure.get("transport_security_type") == [b"ssl"] and secure.get("peer_uri") != [CONTROLLER_ROLE]:
        log.warning("refused %s, whose certificate is no controller's", context.peer())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "The agent serves only Blockferry's controller.")


def _abort(context: grpc.ServicerContext, error: errors.Error) -> None:
    context.set_trailing_metadata(((status.HINT_KEY, status.hint_of(error)),))
    context.abort(_GRPC_CODES[status.code_of(error)], error.message)


def _label(request: Any) -> str:
    """Name the disk of a request in the log: by its transfer, because the ticket is a secret."""
    return f"of transfer {request.ticket.transfer_id[:36]!r}"


# Requests


def _length(start: int, length: int, size: int) -> int:
    """Return the length of a range of a disk of `size` bytes; 0 means to its end. Raises InvalidRequest."""
    if start > size or length > size - start:
        raise errors.InvalidRequest(f"Bytes {start} to {start + length} are not within the disk, which has {size}.")
    return length or size - start


def _window(message: agent_pb2.ReadBlocksRequest) -> int:
    window = message.window_bytes
    if window & (window - 1) or not blocks.MIN_WINDOW <= window <= blocks.MAX_WINDOW:
        raise errors.InvalidRequest(
            f"window_bytes must be a power of two from {blocks.MIN_WINDOW} to {blocks.MAX_WINDOW}, not {window}."
        )
    return window


def _read_request(message: agent_pb2.ReadBlocksRequest, size: int) -> ReadRequest:
    window = _window(message)
    _check_listed("whole_windows", message.whole_windows)
    if any(start % window for start in message.whole_windows):
        raise errors.InvalidRequest("whole_windows must be multiples of window_bytes.")
    _check_listed("known", [known.start for known in message.known])
    for known in message.known:
        if not 0 < known.length <= window or len(known.xxh3) != digest.LENGTH:
            raise errors.InvalidRequest(f"The known block at {known.start} has an impossible length or digest.")
    return ReadRequest(
        start=message.start,
        length=_length(message.start, message.length, size),
        incremental=message.incremental,
        window=window,
        whole_windows=frozenset(message.whole_windows),
        known={(known.start, known.length): known.xxh3 for known in message.known},
    )


def _check_listed(name: str, starts: Sequence[int]) -> None:
    if len(starts) > MAX_LISTED:
        raise errors.InvalidRequest(f"{name} has {len(starts)} entries, and {MAX_LISTED} are allowed.")
    if any(first >= second for first, second in zip(starts, starts[1:])):
        raise errors.InvalidRequest(f"{name} must be in ascending order.")


# Replies


def _pages(extents: Iterator[Extent]) -> Iterator[agent_pb2.ListExtentsReply]:
    page = agent_pb2.ListExtentsReply()
    for start, length, dirty, zero in extents:
        page.extents.add(start=start, length=length, dirty=dirty, zero=zero)
        if len(page.extents) == MAX_EXTENTS:
            yield page
            page = agent_pb2.ListExtentsReply()
    if page.extents:
        yield page


def _block(block: Block) -> agent_pb2.Block:
    return agent_pb2.Block(
        kind=_KINDS[block.kind], start=block.start, length=block.length, xxh3=block.digest, data=block.data
    )


def _summary(summary: Summary) -> agent_pb2.Summary:
    return agent_pb2.Summary(
        blocks=summary.blocks, dirty_bytes=summary.dirty, read_bytes=summary.read, moved_bytes=summary.moved
    )


def _log_reading(ticket: Ticket, request: ReadRequest, summary: Summary, seconds: float) -> None:
    log.info(
        "transfer %s: bytes %d to %d: %d dirty, %d read, %d moved, in %d blocks and %.1f s",
        ticket.transfer_id,
        request.start,
        request.start + request.length,
        summary.dirty,
        summary.read,
        summary.moved,
        summary.blocks,
        seconds,
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
