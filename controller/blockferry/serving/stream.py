"""
A client's connection as a stream of bytes, plain or TLS, which no client can keep waiting.

One thread may receive while another sends. Everything but `wait` ends in time, whatever the client does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Self

_TIMEOUT = 60.0
"""Seconds for one message, either way."""
_MAX_BUFFERS = 512
"""Buffers in one call of the system, which takes 1024."""
_SEND_BUFFER = 1 << 20
"""Bytes; the system's 200 KiB for unix sockets make a client wait for a thread of ours many times in each reply."""


class Gone(Exception):
    """The client hung up, or did not go on in time. The stream is of no use any more."""


class Stream:
    """A plain connection. It owns its socket: `close` it."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            # A client whose machine died is found out by the system, in `wait`.
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if connected.family != socket.AF_UNIX:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected
        self._deadline: float | None = None

    def within(self, seconds: float | None) -> None:
        """Let everything that follows end within so many seconds from now; None: only each message in its own time."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def wait(self) -> None:
        """Wait for the client to send something or hang up, as long as it likes."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll()

    def receive(self, length: int) -> bytearray:
        """Return the next `length` bytes. Raises Gone."""
        data = bytearray(length)
        view = memoryview(data)
        deadline = self._until()
        while view:
            with self._errors():
                try:
                    count = self._receive_some(view)
                except (BlockingIOError, ssl.SSLWantReadError):
                    self._poll(select.POLLIN, deadline)
                    continue
                except ssl.SSLWantWriteError:
                    self._poll(select.POLLOUT, deadline)
                    continue
            if not count:
                raise Gone("the client hung up")
            view = view[count:]
        return data

    def send(self, buffers: Iterable[bytes | memoryview]) -> None:
        """Send all of the buffers. Raises Gone."""
        left = [memoryview(buffer) for buffer in buffers if len(buffer)]
        deadline = self._until()
        first = 0
        while first < len(left):
            batch = left[first : first + _MAX_BUFFERS]
            with self._errors():
                try:
                    count = self._send_some(batch)
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._poll(select.POLLOUT, deadline)
                    continue
                except ssl.SSLWantReadError:
                    self._poll(select.POLLIN, deadline)
                    continue
            while first < len(left) and count >= len(left[first]):
                count -= len(left[first])
                first += 1
            if count:
                left[first] = left[first][count:]

    def start_tls(self, context: ssl.SSLContext) -> TlsStream:
        """Return the stream that goes on in TLS, after the handshake; this one is of no use then. Raises Gone."""
        return TlsStream.over(self, context)

    def hang_up(self) -> None:
        """End the connection; whoever waits for it in another thread raises Gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. No other thread may use the stream."""
        self._socket.close()

    def _receive_some(self, view: memoryview) -> int:
        return self._socket.recv_into(view)

    def _send_some(self, buffers: list[memoryview]) -> int:
        return self._socket.sendmsg(buffers)

    def _until(self) -> float:
        return time.monotonic() + _TIMEOUT if self._deadline is None else self._deadline

    def _poll(self, event: int, deadline: float) -> None:
        """Wait until the socket is ready. Raises Gone when it is not in time."""
        poll = select.poll()
        poll.register(self._socket, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Gone("the client did not go on in time")

    @staticmethod
    @contextlib.contextmanager
    def _errors() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Gone(f"the connection failed: {error.strerror or error}") from None


class TlsStream(Stream):
    """A connection in TLS."""

    _socket: ssl.SSLSocket

    def __init__(self, connected: ssl.SSLSocket) -> None:
        super().__init__(connected)
        # OpenSSL does not let two threads use a connection at once, not even one to read and one to write.
        self._using = threading.Lock()

    @classmethod
    def over(cls, plain: Stream, context: ssl.SSLContext) -> Self:
        """Shake hands over a plain stream, which gives its socket away. Raises Gone."""
        with plain._errors():
            wrapped = context.wrap_socket(plain._socket, server_side=True, do_handshake_on_connect=False)
        secure = cls(wrapped)
        secure._deadline = plain._deadline
        # Who has only the old stream can still hang up and close.
        plain._socket = wrapped
        secure._shake_hands()
        return secure

    def wait(self) -> None:
        """Wait for the client to send something or hang up, as long as it likes."""
        with self._using:
            if self._socket.pending():
                return
        super().wait()

    def _shake_hands(self) -> None:
        deadline = self._until()
        while True:
            with self._errors():
                try:
                    self._socket.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    self._poll(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._poll(select.POLLOUT, deadline)

    def _receive_some(self, view: memoryview) -> int:
        with self._using:
            return self._socket.recv_into(view)

    def _send_some(self, buffers: list[memoryview]) -> int:
        with self._using:
            return self._socket.send(buffers[0])
