"""Writing through an agent, over whatever way leads to it: its own port, or a tunnel."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator

from blockferry import errors
from blockferry.transport.disk import Target
from blockferry.transport.grpc_agent import Agent, ticket_of
from blockferry_agent import compression, wire
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, Known, Range
from blockferry_proto import agent_pb2

FIRST_PROTOCOL = 2
"""Of agents that write."""

BATCH = 16384
"""Ranges that are compared in one call: a message of less than a MiB."""


class AgentUploads:
    """
    Writes through agents (`uploading.UploadTransport`).

    name: of the way.  connect: leads to the agent of a target's host; raises NotFound when none was deployed there.
    """

    is_last_resort = False

    def __init__(self, name: str, connect: Callable[[Target], Agent]) -> None:
        self.name = name
        self._connect = connect

    def open(self, target: Target) -> AgentUpload:
        """See `uploading.UploadTransport.open`."""
        agent = self._connect(target)
        try:
            protocol = agent.describe().protocol
            if protocol < FIRST_PROTOCOL:
                raise errors.AgentUnreachable(
                    f"The agent on {target.host_name} speaks protocol {protocol}, which has no writing.",
                    "Deploy it again (blockferry agent deploy).",
                )
            agent.probe(target)
        except BaseException:
            agent.close()
            raise
        return AgentUpload(agent, target)


class AgentUpload:
    """A disk behind an agent (`uploading.Upload`)."""

    remark = ""

    def __init__(self, agent: Agent, target: Target) -> None:
        self.size = target.size
        self._agent = agent
        self._target = target

    def compare(self, known: Iterable[Known]) -> Iterator[Range]:
        """See `uploading.Upload.compare`."""
        remaining = iter(known)
        while batch := list(itertools.islice(remaining, BATCH)):
            yield from self._compared(batch)

    def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
        """See `uploading.Upload.write`."""
        target = agent_pb2.WriteTarget(ticket=ticket_of(self._target), window_bytes=window)
        feed = _Feed(target, blocks, compress)
        summary: agent_pb2.WriteSummary | None = None
        position = 0
        try:
            with contextlib.closing(self._agent.write(feed)) as replies:
                for reply in replies:
                    if reply.WhichOneof("reply") == "summary":
                        summary = reply.summary
                        continue
                    if not position <= reply.position <= feed.end:
                        raise self._nonsense(f"it wrote up to {reply.position}, and got blocks up to {feed.end}")
                    position = reply.position
                    # The last one waits for the summary, and for what that says.
                    if not (feed.is_complete and position == feed.end):
                        yield position
        except errors.Error:
            feed.close()
            # The stream that broke off is what the agent complains about; why it did is here.
            if feed.failure is not None:
                raise feed.failure from None
            raise
        finally:
            feed.close()
        if feed.failure is not None:
            raise feed.failure
        if summary is None:
            raise errors.TransportError(f"The agent on {self._target.host_name} ended before all was written.")
        if summary != feed.sent:
            raise self._nonsense("what it says it wrote is not what was sent")
        if feed.end:
            yield feed.end

    def close(self) -> None:
        """See `uploading.Upload.close`."""
        self._agent.close()

    def _compared(self, batch: list[Known]) -> Iterator[Range]:
        request = agent_pb2.CompareBlocksRequest(
            ticket=ticket_of(self._target),
            ranges=[
                agent_pb2.ExpectedRange(start=place.start, length=place.length, xxh3=place.digest) for place in batch
            ],
        )
        complete = False
        position = batch[0].start
        with contextlib.closing(self._agent.compare(request)) as replies:
            for reply in replies:
                complete = reply.WhichOneof("reply") == "summary"
                for found in reply.differences.differences:
                    place = Range(found.start, found.length, found.zero)
                    if place.start < position or place.length <= 0 or place.end > batch[-1].end:
                        raise self._nonsense(
                            f"it compared {place.length} bytes at {place.start}, for which nobody asked"
                        )
                    position = place.end
                    yield place
        if not complete:
            raise errors.TransportError(f"The agent on {self._target.host_name} ended before all was compared.")

    def _nonsense(self, what: str) -> agent_errors.ProtocolError:
        return agent_errors.ProtocolError(
            f"The answer of the agent on {self._target.host_name} makes no sense: {what}.", "Deploy the agent again."
        )


class _Feed:
    """
    The messages of a stream of blocks, taken by a thread of gRPC. Closed by who made it.

    When the blocks' maker raises, the stream breaks off, which the agent takes for what it is: nothing is complete.

    end: of the last block that was taken.  is_complete: it was the last one of all.  sent: what the agent shall have
    written.  failure: of the blocks' maker.
    """

    def __init__(self, target: agent_pb2.WriteTarget, blocks: Iterable[Block], compress: bool) -> None:
        self.end = 0
        self.is_complete = False
        self.sent = agent_pb2.WriteSummary()
        self.failure: BaseException | None = None
        self._blocks = iter(blocks)
        self._compress = compress
        self._lock = threading.Lock()
        self._closed = False
        self._messages = self._generate(target)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._closed:
                raise StopIteration
            try:
                return next(self._messages)
            except StopIteration:
                raise
            except BaseException as failure:
                # gRPC would write it to the log, and know nothing better to do with it.
                self.failure = failure
                raise StopIteration from None

    def close(self) -> None:
        """Take no more blocks. When it returns, nobody is taking one."""
        with self._lock:
            self._closed = True

    def _generate(self, target: agent_pb2.WriteTarget) -> Iterator[bytes]:
        yield agent_pb2.WriteBlocksRequest(target=target).SerializeToString()
        for block in self._blocks:
            message = self._message(block)
            self.end = block.end
            self.sent.blocks += 1
            if block.kind is Kind.ZERO:
                self.sent.zero_bytes += block.length
            else:
                self.sent.written_bytes += block.length
            yield message
        self.is_complete = True
        end = agent_pb2.WriteEnd(blocks=self.sent.blocks)
        yield agent_pb2.WriteBlocksRequest(end=end).SerializeToString()

    def _message(self, block: Block) -> bytes:
        if self._compress and block.kind is Kind.DATA:
            smaller = compression.compress(memoryview(block.data))
            if smaller is not None:
                block = block._replace(data=smaller, compressed=True)
        return wire.encode_block(block)
