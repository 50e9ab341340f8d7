"""
One reading of a disk through one transport, measured: how long, how much, and what it cost at both ends.

Blocks go to a sink that keeps nothing but checks each, as a repository would, or to a writer.
"""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec
import xxhash

from blockferry import errors
from blockferry.transport.disk import Disk, Target, Transport
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, ReadRequest
from blockferry_agent.units import GiB

# As a backup asks for a disk (`jobs.copying`): so long are the pieces in a full and in an incremental read.
FULL_SPAN = 1 * GiB
INCREMENTAL_SPAN = 64 * GiB

MAX_SAMPLES = 400
"""Points of a time-line; every second one goes when there are more."""


class Sink(Protocol):
    """Takes blocks in disk order; raises for one that is not what was read."""

    def write(self, block: Block) -> None: ...


class HostCost(msgspec.Struct, frozen=True):
    """
    What the agent's host tells: processor seconds so far of the agent and of Image I/O's daemon (0: not to be seen),
    and the bytes of memory that the agent has.
    """

    agent_cpu_seconds: float
    imageio_cpu_seconds: float
    agent_resident: int


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """
    One reading. Bytes and seconds.

    open: until the transport was ready.  first_block: from the request to the first block.  seconds: from the request
    to the last block.  read: read on the host.  moved: content that came.  wire: bytes of the messages it came in,
    without what TLS, SSH and TCP add.
    controller_cpu: of this process, and of ssh where it carries.  host_cpu: of the agent, or of Image I/O's daemon;
    None when nobody can tell.  agent_resident: of the agent's process at the end, None without an agent.
    samples: (seconds, moved) along the way.  remark: what every report must say of the way, such as "clear text".
    """

    disk: str
    number: int
    open: float
    first_block: float
    seconds: float
    read: int
    moved: int
    wire: int
    controller_cpu: float
    host_cpu: float | None
    agent_resident: int | None
    samples: tuple[tuple[float, int], ...]
    remark: str


class Checking:
    """A sink that keeps nothing."""

    def write(self, block: Block) -> None:
        if block.kind is Kind.DATA and xxhash.xxh3_128_digest(block.data) != block.digest:
            raise agent_errors.ProtocolError(f"The block at {block.start} is not what was read on the host.")


def measure(
    transport: Transport,
    target: Target,
    sink: Sink,
    request: ReadRequest,
    ask_host: Callable[[], HostCost | None],
    *,
    disk: str,
    number: int,
) -> Round:
    """
    Read what `request` asks for once.

    request: its range may be long, and is asked for in pieces.  ask_host: for what the host tells, None if nothing.
    disk, number: for the result.

    Raises what the transport raises, and what the sink does.
    """
    host_before, cpu_before, began = ask_host(), _own_cpu(), time.monotonic()
    with contextlib.closing(transport.open(target)) as opened:
        run = _Run(opened, sink, time.monotonic() - began)
        for piece in _pieces(request):
            run.read(piece)
    # Now that it is closed, what ssh has used is known.
    own_cpu = _own_cpu() - cpu_before
    host_after = ask_host()
    return Round(
        disk=disk,
        number=number,
        open=run.open,
        first_block=run.first_block,
        seconds=run.seconds,
        read=run.read_bytes,
        moved=run.moved,
        wire=run.wire,
        controller_cpu=own_cpu,
        host_cpu=_host_cpu(transport.name, host_before, host_after),
        agent_resident=host_after.agent_resident if host_after else None,
        samples=tuple(run.samples),
        remark=run.remark,
    )


class _Run:
    """The counters of one reading. open: seconds that opening took."""

    def __init__(self, disk: Disk, sink: Sink, open: float) -> None:
        self._disk = disk
        self._sink = sink
        self._began = time.monotonic()
        self.open = open
        self.remark = disk.remark
        self.first_block = self.seconds = 0.0
        self.read_bytes = self.moved = self.wire = 0
        self.samples: list[tuple[float, int]] = [(0.0, 0)]
        self._pause = 0.0

    def read(self, request: ReadRequest) -> None:
        """Read one piece."""
        position = request.start
        with contextlib.closing(self._disk.read(request)) as reading:
            for block in reading:
                if not self.first_block:
                    self.first_block = time.monotonic() - self._began
                if not request.incremental and block.start != position:
                    raise agent_errors.ProtocolError(
                        f"The transport left out what is between {position} and {block.start}."
                    )
                position = block.end
                self._sink.write(block)
                self.moved += len(block.data)
                self._sample()
            self.wire += reading.wire_bytes
            self.read_bytes += reading.summary.read
        self.seconds = time.monotonic() - self._began

    def _sample(self) -> None:
        now = time.monotonic() - self._began
        if now - self.samples[-1][0] >= self._pause:
            self.samples.append((now, self.moved))
        if len(self.samples) > MAX_SAMPLES:
            del self.samples[1::2]
            self._pause = 2 * now / MAX_SAMPLES


def _pieces(request: ReadRequest) -> Iterator[ReadRequest]:
    span = INCREMENTAL_SPAN if request.incremental else FULL_SPAN
    end = request.start + request.length
    for start in range(request.start, end, span):
        yield request._replace(start=start, length=min(span, end - start))


def _own_cpu() -> float:
    """Return the processor seconds of this process, and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _host_cpu(transport: str, before: HostCost | None, after: HostCost | None) -> float | None:
    if before is None or after is None:
        return None
    if transport != "imageio":
        return after.agent_cpu_seconds - before.agent_cpu_seconds
    if not after.imageio_cpu_seconds:
        return None
    return after.imageio_cpu_seconds - before.imageio_cpu_seconds


def own_peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def why(error: errors.Error) -> str:
    """Return why a transport is not there, in a sentence or two."""
    return f"{error.message} {error.hint}".strip()
