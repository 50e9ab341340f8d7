"""
URLs of tickets: where Image I/O says that a disk is served.

    nbd:unix:PATH[:exportname=NAME]     as vdsm writes them (ovirt-facts, 4.4); PATH has no colon, NAME may be anything
"""

from __future__ import annotations

import os.path
from collections.abc import Sequence

from blockferry_agent import errors
from blockferry_agent.nbd import Address

_UNIX = "nbd:unix:"
_EXPORT = "exportname="


def parse(url: str, directories: Sequence[str]) -> Address:
    """
    Return the export that a ticket's URL names.

    directories: the only ones below which a socket is opened, whatever symbolic links or dots the path has.

    Raises TicketRefused.
    """
    if not url.startswith(_UNIX):
        scheme = url.partition(":")[0]
        raise errors.TicketRefused(
            f"The ticket's disk is at {scheme}:…, and the agent reads disks from local NBD sockets only.",
            "Ask the engine for a transfer of the disk in format raw.",
        )
    path, _, parameter = url[len(_UNIX) :].partition(":")
    if not path.startswith("/") or "\0" in path or (parameter and not parameter.startswith(_EXPORT)):
        raise errors.TicketRefused(f"The ticket's URL {url!r} is not one that vdsm writes.")
    real = os.path.realpath(path)
    if not any(_is_below(real, os.path.realpath(directory)) for directory in directories):
        raise errors.TicketRefused(
            f"The ticket's socket {path} is not in a directory where the agent may open one.",
            "Check nbd_directories in the agent's configuration.",
        )
    return Address(real, parameter[len(_EXPORT) :])


def _is_below(path: str, directory: str) -> bool:
    return path != directory and os.path.commonpath([path, directory]) == directory
