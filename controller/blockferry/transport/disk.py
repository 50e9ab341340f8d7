"""A disk as a transport opens it: what is given to a transport, and what the jobs get from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from blockferry_agent.blocks import Block, ReadRequest, Summary


class Target(NamedTuple):
    """
    A disk that the engine offers for reading, through one image transfer.

    host_name, host_address: the host that holds the ticket, as the engine names it.
    transfer_id: the engine's image transfer.  ticket_id: Image I/O's ticket; a secret, never logged.
    transfer_url: Image I/O on the host.  proxy_url: Image I/O on the engine, None when there is none.
    size: bytes of the disk, as the engine says.
    """

    host_name: str
    host_address: str
    transfer_id: str
    ticket_id: str
    transfer_url: str
    proxy_url: str | None
    size: int


class Reading(Protocol):
    """
    Blocks of a range of a disk, in disk order. Iterated once, by one thread.

    A block's data is its receiver's, and is not compressed any more.

    `close` stops the reading and gives back what it holds, at any moment and from any thread.
    """

    def __iter__(self) -> Iterator[Block]: ...

    @property
    def wire_bytes(self) -> int:
        """Bytes that came for it so far, messages with their heads; what TLS, TCP or SSH add is not known here."""

    @property
    def summary(self) -> Summary:
        """What was covered. Only after the last block."""

    def close(self) -> None: ...


class Disk(Protocol):
    """
    A disk that is open for reading. One reading at a time: an agent's connections are counted, because the NBD server
    hangs at the ninth (ovirt-facts, 6.4). Who opened it closes it.

    Errors of the data path are raised as `TransportError` or one of the agent's errors.
    """

    @property
    def size(self) -> int:
        """Bytes of the disk."""

    @property
    def remark(self) -> str:
        """What every report must say of the way to this disk, such as "clear text"; empty when it need say nothing."""

    def read(self, request: ReadRequest) -> Reading:
        """Start to read. The caller closes the reading."""

    def close(self) -> None:
        """Give back the connection. Never raises."""


class Transport(Protocol):
    """
    A way to open disks.

    name: as the configuration and the reports name it.
    is_last_resort: taken only when the better ones have had enough time, if they are but busy (`ladder`).
    """

    @property
    def name(self) -> str: ...

    @property
    def is_last_resort(self) -> bool: ...

    def open(self, target: Target) -> Disk:
        """
        Open a disk, after having seen that it can be read this way.

        Raises AgentUnreachable or another TransportError when this way is not there, and the agent's errors when it is
        there and refuses the disk.
        """
