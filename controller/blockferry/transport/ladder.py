"""
The ladder: the transports in the order of the configuration, of which the first that answers carries the disk.

An error of the disk itself (its server is gone, the storage fails) ends the climb: no other transport would read what
is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blockferry import errors
from blockferry.transport.disk import Disk, Target, Transport
from blockferry_agent import errors as agent_errors


class Opened(NamedTuple):
    """
    A disk, and how it came to be opened.

    transport: name of the transport that carries it.
    why: why each better one does not, a sentence each; empty for the first choice.
    """

    disk: Disk
    transport: str
    why: str


def open_first(transports: Sequence[Transport], target: Target) -> Opened:
    """
    Open `target` through the first transport that answers.

    Raises TransportError, with every transport's reason, when none does.
    """
    reasons: list[str] = []
    for transport in transports:
        try:
            disk = transport.open(target)
        except agent_errors.SourceError:
            raise
        except agent_errors.Error as error:
            reasons.append(f"{transport.name}: {error.message}")
        else:
            return Opened(disk, transport.name, " ".join(reasons))
    raise errors.TransportError(
        f"No transport reaches the disk on host {target.host_name} ({target.host_address}). " + " ".join(reasons),
        "Deploy the agent (blockferry agent deploy), or allow Image I/O's port from here.",
    )
