"""
The fastest transport: an agent opens a TCP port for one disk and one client, and sends the blocks over it in frames.

The port is asked for over gRPC, which brings a token along; `blockferry_agent.frames` says what goes over the socket.
TLS with the same certificates as gRPC's, unless both the controller and the agent are told to do without.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

from blockferry import errors
from blockferry.transport import content, grpc_agent
from blockferry.transport.disk import Reading, Target
from blockferry.transport.grpc_agent import Agent, Endpoint
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.tally import Tally
from blockferry_agent import frames
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.link import Broken, ClearLink, Link, TlsLink
from blockferry_proto import agent_pb2

# Seconds for the port to answer, for the TLS handshake, and for the agent's greeting.
CONNECT_TIMEOUT = 10.0

# Seconds in which something must come of a block that has begun.
PATIENCE = 60.0

# Seconds without a block after which the agent is asked whether it is still there. It may have nothing to send, because
# it waits in line or looks for what changed; but its kernel keeps the connection up when it hangs, too.
SILENCE = 30.0


class NetcatTransport:
    """
    Reads through sockets that agents open.

    connect: to the agent of a target's host, by which the socket is asked for; raises NotFound when there is none.
    endpoint_of: where the host is reached for the socket itself, and the name in its certificate; the port is not used.
    clear_text: without TLS, which the agent must allow.
    """

    name = "netcat"
    is_last_resort = False

    def __init__(
        self,
        connect: Callable[[Target], Agent],
        endpoint_of: Callable[[Target], Endpoint],
        credentials: Credentials,
        clear_text: bool = False,
    ) -> None:
        self._connect = connect
        self._endpoint_of = endpoint_of
        self._context = None if clear_text else credentials.context()

    def open(self, target: Target) -> NetcatDisk:
        """See `disk.Transport.open`. The socket is open when it returns."""
        endpoint = self._endpoint_of(target)
        agent = self._connect(target)
        try:
            agent.probe(target)
            return NetcatDisk(agent, target, endpoint, self._context)
        except BaseException:
            agent.close()
            raise


class NetcatDisk:
    """
    A disk behind a socket of an agent (`disk.Disk`).

    The socket serves one reading after another. One that broke, was closed half-way, or that the agent closed because
    nothing was asked for in a long time, is replaced by a new one when the next reading starts.
    """

    def __init__(self, agent: Agent, target: Target, endpoint: Endpoint, context: ssl.SSLContext | None) -> None:
        """agent: which the disk closes.  context: of TLS; None means clear text."""
        self.size = target.size
        self.remark = "clear text" if context is None else ""
        self._agent = agent
        self._target = target
        self._endpoint = endpoint
        self._context = context
        self._idle: Link | None = self._dial()

    def read(self, request: ReadRequest) -> Reading:
        """See `disk.Disk.read`."""
        message = grpc_agent.read_message(self._target, request)
        message.ClearField("ticket")
        return NetcatReading(self, message, self._agent)

    def close(self) -> None:
        """See `disk.Disk.close`."""
        if self._idle is not None:
            self._idle.close()
        self._agent.close()

    def take(self) -> Link:
        """Return a connection that waits for a request, and that the caller now owns. Raises like `Transport.open`."""
        link, self._idle = self._idle, None
        if link is not None:
            # The agent says nothing unasked, so what has come is its farewell.
            if not link.wait(0):
                return link
            link.close()
        return self._dial()

    def give_back(self, link: Link) -> None:
        """Keep a connection whose reading came to its end for the next one."""
        self._idle = link

    @property
    def where(self) -> str:
        """The agent, in the middle of a sentence."""
        return f"the agent at {self._endpoint.address}"

    def _dial(self) -> Link:
        """Have a socket opened, and connect to it."""
        opened = self._agent.open_socket(self._target, clear_text=self._context is None)
        link: Link | None = None
        try:
            link = _connect(self._endpoint, opened.port, self._context)
            link.send(opened.token)
            if not link.wait(CONNECT_TIMEOUT):
                raise Broken("the agent does not take the token")
            greeting = bytes(link.receive(len(frames.GREETING)))
        except (OSError, Broken) as error:
            if link is not None:
                link.close()
            why = getattr(error, "strerror", None) or error
            raise errors.AgentUnreachable(
                f"TCP port {opened.port}, which {self.where} opened, cannot be used from here: {why}.",
                "Open the ports of netcat_ports on the host for this machine.",
            ) from None
        if greeting != frames.GREETING:
            link.close()
            raise errors.AgentUnreachable(
                f"Something else than the agent answers at {self._endpoint.address}, TCP port {opened.port}.",
                "See what listens there; netcat_ports must be free on the host.",
            )
        return link


class NetcatReading:
    """Blocks as they come over a socket (`disk.Reading`)."""

    def __init__(self, disk: NetcatDisk, message: agent_pb2.ReadBlocksRequest, agent: Agent) -> None:
        self._disk = disk
        self._message = message
        self._agent = agent
        self._frames: frames.Reader | None = None
        self._summary: Summary | None = None
        self._guard = threading.Lock()  # of what is below
        self._link: Link | None = None
        self._closed = False

    def __iter__(self) -> Iterator[Block]:
        link = self._begin()
        try:
            with self._border():
                link.send(frames.of_request(self._message))
                reader = self._frames = frames.Reader(link.receive, self._message.window_bytes, self._disk.where)
                yield from self._blocks(link, reader)
        finally:
            self._end(link)

    @property
    def summary(self) -> Summary:
        """See `disk.Reading.summary`."""
        assert self._summary is not None, "asked before the last block"
        return self._summary

    @property
    def wire_bytes(self) -> int:
        """See `disk.Reading.wire_bytes`."""
        return self._frames.received if self._frames is not None else 0

    def close(self) -> None:
        """See `disk.Reading.close`."""
        with self._guard:
            self._closed = True
            if self._link is not None:
                self._link.close()

    def _begin(self) -> Link:
        """Have a connection, which `close` closes from now on."""
        self._raise_if_closed()
        link = self._disk.take()
        with self._guard:
            self._link = link
            if self._closed:
                link.close()
        return link

    def _end(self, link: Link) -> None:
        """Leave the connection to the next reading if this one came to its end."""
        with self._guard:
            self._link = None
            if self._summary is not None and not self._closed:
                self._disk.give_back(link)
            else:
                link.close()

    def _blocks(self, link: Link, reader: frames.Reader) -> Iterator[Block]:
        tally = Tally(self._disk.where)
        while True:
            while not link.wait(SILENCE):
                self._agent.describe()
            received = reader.next()
            if isinstance(received, Summary):
                tally.check(received)
                self._summary = received
                return
            block = content.plain(received)
            tally.add(block)
            yield block

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise errors.TransportError("The reading was closed before its end.")

    @contextlib.contextmanager
    def _border(self) -> Iterator[None]:
        """Turn what became of the connection into our errors."""
        try:
            yield
        except Broken as broken:
            self._raise_if_closed()
            raise errors.TransportError(
                f"The connection to {self._disk.where} broke: {broken}.",
                "See the agent's log on the host.",
            ) from None


def _connect(endpoint: Endpoint, port: int, context: ssl.SSLContext | None) -> Link:
    """Return a connection to a port of the host. Raises OSError."""
    connection = socket.create_connection((endpoint.address, port), timeout=CONNECT_TIMEOUT)
    try:
        if context is None:
            return ClearLink(connection, PATIENCE)
        return TlsLink(context.wrap_socket(connection, server_hostname=endpoint.server_name), PATIENCE)
    except BaseException:
        connection.close()
        raise
