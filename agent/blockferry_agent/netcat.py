"""
The agent's side of the `netcat` transport: ports that open for one ticket and one client, who then asks for readings.

`frames` says what goes over the socket, `door` how the client comes in. Each port has a thread of its own, from the
moment it opens until its client is gone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Callable

from blockferry_agent import errors, frames
from blockferry_agent.disks import Disks
from blockferry_agent.door import Door
from blockferry_agent.link import Broken, Link
from blockferry_agent.reader import Reading
from blockferry_agent.tls import Certificates
from blockferry_proto import agent_pb2

log = logging.getLogger(__name__)

WAIT = 20
"""Seconds for which a port waits for its client."""

PATIENCE = 120.0
"""
Seconds in which the client must have taken a block, and for which it may ask for nothing. It must not be short: a
repository that is slow for a while keeps the client from receiving.
"""

GRACE = 2.0
"""Seconds that clients have to be gone when the agent stops."""


class Netcat:
    """
    Opens ports. May be used by any number of threads.

    disks: what tickets open.  max_open: ports that wait or serve at once.
    addresses, ports: where it listens; no ports, and it never does.
    certificates: for mutual TLS; None when the agent has none.  clear_text: it may do without.
    """

    def __init__(
        self,
        disks: Disks,
        max_open: int,
        addresses: Sequence[str],
        ports: range,
        certificates: Certificates | None,
        clear_text: bool,
    ) -> None:
        self._disks = disks
        self._max_open = max_open
        self._addresses = addresses
        self._ports = ports
        self._certificates = certificates
        self._clear_text = clear_text
        self._guard = threading.Lock()  # of all below
        self._closed = False
        self._clients: set[_Client] = set()

    def open(self, ticket: agent_pb2.Ticket, clear_text: bool, caller: str) -> agent_pb2.OpenSocketReply:
        """
        Open a port for the client of a ticket, which the caller has looked up.

        Raises InvalidRequest when the configuration does not allow it, Busy when too many are open.
        """
        self._check_allowed(clear_text)
        with self._guard:
            if self._closed:
                raise errors.Busy("The agent is stopping.", "Try again when it has been started.")
            if len(self._clients) >= self._max_open:
                raise errors.Busy(
                    f"The agent has {len(self._clients)} sockets open already, and may not open more.",
                    "Wait for other backups, or allow more (max_reads).",
                )
            door = Door(self._addresses, self._ports, None if clear_text else self._certificates)
            client = _Client(self._disks, ticket, caller, door, self._forget)
            try:
                client.thread.start()
            except BaseException:
                door.close()
                raise
            self._clients.add(client)
        return agent_pb2.OpenSocketReply(port=door.port, token=door.token, wait_seconds=WAIT)

    def close(self) -> None:
        """Close all ports, and hang up on all clients."""
        with self._guard:
            self._closed = True
            clients = list(self._clients)
        for client in clients:
            client.hang_up()
        give_up = time.monotonic() + GRACE
        for client in clients:
            client.thread.join(max(0.0, give_up - time.monotonic()))

    def _check_allowed(self, clear_text: bool) -> None:
        if not self._ports:
            raise errors.InvalidRequest(
                "The agent opens no sockets, because its configuration names no ports for them.",
                "Set netcat_ports, and deploy the agent again.",
            )
        if clear_text and not self._clear_text:
            raise errors.InvalidRequest(
                "The agent opens no sockets without TLS, because its configuration does not allow it.",
                "Set netcat_clear_text, and deploy the agent again.",
            )
        if not clear_text and self._certificates is None:
            raise errors.InvalidRequest("The agent opens no sockets with TLS, because it has no certificate.")

    def _forget(self, client: _Client) -> None:
        with self._guard:
            self._clients.discard(client)


class _Client:
    """
    A port and, once he has come in, its client; in a thread of its own.

    ticket: the only one that he may read.  caller: who asked for the port (`gate`).  forget: called at the end.
    """

    def __init__(
        self, disks: Disks, ticket: agent_pb2.Ticket, caller: str, door: Door, forget: Callable[[_Client], None]
    ) -> None:
        self._disks = disks
        self._ticket = ticket
        self._caller = caller
        self._door = door
        self._forget = forget
        self._label = f"of transfer {ticket.transfer_id[:36]!r}"
        self._guard = threading.Lock()  # of all below
        self._link: Link | None = None
        self._reading: Reading | None = None
        self._gone = False
        self.thread = threading.Thread(target=self._run, name=f"netcat-{door.port}", daemon=True)

    def hang_up(self) -> None:
        """Let him not come in any more, or send him away. From any thread."""
        self._door.interrupt()
        with self._guard:
            self._gone = True
            if self._link is not None:
                self._link.hang_up()

    def _run(self) -> None:
        try:
            link = self._door.admit(WAIT, PATIENCE)
            if link is None:
                log.warning("nobody came to socket %d %s", self._door.port, self._label)
                return
            with contextlib.closing(link), self._watching(link):
                self._serve(link)
        except Broken as broken:
            log.info("the client %s is gone: %s", self._label, broken)
        except Exception:
            log.exception("socket %d %s failed unexpectedly", self._door.port, self._label)
        finally:
            self._forget(self)

    @contextlib.contextmanager
    def _watching(self, link: Link) -> Iterator[None]:
        """Stop what is read inside as soon as the client, or the agent, hangs up: it may wait for the storage."""

        def watch() -> None:
            link.wait_for_farewell()
            with self._guard:
                self._gone = True
                if self._reading is not None:
                    self._reading.stop()

        watcher = threading.Thread(target=watch, name=f"watch-{self._door.port}", daemon=True)
        with self._guard:
            self._link = link
            if self._gone:
                raise Broken("the agent is stopping")
        watcher.start()
        try:
            yield
        finally:
            with self._guard:
                self._link = None
            link.hang_up()
            watcher.join()

    def _serve(self, link: Link) -> None:
        """Answer requests until the client hangs up, asks for nothing any more, or one of them fails."""
        link.send(frames.GREETING)
        while link.wait(PATIENCE):
            try:
                end = self._answer(link)
            except errors.Error as error:
                log.warning("read %s: %s", self._label, error)
                link.send(frames.of_error(error))
                return
            link.send(end)

    def _answer(self, link: Link) -> bytes:
        """Send the blocks that are asked for; return the frame behind them."""
        request = frames.receive_request(link.receive)
        if request.HasField("ticket"):
            raise errors.InvalidRequest("A request over a socket names no ticket: the socket was opened for one.")
        request.ticket.CopyFrom(self._ticket)
        try:
            with self._disks.reading(request, self._caller) as reading, self._stopped_when_gone(reading):
                for block in reading:
                    link.send(*frames.of_block(block))
            return frames.of_summary(reading.summary)
        except (errors.Error, Broken):
            raise
        except Exception as error:
            log.exception("read %s: failed unexpectedly", self._label)
            raise errors.unexpected(error) from None

    @contextlib.contextmanager
    def _stopped_when_gone(self, reading: Reading) -> Iterator[None]:
        with self._guard:
            self._reading = reading
            if self._gone:
                reading.stop()
        try:
            yield
        finally:
            with self._guard:
                self._reading = None
