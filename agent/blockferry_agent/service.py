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

from blockferry_agent import __version__, blocks, errors, requests, status
from blockferry_agent.blocks import Block, Kind, Summary
from blockferry_agent.disks import Disks
from blockferry_agent.gate import Gate
from blockferry_agent.source import Extent
from blockferry_proto import PROTOCOL, agent_pb2, agent_pb2_grpc

log = logging.getLogger(__name__)

CONTROLLER_ROLE = b"blockferry:controller"
"""URI name in the only certificates that are served; hosts' own have another (`blockferry.deploy.pki`)."""

MAX_EXTENTS = 4096
"""Extents in one message."""

_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}

_KINDS = {
    Kind.DATA: agent_pb2.Block.KIND_DATA,
    Kind.ZERO: agent_pb2.Block.KIND_ZERO,
    Kind.SAME: agent_pb2.Block.KIND_SAME,
}


class Service(agent_pb2_grpc.AgentServicer):
    """
    The service. Its methods run in threads of the gRPC server.

    disks: what tickets open.  gate: limits.
    """

    def __init__(self, disks: Disks, gate: Gate) -> None:
        self._disks = disks
        self._gate = gate
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
    ) -> Iterator[agent_pb2.ReadBlocksReply]:
        with _border(context, f"read {_label(request)}"):
            with self._disks.reading(request) as reading:
                if not context.add_callback(reading.stop):
                    return  # the caller is gone already
                for block in reading:
                    yield agent_pb2.ReadBlocksReply(block=_block(block))
            yield agent_pb2.ReadBlocksReply(summary=_summary(reading.summary))


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
        blocks=summary.blocks,
        dirty_bytes=summary.dirty,
        read_bytes=summary.read,
        moved_bytes=summary.moved,
        stalled_seconds=summary.stalled,
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
