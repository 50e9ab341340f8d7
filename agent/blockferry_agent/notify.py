"""
Words to systemd, which started the agent as a service of Type=notify. Started by anything else, it says them to nobody.

The protocol is one datagram to the socket that $NOTIFY_SOCKET names: sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket

READY = "READY=1"
"""The agent serves."""

STOPPING = "STOPPING=1"
"""It has begun to stop."""


def tell(state: str) -> None:
    """Tell systemd of a state. Never raises: that nobody listens is no reason not to serve."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.sendto(state.encode("ascii"), address)
