"""
A TCP port that is open until one client has come in: the one who knows the token.

Everybody who knocks is looked at side by side, so a silent scanner is in nobody's way: who has not shown a certificate
(where TLS is spoken) and the token in time is sent away. The right one closes the port behind himself, so a second
client, or a token that is sent again, meets nobody.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import logging
import random
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Sequence

from blockferry_agent import errors, frames, tls
from blockferry_agent.link import ClearLink, Link, TlsLink
from blockferry_agent.tls import Certificates

log = logging.getLogger(__name__)

TOKEN_PATIENCE = 5.0
"""Seconds in which who knocks must have shown the token."""

MAX_KNOCKING = 64
"""Connections that are looked at; of more, the oldest is sent away."""


class Door:
    """
    An open port. Who opened it closes it.

    addresses: at which it listens.  ports: of which it takes a free one.  certificates: for TLS; None means clear text.

    port: the one it took.  token: lets in.
    """

    def __init__(self, addresses: Sequence[str], ports: range, certificates: Certificates | None) -> None:
        """Raises Busy when none of the ports is free, and Error when an address is not this host's."""
        self._certificates = certificates
        self._listeners, self.port = _listen(addresses, ports)
        self.token = secrets.token_bytes(frames.TOKEN_LENGTH)
        self._closing = threading.Lock()  # guards the listeners' being closed
        self._interrupted = False

    def admit(self, seconds: float, patience: float) -> Link | None:
        """
        Wait so long for the client, close the port, and return the connection to him, which the caller closes.

        patience: of the connection.  None: he has not come, or the door was interrupted.
        """
        deadline = time.monotonic() + seconds
        # The port closes before anybody is sent away, so that nobody comes back.
        with _Lobby(self._listeners, self.token, self._certificates) as lobby, contextlib.closing(self):
            try:
                while not self._interrupted and time.monotonic() < deadline:
                    client = lobby.look(deadline)
                    if client is not None:
                        return client.let_in(patience)
            except OSError:
                if not self._interrupted:
                    raise
        return None

    def interrupt(self) -> None:
        """Let nobody in any more: `admit` returns at once. From any thread."""
        with self._closing:
            self._interrupted = True
            for listener in self._listeners:
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the port. Not while another thread is in `admit`; may be called again."""
        with self._closing:
            for listener in self._listeners:
                listener.close()


class _Stranger(Exception):
    """Who knocked is not the client. Says why."""


class _Lobby:
    """Those who have knocked, and whom we do not know yet. Used by one thread."""

    def __init__(self, listeners: Sequence[socket.socket], token: bytes, certificates: Certificates | None) -> None:
        self._token = token
        self._certificates = certificates
        self._knocking: list[_Knocking] = []
        self._selector = selectors.DefaultSelector()
        for listener in listeners:
            self._selector.register(listener, selectors.EVENT_READ)

    def __enter__(self) -> _Lobby:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._knocking:
            one.connection.close()
        self._selector.close()

    def look(self, until: float) -> _Knocking | None:
        """
        Attend to whoever knocks or says something, until then at most; return the client when it is he.

        Raises OSError when the port is of no use any more.
        """
        deadline = min([until, *(one.deadline for one in self._knocking)])
        for key, _ in self._selector.select(max(0.0, deadline - time.monotonic())):
            if isinstance(key.data, _Knocking):
                if key.data in self._knocking and self._is_client(key.data):
                    self._part_with(key.data)
                    return key.data
            else:
                self._accept(key.fileobj)  # type: ignore[arg-type]  # a listener, as it was registered
        now = time.monotonic()
        for late in [one for one in self._knocking if one.deadline <= now]:
            self._send_away(late, "it did not show the token in time")
        return None

    def _is_client(self, one: _Knocking) -> bool:
        try:
            return one.has_shown(self._token)
        except (_Stranger, OSError) as error:
            self._send_away(one, str(error))
            return False

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # he is gone already
        try:
            one = _Knocking(connection, address[0], self._certificates)
        except OSError:
            connection.close()
            return
        self._knocking.append(one)
        self._selector.register(one.connection, selectors.EVENT_READ, one)
        if len(self._knocking) > MAX_KNOCKING:
            self._send_away(self._knocking[0], "too many knock at once")

    def _send_away(self, one: _Knocking, why: str) -> None:
        log.warning("refused %s at a socket: %s", one.address, why)
        self._part_with(one)
        one.connection.close()

    def _part_with(self, one: _Knocking) -> None:
        self._knocking.remove(one)
        self._selector.unregister(one.connection)


class _Knocking:
    """
    A connection of somebody whom we do not know yet. It never waits.

    address: where he comes from.  deadline: when he is sent away.
    """

    def __init__(self, connection: socket.socket, address: str, certificates: Certificates | None) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.address = address
        self.deadline = time.monotonic() + TOKEN_PATIENCE
        self._token = b""
        self._certificates = certificates
        self._is_shaking_hands = certificates is not None
        if certificates is not None:
            self.connection = certificates.context().wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )

    def has_shown(self, token: bytes) -> bool:
        """Take what has come, and return whether it is the token. Raises _Stranger, OSError."""
        try:
            if self._is_shaking_hands:
                self._shake_hands()
            while len(self._token) < len(token):
                said = self.connection.recv(len(token) - len(self._token))
                if not said:
                    raise _Stranger("it hung up")
                self._token += said
        # Our part of a handshake is smaller than any socket's buffer, so it is never the peer who must read first.
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if not hmac.compare_digest(self._token, token):
            raise _Stranger("its token is wrong")
        return True

    def let_in(self, patience: float) -> Link:
        """Return the connection for what follows."""
        if isinstance(self.connection, ssl.SSLSocket):
            return TlsLink(self.connection, patience)
        return ClearLink(self.connection, patience)

    def _shake_hands(self) -> None:
        assert isinstance(self.connection, ssl.SSLSocket)
        assert self._certificates is not None
        self.connection.do_handshake()
        if not tls.is_controller(self.connection):
            raise _Stranger("its certificate is no controller's")
        if self._certificates.is_revoked(self.connection.getpeercert(binary_form=True) or b""):
            raise _Stranger("its certificate is revoked")
        self._is_shaking_hands = False


# Ports


def _listen(addresses: Sequence[str], ports: range) -> tuple[list[socket.socket], int]:
    """Return what listens at all of the addresses, on the first free port of a random order, and that port."""
    for port in random.sample(ports, len(ports)):
        with contextlib.ExitStack() as undo:
            try:
                listeners = [undo.enter_context(_listener(address, port)) for address in addresses]
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise errors.Error(
                    f"The agent cannot listen on port {port} of {', '.join(addresses)}: {error.strerror or error}.",
                    "See socket_ports and listen in its configuration on the host.",
                ) from None
            undo.pop_all()
            return listeners, port
    raise errors.Busy(
        f"All ports from {ports[0]} to {ports[-1]} are taken.",
        "Wait for other backups, or give the agent more of them (netcat_ports).",
    )


def _listener(address: str, port: int) -> socket.socket:
    """Return a socket that listens there. Raises OSError."""
    family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # A port whose last connections are still saying goodbye is free; one where somebody listens is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(socket.SOMAXCONN)
    except OSError:
        listener.close()
        raise
    return listener
