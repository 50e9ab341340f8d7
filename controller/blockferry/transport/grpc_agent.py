"""The default transport: an agent on the host reads the disk over NBD and sends its blocks over gRPC and mutual TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blockferry import errors
from blockferry.transport import content, mutual_tls, versions
from blockferry.transport.disk import Reading, Target
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.tally import Tally
from blockferry_agent import errors as agent_errors
from blockferry_agent import status, wire
from blockferry_agent.blocks import MAX_WINDOW, Block, Range, ReadRequest, Summary
from blockferry_agent.units import KiB
from blockferry_proto import agent_pb2, agent_pb2_grpc

# Seconds for a call that answers at once when all is well.
PROBE_TIMEOUT = 10.0

# Seconds after which a silent agent is asked for a sign of life (it allows that every 10 s), and to wait for one.
KEEPALIVE = 20
PING_TIMEOUT = 20

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_WINDOW + 64 * KiB),
    # A block in one frame, read from the socket in large pieces.
    *wire.LARGE_MESSAGES,
    # A host that vanished without a word, or an agent that hangs, is noticed within so many seconds, also when nothing
    # is being sent. Two limits, because the first does not count while another ping of gRPC's own is under way.
    ("grpc.keepalive_time_ms", KEEPALIVE * 1000),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT * 1000),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT * 1000),
    ("grpc.http2.max_pings_without_data", 0),
    # A host is not reached through whatever proxy the operator's shell names for the web.
    ("grpc.enable_http_proxy", 0),
]


# What gRPC says of a connection that one of the two sides gave up in the handshake or right behind it.
_TRACES_OF_TLS = ("handshak", "erification", "SSL", "Socket closed", "onnection reset")

# What gRPC's server says when it has more calls in hand than it may; the agent itself does not hear of this one.
_TOO_MANY_CALLS = "Concurrent RPC limit exceeded!"


class Endpoint(NamedTuple):
    """
    Where an agent listens.

    address, port: to connect to.  server_name: the name in its certificate.
    """

    address: str
    port: int
    server_name: str

    @property
    def where(self) -> str:
        """The agent, for messages."""
        return f"the agent at {self.address}:{self.port}"


class LocalEndpoint(NamedTuple):
    """
    Where a tunnel from an agent's Unix socket ends here.

    path: a socket of this machine.  where: the agent, for messages.
    """

    path: Path
    where: str


class GrpcTransport:
    """
    Reads through agents.

    endpoint_of: finds the agent of a target's host; raises NotFound when none was deployed there.
    """

    name = "grpc"
    is_last_resort = False

    def __init__(self, credentials: Credentials, endpoint_of: Callable[[Target], Endpoint]) -> None:
        self._credentials = credentials
        self._endpoint_of = endpoint_of

    def open(self, target: Target) -> AgentDisk:
        """See `disk.Transport.open`."""
        agent = Agent(self._endpoint_of(target), self._credentials)
        try:
            agent.probe(target)
        except BaseException:
            agent.close()
            raise
        return AgentDisk(agent, target)


class Agent:
    """
    A connection to one agent, for any number of threads. Who made it closes it.

    Every method raises AgentUnreachable when no agent answers, TransportError when the connection breaks, and the
    agent's own errors.
    """

    def __init__(self, endpoint: Endpoint | LocalEndpoint, credentials: Credentials | None = None) -> None:
        """credentials: for an Endpoint. A tunnel's end is guarded by its mode, and its way by SSH."""
        self._where = endpoint.where
        self._endpoint = endpoint
        self._credentials = credentials
        self._opened = _channel(endpoint, credentials)
        self._channel = versions.telling(self._opened)
        self._stub = agent_pb2_grpc.AgentStub(self._channel)  # type: ignore[no-untyped-call]  # generated
        # Its messages are taken apart by `wire`, in the thread that wants their blocks.
        self._read_blocks: Callable[[agent_pb2.ReadBlocksRequest], _Call] = self._channel.unary_stream(
            wire.METHOD, request_serializer=agent_pb2.ReadBlocksRequest.SerializeToString
        )
        # Its requests are made by `wire`.
        self._write_blocks: Callable[[Iterator[bytes]], Any] = self._channel.stream_stream(
            wire.WRITE_METHOD, request_serializer=bytes, response_deserializer=agent_pb2.WriteBlocksReply.FromString
        )

    def describe(self) -> agent_pb2.DescribeReply:
        """Ask who is there. Refuses an agent whose protocol is not a neighbour of this controller's."""
        with self._border():
            reply: agent_pb2.DescribeReply = self._stub.Describe(agent_pb2.DescribeRequest(), timeout=PROBE_TIMEOUT)
        versions.check(reply, self._where)
        return reply

    def health(self) -> str:
        """Ask the standard health service: "SERVING", or "NOT_SERVING" from when the agent begins to stop."""
        # The stubs of grpcio-health-checking have no types.
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        with self._border():
            reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def describe_disk(self, target: Target) -> agent_pb2.DescribeDiskReply:
        """Ask what the agent sees of a disk; proves that it can reach it."""
        with self._border():
            reply: agent_pb2.DescribeDiskReply = self._stub.DescribeDisk(
                agent_pb2.DescribeDiskRequest(ticket=ticket_of(target)), timeout=3 * PROBE_TIMEOUT
            )
        return reply

    def probe(self, target: Target) -> agent_pb2.DescribeDiskReply:
        """Raise unless the agent can read the disk, and sees in it what the engine sees; return what it sees."""
        self.describe()
        seen = self.describe_disk(target)
        if seen.size_bytes != target.size:
            raise agent_errors.ProtocolError(
                f"The engine says that the disk has {target.size} bytes, the agent on {target.host_name} sees "
                f"{seen.size_bytes}."
            )
        return seen

    def open_socket(self, target: Target, clear_text: bool) -> agent_pb2.OpenSocketReply:
        """Have a TCP port opened for one client of the disk."""
        request = agent_pb2.OpenSocketRequest(ticket=ticket_of(target), clear_text=clear_text)
        with self._border():
            reply: agent_pb2.OpenSocketReply = self._stub.OpenSocket(request, timeout=PROBE_TIMEOUT)
        return reply

    def read(self, target: Target, request: ReadRequest) -> AgentReading:
        """Start a reading."""
        call = self._read_blocks(read_message(target, request))
        return AgentReading(call, self._border, self._where)

    def write(self, messages: Iterator[bytes]) -> Generator[agent_pb2.WriteBlocksReply, None, None]:
        """Write blocks (see WriteBlocks in agent.proto); closing the generator ends the call."""
        return self._replies(lambda: self._write_blocks(messages))

    def compare(self, request: agent_pb2.CompareBlocksRequest) -> Generator[agent_pb2.CompareBlocksReply, None, None]:
        """Compare ranges of a disk with what they should hold; closing the generator ends the call."""
        return self._replies(lambda: self._stub.CompareBlocks(request))

    def changed(self, target: Target) -> Iterator[Range]:
        """Generate what has changed since the base checkpoint of the disk's backup, in disk order, without overlap."""
        request = agent_pb2.ListExtentsRequest(ticket=ticket_of(target), incremental=True)
        position = 0
        for reply in self._replies(lambda: self._stub.ListExtents(request)):
            for extent in reply.extents:
                place = Range(extent.start, extent.length, extent.zero)
                if place.start < position or place.length <= 0 or place.end > target.size:
                    raise agent_errors.ProtocolError(f"{self._where} lists extents that the disk cannot have.")
                position = place.end
                if extent.dirty:
                    yield place

    def close(self) -> None:
        """Close the connection; what still runs on it ends with an error."""
        self._opened.close()

    def _replies(self, start: Callable[[], Any]) -> Generator[Any, None, None]:
        """Generate the replies of a call, which ends with the generator."""
        with self._border():
            call = start()
            try:
                yield from call
            finally:
                call.cancel()

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        """Turn gRPC's errors into ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise self._refusal(error) or _error(error, self._where) from None

    def _refusal(self, error: grpc.RpcError) -> agent_errors.Error | None:
        """Return why there is no connection, when one of the two certificates is the reason."""
        assert isinstance(error, grpc.Call)
        if isinstance(self._endpoint, LocalEndpoint) or error.code() is not grpc.StatusCode.UNAVAILABLE:
            return None
        details = error.details() or ""
        if not any(trace in details for trace in _TRACES_OF_TLS):
            return None
        assert self._credentials is not None, "TLS without certificates"
        address, port, server_name = self._endpoint
        return mutual_tls.refusal(address, port, server_name, self._credentials, self._where)


class AgentDisk:
    """A disk behind an agent (`disk.Disk`)."""

    remark = ""

    def __init__(self, agent: Agent, target: Target) -> None:
        self.size = target.size
        self._agent = agent
        self._target = target

    def read(self, request: ReadRequest) -> Reading:
        """See `disk.Disk.read`."""
        return self._agent.read(self._target, request)

    def close(self) -> None:
        """See `disk.Disk.close`."""
        self._agent.close()


class _Call(Protocol):
    """A call whose replies come as a stream of messages."""

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> bool: ...


class AgentReading:
    """Blocks as they come from an agent (`disk.Reading`)."""

    def __init__(
        self,
        call: _Call,
        border: Callable[[], contextlib.AbstractContextManager[None]],
        where: str,
    ) -> None:
        self._call = call
        self._border = border
        self._where = where
        self._summary: Summary | None = None
        self.wire_bytes = 0

    def __iter__(self) -> Iterator[Block]:
        tally = Tally(self._where)
        with self._border():
            for message in self._call:
                self.wire_bytes += len(message)
                reply = wire.decode(message)
                if isinstance(reply, Summary):
                    self._summary = reply
                    continue
                block = content.plain(reply)
                tally.add(block)
                yield block
        if self._summary is None:
            raise errors.TransportError(f"The stream of {self._where} ended early.", "Run the backup again.")
        tally.check(self._summary)

    @property
    def summary(self) -> Summary:
        """See `disk.Reading.summary`."""
        assert self._summary is not None, "asked before the last block"
        return self._summary

    def close(self) -> None:
        """See `disk.Reading.close`."""
        self._call.cancel()


def read_message(target: Target, request: ReadRequest) -> agent_pb2.ReadBlocksRequest:
    """Return a request as an agent takes it."""
    return agent_pb2.ReadBlocksRequest(
        ticket=ticket_of(target),
        start=request.start,
        length=request.length,
        incremental=request.incremental,
        window_bytes=request.window,
        whole_windows=sorted(request.whole_windows),
        known=[
            agent_pb2.KnownBlock(start=start, length=length, xxh3=xxh3)
            for (start, length), xxh3 in sorted(request.known.items())
        ],
        compress=request.compress,
        bytes_per_second=request.bytes_per_second,
    )


def _channel(endpoint: Endpoint | LocalEndpoint, credentials: Credentials | None) -> grpc.Channel:
    if isinstance(endpoint, LocalEndpoint):
        return grpc.insecure_channel(f"unix:{endpoint.path}", options=_CHANNEL_OPTIONS)
    assert credentials is not None, "an agent is asked over TLS with both sides' certificates"
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return grpc.secure_channel(
        f"{address}:{endpoint.port}",
        grpc.ssl_channel_credentials(credentials.ca, credentials.key, credentials.certificate),
        options=[*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", endpoint.server_name)],
    )


def ticket_of(target: Target) -> agent_pb2.Ticket:
    """Return what tells an agent which disk is meant."""
    return agent_pb2.Ticket(ticket_id=target.ticket_id, transfer_id=target.transfer_id)


def _error(error: grpc.RpcError, where: str) -> agent_errors.Error:
    """Return our error for gRPC's: the agent's own by its status code, else what became of the connection."""
    assert isinstance(error, grpc.Call)
    code, details = error.code(), error.details() or ""
    own = status.error_from(code.value[0], details, dict(error.trailing_metadata() or ()))
    if own is not None:
        return own
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and details == _TOO_MANY_CALLS:
        return agent_errors.Busy(f"{_sentence(where)} has more calls in hand than it may.", "Wait for other backups.")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return errors.AgentUnreachable(
            f"{_sentence(where)} does not serve this controller ({details}).",
            "Deploy the agent from here (`blockferry agent deploy`).",
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return errors.AgentUnreachable(
            f"{_sentence(where)} does not answer ({details}).", "See `blockferry agent status`."
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.AgentUnreachable(f"{_sentence(where)} did not answer in time.", "See `blockferry agent status`.")
    return errors.TransportError(
        f"{_sentence(where)} failed: {code.name} {details}.", "See the agent's log on the host."
    )


def _sentence(where: str) -> str:
    """Return the agent as a sentence begins with it."""
    return where[0].upper() + where[1:]
