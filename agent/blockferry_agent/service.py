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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import message_factory

from blockferry_agent import __version__, blocks, errors, requests, status, versions, wire
from blockferry_agent.blocks import Block, Range, Summary
from blockferry_agent.callers import Callers
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.imageio import Imageio
from blockferry_agent.inbox import Inbox
from blockferry_agent.netcat import Netcat
from blockferry_agent.source import Extent
from blockferry_agent.tls import Certificates
from blockferry_proto import PROTOCOL, agent_pb2

log = logging.getLogger(__name__)

MAX_EXTENTS = 4096
"""Extents, and differences, in one message."""

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


_CONTRACT = agent_pb2.DESCRIPTOR.services_by_name["Agent"]


class Service:
    """
    The service, a method for each of the contract's. They run in threads of the gRPC server.

    disks: what tickets open.  gate: limits.  netcat: opens sockets.  imageio: the host's daemon.
    callers: who is served.  certificates: whose end is told; None when there are none.
    """

    def __init__(
        self,
        disks: Disks,
        gate: Gate,
        netcat: Netcat,
        imageio: Imageio,
        callers: Callers,
        certificates: Certificates | None,
    ) -> None:
        self._disks = disks
        self._gate = gate
        self._netcat = netcat
        self._imageio = imageio
        self._callers = callers
        self._certificates = certificates
        self._started = time.monotonic()

    def Describe(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.DescribeReply:
        with self._border(context, "describe", any_version=True):
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
                load=os.getloadavg()[0],
                cores=os.cpu_count() or 0,
                certificate_expires=self._certificates.expires if self._certificates is not None else 0,
                stopping=self._gate.closed,
            )

    def DescribeDisk(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.DescribeDiskRequest, context: grpc.ServicerContext
    ) -> agent_pb2.DescribeDiskReply:
        with (
            self._border(context, f"describe disk {_label(request)}"),
            self._disks.open(request.ticket, connections=1) as disk,
        ):
            connection = disk.connect(bitmap=True)
            connection.close()
            return agent_pb2.DescribeDiskReply(
                size_bytes=connection.size,
                dirty_bitmap=connection.has_bitmap,
                writable=disk.ticket.writable and connection.is_writable,
            )

    def ListExtents(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.ListExtentsRequest, context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.ListExtentsReply]:
        with (
            self._border(context, f"list extents {_label(request)}") as caller,
            # A page of extents takes less memory than the smallest window.
            self._gate.read(1, blocks.MIN_WINDOW, caller),
            self._disks.open(request.ticket, connections=1) as disk,
        ):
            length = requests.length_of(request.start, request.length, disk.size)
            with contextlib.closing(disk.connect(request.incremental)) as connection:
                yield from _pages(connection.extents(request.start, length, request.incremental))

    def ReadBlocks(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.ReadBlocksRequest, context: grpc.ServicerContext
    ) -> Iterator[Block | Summary]:
        """Yield what `wire` makes messages of, before the next is asked for: blocks are lent."""
        with self._border(context, f"read {_label(request)}") as caller:
            with self._disks.reading(request, caller) as reading:
                if not context.add_callback(reading.stop):
                    return  # the caller is gone already
                yield from reading
            yield reading.summary

    def WriteBlocks(  # noqa: N802 -- the contract's name
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.WriteBlocksReply]:
        """Take in messages as they came: their blocks are taken out of them by `wire`."""
        with self._border(context, "write") as caller, contextlib.closing(Inbox(messages)) as inbox:
            if not context.add_callback(inbox.close):
                return  # the caller is gone already
            with self._disks.writing(inbox.target(), inbox, caller) as writing:
                if not context.add_callback(writing.stop):
                    return
                for position in writing:
                    yield agent_pb2.WriteBlocksReply(position=position)
            blocks, data, zeros = writing.written
            yield agent_pb2.WriteBlocksReply(
                summary=agent_pb2.WriteSummary(blocks=blocks, written_bytes=data, zero_bytes=zeros)
            )

    def CompareBlocks(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.CompareBlocksRequest, context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.CompareBlocksReply]:
        with self._border(context, f"compare {_label(request)}") as caller:
            with self._disks.comparing(request, caller) as comparison:
                if not context.add_callback(comparison.stop):
                    return  # the caller is gone already
                yield from _difference_pages(comparison)
            yield agent_pb2.CompareBlocksReply(
                summary=agent_pb2.CompareSummary(
                    compared_bytes=sum(listed.length for listed in request.ranges), read_bytes=comparison.read_bytes
                )
            )

    def OpenSocket(  # noqa: N802 -- the contract's name
        self, request: agent_pb2.OpenSocketRequest, context: grpc.ServicerContext
    ) -> agent_pb2.OpenSocketReply:
        with self._border(context, f"open a socket {_label(request)}") as caller:
            self._disks.ticket(request.ticket)
            return self._netcat.open(request.ticket, request.clear_text, caller)

    @contextlib.contextmanager
    def _border(self, context: grpc.ServicerContext, call: str, any_version: bool = False) -> Iterator[str]:
        """
        Serve the controller only, and end the call with a status when something inside fails.

        any_version: of the controller; else he must understand this agent.  The value is a name for him.
        """
        caller = self._callers.check(context)
        try:
            if not any_version:
                versions.check(context.invocation_metadata())
            yield caller
        except errors.Error as error:
            log.warning("%s: %s", call, error)
            _abort(context, error)
        except Exception as error:
            log.exception("%s: failed unexpectedly", call)
            _abort(context, errors.unexpected(error))


def serve(service: Service, server: grpc.Server) -> None:
    """Have the server offer the service. Messages with blocks are for `wire`, all others for protobuf."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in _CONTRACT.methods:
        answer: Any = getattr(service, method.name)
        decode: Any = message_factory.GetMessageClass(method.input_type).FromString
        encode: Any = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.name == "ReadBlocks":
            encode = wire.encode
        if method.client_streaming:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(answer, None, encode)
        elif method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(answer, decode, encode)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(answer, decode, encode)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_CONTRACT.full_name, handlers),))


# Errors


def _abort(context: grpc.ServicerContext, error: errors.Error) -> None:
    context.set_trailing_metadata(tuple(status.metadata_of(error)))
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


def _difference_pages(differences: Iterable[Range]) -> Iterator[agent_pb2.CompareBlocksReply]:
    page = agent_pb2.Differences()
    for start, length, zero in differences:
        page.differences.add(start=start, length=length, zero=zero)
        if len(page.differences) == MAX_EXTENTS:
            yield agent_pb2.CompareBlocksReply(differences=page)
            page = agent_pb2.Differences()
    if page.differences:
        yield agent_pb2.CompareBlocksReply(differences=page)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
