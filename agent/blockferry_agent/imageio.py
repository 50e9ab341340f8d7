"""
Image I/O's local sockets on this host: what a ticket allows, and signs of life for it.

The daemon answers HTTP on two unix sockets: on the control socket about tickets (only members of its group may
connect), on the data socket about images. See ovirt-facts, 4.4 and 5.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blockferry_agent import errors
from blockferry_agent.units import KiB

TIMEOUT = 10.0
"""Seconds for each answer of the daemon; it does nothing here that takes long."""

PEER_TIMEOUT = 1.0
"""Seconds to find out which process the daemon is."""

_PEER = struct.Struct("@3i")  # struct ucred: pid, uid, gid

MAX_BODY = 64 * KiB
"""Longest answer that is looked at; a ticket has some 500 bytes."""


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "transfer_id": str,
    "url": str,
    "size": int,
    "ops": list,
    "canceled": bool,
    "expires": (int, float),
}


class Ticket(NamedTuple):
    """
    The right to one disk.

    id: the ticket's; a secret, never logged.  transfer_id: the engine's image transfer that owns it.
    url: where the disk is served.  size: of the disk, in bytes.
    writable: the disk may be written, too.  sparse: its storage may give up the space of zeros.
    """

    id: str
    transfer_id: str
    url: str
    size: int
    writable: bool = False
    sparse: bool = False


class Imageio:
    """
    The daemon of this host. May be used by any number of threads.

    control_socket, data_socket: paths, or names of abstract sockets with a leading @.
    """

    def __init__(self, control_socket: str, data_socket: str) -> None:
        self._control_socket = control_socket
        self._data_socket = data_socket

    def ticket(self, ticket_id: str, transfer_id: str) -> Ticket:
        """
        Return the ticket, which may be used for reading now: one for writing may be, too.

        Raises InvalidRequest, TicketNotFound, and TicketRefused when it is for another transfer, for neither,
        cancelled or expired, or when the daemon cannot be asked or describes it in an unknown way.
        """
        ticket_id = _canonical("ticket_id", ticket_id)
        transfer_id = _canonical("transfer_id", transfer_id)
        status, body = self._ask(self._control_socket, "GET", f"/tickets/{ticket_id}")
        if status == http.client.NOT_FOUND:
            raise errors.TicketNotFound(
                f"Image I/O on this host has no ticket for transfer {transfer_id}.",
                "The transfer ended, or it is on another host: start a new one.",
            )
        if status != http.client.OK:
            raise errors.TicketRefused(
                f"Image I/O answered {status} when asked for a ticket.", "See its log on the host."
            )
        return _checked(ticket_id, transfer_id, body)

    def touch(self, ticket_id: str) -> None:
        """
        Give a sign of life for a ticket: its idle time starts again, and its end moves ahead.

        The daemon opens the disk for that, so the connection, and with it a place at the NBD server, is given back at
        once.

        Raises TicketRefused.
        """
        status, _ = self._ask(self._data_socket, "OPTIONS", f"/images/{ticket_id}")
        if status != http.client.OK:
            raise errors.TicketRefused(f"Image I/O answered {status} to a sign of life.", "See its log on the host.")

    def cpu_seconds(self) -> float:
        """Return the processor time, user and system, that the daemon has used; 0 when it cannot be seen."""
        try:
            with contextlib.closing(_Connection(self._data_socket, PEER_TIMEOUT)) as connection:
                connection.connect()
                credentials = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            pid, _, _ = _PEER.unpack(credentials)
            # The name, in brackets, may hold anything; proc(5) counts the fields behind it from 3.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[14 - 3]) + int(fields[15 - 3])) / os.sysconf("SC_CLK_TCK")

    def _ask(self, address: str, method: str, path: str) -> tuple[int, bytes]:
        connection = _Connection(address, TIMEOUT)
        try:
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read(MAX_BODY + 1)
        except (OSError, http.client.HTTPException) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            raise errors.TicketRefused(
                f"Image I/O on this host cannot be asked at {address}: {reason}.",
                "Check that ovirt-imageio runs, and that the agent's user is in the group of that socket.",
            ) from None
        finally:
            connection.close()
        if len(body) > MAX_BODY:
            raise errors.ProtocolError(f"Image I/O at {address} sent more than {MAX_BODY} bytes.")
        return response.status, body


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    sock: socket.socket

    def __init__(self, address: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _canonical(name: str, value: str) -> str:
    """Return an id in the one spelling that is used for it. It becomes a part of a path, so it must be a UUID."""
    with contextlib.suppress(ValueError):
        if len(value) == 36:
            return str(uuid.UUID(value))
    raise errors.InvalidRequest(f"The {name} of a ticket must be a UUID.")


def _checked(ticket_id: str, transfer_id: str, body: bytes) -> Ticket:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or any(not isinstance(fields.get(key), kind) for key, kind in _FIELDS.items()):
        raise errors.TicketRefused(
            "Image I/O described a ticket in a way that the agent does not know.", "See its version on the host."
        )
    for problem in _problems(fields, transfer_id):
        raise errors.TicketRefused(f"The ticket of transfer {transfer_id} {problem}.", "Start a new transfer.")
    return Ticket(
        ticket_id,
        transfer_id,
        fields["url"],
        fields["size"],
        writable="write" in fields["ops"],
        sparse=fields.get("sparse") is True,
    )


def _problems(fields: dict[str, Any], transfer_id: str) -> Iterator[str]:
    if fields["transfer_id"] != transfer_id:
        yield "is another transfer's"
    if "read" not in fields["ops"] and "write" not in fields["ops"]:
        yield "is neither for reading nor for writing"
    if fields["canceled"]:
        yield "is cancelled"
    # Image I/O's clock is the elapsed time of times(2), which is not CLOCK_MONOTONIC: on Linux it starts elsewhere
    # (ovirt_imageio, _internal/util.py).
    if fields["expires"] <= os.times().elapsed:
        yield "has expired"
