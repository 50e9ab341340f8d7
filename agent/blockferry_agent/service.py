"""
The agent's gRPC service: what agent.proto says, with every field checked and every error turned into a status.

One call, one story: look the ticket up in Image I/O, open its export, answer, give everything back (`disks`).
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
from typing import Any

import grpc
from google.protobuf import message_factory

from blockferry_agent import __version__, blocks, errors, requests, status, wire
from blockferry_agent.blocks import Block, Summary
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.imageio import Imageio
from blockferry_agent.netcat import Netcat
from blockferry_agent.source import Extent
from blockferry_agent.tls import CONTROLLER_ROLE
from blockferry_proto import PROTOCOL, agent_pb2

log = logging.getLogger(__name__)

MAX_EXTENTS = 4096
"""Extents in one message."""

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


_CONTRACT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]


class Service:
    """
    The service, a method for each of the contract's. They run in threads of the gRPC server.

    disks: what tickets open.  gate: limits.  netcat: opens sockets.  imageio: the host's daemon.
    """

    def __init__(self, disks: Disks, gate: Gate, netcat: Netcat, imageio: Imageio) -> None:
        self._disks = disks
        self._gate = gate
        self._netcat = netcat
        self._imageio = imageio
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
                cpu_seconds=time.process_time(),
                imageio_cpu_seconds=self._imageio.cpu_seconds(),
            )

    def DescribeDisk(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.DescribeDiskRequest, context: grpc.ServicerContext
    ) -> agent_pb2.DescribeDiskReply:
        with (
            _border(context, f"describe disk {_label(request)}"),
            self._disks.open(request.ticket, connections=1) as disk,
        ):
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
            self._disks.open(request.ticket, connections=1) as disk,
        ):
            length = requests.length_of(request.start, request.length, disk.size)
            with contextlib.closing(disk.connect(request.incremental)) as connection:
                yield from _pages(connection.extents(request.start, length, request.incremental))

    def ReadBlocks(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.ReadBlocksRequest, context: grpc.ServicerContext
    ) -> Iterator[Block | Summary]:
        """Yield what `wire` makes messages of, before the next is asked for: blocks are lent."""
        with _border(context, f"read {_label(request)}"):
            with self._disks.reading(request) as reading:
                if not context.add_callback(reading.stop):
                    return  # the caller is gone already
                yield from reading
            yield reading.summary

    def OpenSocket(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.OpenSocketRequest, context: grpc.ServicerContext
    ) -> agent_pb2.OpenSocketReply:
        with _border(context, f"open a socket {_label(request)}"):
            self._disks.ticket(request.ticket)
            return self._netcat.open(request.ticket, request.clear_text)


def serve(service: Service, server: grpc.Server) -> None:
    """Have the server offer the service. Messages with blocks are made by `wire`, all others by protobuf."""
    handlers = {}
    for method in _CONTRACT.methods:
        answer: Any = getattr(service, method.name)
        decode = message_factory.GetMessageClass(method.input_type).FromString
        encode: Any = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.name == "ReadBlocks":
            encode = wire.encode
        if method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(answer, decode, encode)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(answer, decode, encode)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_CONTRACT.full_name, handlers),))


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
        _abort(context, errors.unexpected(error))


def _check_caller(context: grpc.ServicerContext) -> None:
    """
    Refuse a TLS peer that is not a controller, such as another host's agent.

    Whoever comes over the unix socket was let in by its file mode.
    """
    # types-grpcio has the values as plain bytes; they are lists.
    secure: Mapping[str, Sequence[bytes]] = context.auth_context()  # type: ignore[assignment]
    if secure.get("transport_security_type") == [b"ssl"] and secure.get("peer_uri") != [CONTROLLER_ROLE.encode()]:
        log.warning("refused %s, whose certificate is no controller's", context.peer())
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "The agent serves only Blockferry's controller.")


def _abort(context: grpc.ServicerContext, error: errors.Error) -> None:
    context.set_trailing_metadata(((status.HINT_KEY, status.hint_of(error)),))
    context.abort(_GRPC_CODES[status.code_of(error)], error.message)


def _label(request: Any) -> str:
    """Name the disk of a request in the log: by its transfer, because the ticket is a secret."""
    return f"of transfer {request.ticket.transfer_id[:36]!r}"


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


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
