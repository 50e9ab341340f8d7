"""
A TCP connection that sends and receives exactly so many bytes, in clear text or under TLS: for both ends of `netcat`.

Clear text goes over a blocking socket with the kernel's own time-outs, so that one system call moves a whole block
with the GIL released. Python's ssl wants its own time-outs instead: it would try for ever after one of the kernel's.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import struct
import threading
import time
from abc import ABC, abstractmethod
from typing import Union

Buffer = Union[bytes, bytearray, memoryview]

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 20, 10, 3
"""Seconds, seconds and a number: a peer that vanished while nothing is sent is noticed within 50 seconds."""


class Broken(Exception):
    """The connection is of no use any more: it was cut, closed or too slow, or TLS refuses it. Says why, in words."""


class Link(ABC):
    """
    A connection, used by one thread, but for `hang_up` and `close`, which any thread may call at any moment, the latter
    not before `wait_for_farewell` has returned.

    connected: the socket, which the link closes.
    patience: seconds within which each `send` must be done, and in which something must come in each `receive`.
    """

    def __init__(self, connected: socket.socket, patience: float) -> None:
        self._socket = connected
        self._patience = patience
        self._using = threading.Lock()  # so that no other file gets the number of a socket that is in use
        self._readable = select.poll()
        self._readable.register(connected, select.POLLIN)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)

    def send(self, head: bytes, payload: Buffer = b"") -> None:
        """Send all of both. Raises Broken."""
        with self._using:
            try:
                self._send(head, payload)
            except OSError as error:
                raise self._broken(error) from None

    def receive(self, length: int) -> bytes | bytearray:
        """Return the next `length` bytes, a number that the caller has checked. Raises Broken."""
        with self._using:
            try:
                return self._receive(length)
            except OSError as error:
                raise self._broken(error) from None

    def wait(self, seconds: float) -> bool:
        """Return whether there is something to receive, the peer's farewell included, after having waited for it."""
        with self._using:
            if self._socket.fileno() < 0:
                return True  # closed: `receive` will say so
            return self._is_pending() or bool(self._readable.poll(seconds * 1000))

    def wait_for_farewell(self) -> None:
        """Return when either side has hung up. For a thread of its own, beside the one that sends and receives."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        poll.poll()

    def hang_up(self) -> None:
        """Make what is going on, and everything that is tried later, fail."""
        # Of the class below: an SSLSocket would forget its TLS, and go on in clear text.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and give the socket back. May be called again."""
        self.hang_up()
        with self._using:
            self._socket.close()

    @abstractmethod
    def _send(self, head: bytes, payload: Buffer) -> None: ...

    @abstractmethod
    def _receive(self, length: int) -> bytes | bytearray: ...

    @abstractmethod
    def _is_pending(self) -> bool:
        """Return whether bytes have come out of the socket that nobody has received yet."""

    def _broken(self, error: OSError) -> Broken:
        # The kernel's time-out is EAGAIN, Python's has no number, and ETIMEDOUT is a peer that vanished.
        if isinstance(error, (BlockingIOError, TimeoutError, socket.timeout)) and error.errno != errno.ETIMEDOUT:
            return Broken(f"nothing moved for {self._patience:.0f} seconds")
        return Broken(error.strerror or str(error))


class ClearLink(Link):
    """A connection without TLS."""

    def __init__(self, connected: socket.socket, patience: float) -> None:
        super().__init__(connected, patience)
        connected.settimeout(None)
        timeval = struct.pack("@ll", *divmod(max(1, int(patience * 1e6)), 1_000_000))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def _send(self, head: bytes, payload: Buffer) -> None:
        left = len(head) + len(payload)
        give_up = time.monotonic() + self._patience
        while True:
            left -= self._socket.sendmsg([head, payload])
            if not left:
                return
            # Rare: a signal or the time-out cut the call short. A peer that takes single bytes must not keep us here.
            if time.monotonic() > give_up:
                raise TimeoutError
            head, payload = b"", memoryview(bytes(head) + bytes(payload))[-left:]

    def _receive(self, length: int) -> bytes | bytearray:
        # Fills a new bytes object, which unlike a bytearray is not filled with zeros first.
        data = self._socket.recv(length, socket.MSG_WAITALL)
        while len(data) < length:  # rare, as above, or the end of the stream
            more = self._socket.recv(length - len(data), socket.MSG_WAITALL)
            if not more:
                raise ConnectionResetError(0, "the other side hung up")
            data += more
        return data

    def _is_pending(self) -> bool:
        return False


class TlsLink(Link):
    """A connection under TLS, whose handshake is done."""

    _socket: ssl.SSLSocket

    def __init__(self, connected: ssl.SSLSocket, patience: float) -> None:
        super().__init__(connected, patience)
        connected.settimeout(patience)

    def _send(self, head: bytes, payload: Buffer) -> None:
        self._socket.sendall(head)
        if payload:
            self._socket.sendall(payload)

    def _receive(self, length: int) -> bytes | bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            received = self._socket.recv_into(view)  # one record, at most 16 KiB
            if not received:
                raise ConnectionResetError(0, "the other side hung up")
            view = view[received:]
        return data

    def _is_pending(self) -> bool:
        return self._socket.pending() > 0
