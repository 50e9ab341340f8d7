"""A disk that is open for writing, and what opens it: what a restore gets from a transport."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from blockferry.transport.disk import Target
from blockferry_agent.blocks import Block, Known, Range


class Upload(Protocol):
    """
    A disk that is open for writing, through one image transfer. One call at a time. Who opened it closes it.

    Errors of the data path are raised as `TransportError` or one of the agent's errors; what `known` and `blocks` raise
    when they are iterated is raised as it is.
    """

    @property
    def size(self) -> int:
        """Bytes of the disk."""

    @property
    def remark(self) -> str:
        """What every report must say of the way to this disk; empty when it need say nothing."""

    def compare(self, known: Iterable[Known]) -> Iterator[Range]:
        """
        Generate what differs: whole ranges of those with a digest, parts of those that should be zeros (`Range.zero`).

        known: in disk order, without overlap; those with a digest no longer than a window may be.
        """

    def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
        """
        Write blocks, and generate positions: all blocks that end there or before are written. Ascending; the last one
        is the end of the last block, and comes when everything is durable.

        blocks: of kind DATA and ZERO, not compressed, in disk order. They are taken ahead of what is written, and by
        other threads, one at a time.  window: the longest that a DATA block may be, bytes.
        compress: send the data of blocks compressed where they get smaller by it.
        """

    def close(self) -> None:
        """Give back the connection. Never raises."""


class UploadTransport(Protocol):
    """
    A way to open disks for writing.

    name: as the configuration and the reports name it.
    is_last_resort: taken only when the better ones have had enough time, if they are but busy (`ladder`).
    """

    @property
    def name(self) -> str: ...

    @property
    def is_last_resort(self) -> bool: ...

    def open(self, target: Target) -> Upload:
        """
        Open a disk, after having seen that it can be written this way.

        Raises AgentUnreachable or another TransportError when this way is not there, and the agent's errors when it is
        there and refuses the disk.
        """
