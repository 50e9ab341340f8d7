"""A unix socket that gives exactly the bytes that were asked for, in time, or an error of ours."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from collections.abc import Iterator

from blockferry_agent import errors


class Stream:
    """
    A connection to a unix socket, used by one thread. Who opened it closes it.

    It uses the kernel's own time-outs (SO_RCVTIMEO) on a blocking socket, so that MSG_WAITALL fetches 256 KiB in one
    system call with the GIL released; Python's time-outs would make the socket non-blocking and the transfer piecemeal.

    path: the socket.  timeout: seconds within which each single `send`, and each `receive_into`, must make it.
    """

    def __init__(self, path: str, timeout: float) -> None:
        """Connect. Raises SourceGone, and TicketRefused when this process may not."""
        self._path = path
        self._timeout = timeout
        self._deadline = math.inf
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._limit(timeout)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            message = f"The NBD server at {path} cannot be reached: {error.strerror or error}."
            if isinstance(error, PermissionError):
                raise errors.TicketRefused(
                    message,
                    "See whether the agent's user is in the groups of that socket (kvm, qemu, ovirtimg), and whether "
                    "SELinux denies it (ausearch -m avc).",
                ) from None
            raise errors.SourceGone(message, "See whether the VM stopped, or the transfer ended.") from None

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Everything that is sent and received inside must be done in so many seconds altogether."""
        self._deadline = time.monotonic() + seconds
        yield
        self._deadline = math.inf
        self._limit(self._timeout)

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`. Raises SourceGone."""
        left = memoryview(data)
        give_up = time.monotonic() + self._timeout
        while left:
            self._watch_deadline()
            try:
                sent = self._socket.send(left)
            except OSError as error:
                raise self._broken(error) from None
            left = left[sent:]
            # As when receiving: a signal or the time-out cut the call short, and nobody may keep us here by sips.
            if left and time.monotonic() > give_up:
                raise self._late()

    def receive(self, length: int) -> bytearray:
        """Return the next `length` bytes, a number that the caller has checked. Raises SourceGone."""
        data = bytearray(length)
        self.receive_into(memoryview(data))
        return data

    def receive_into(self, view: memoryview) -> None:
        """Fill `view` with the next bytes. Raises SourceGone; the view's content is then undefined."""
        give_up = math.inf
        while True:
            self._watch_deadline()
            try:
                received = self._socket.recv_into(view, 0, socket.MSG_WAITALL)
            except OSError as error:
                raise self._broken(error) from None
            if received == len(view):
                return
            if received == 0:
                raise errors.SourceGone(
                    f"The NBD server at {self._path} closed the connection.",
                    "See whether the VM stopped, or the transfer ended.",
                )
            # Rare: a signal, the time-out or the end of the stream cut the call short. A server that trickles single
            # bytes must not keep us here.
            give_up = min(give_up, time.monotonic() + self._timeout)
            if time.monotonic() > give_up:
                raise self._late()
            view = view[received:]

    def close(self, farewell: bytes) -> None:
        """Send `farewell` if that can be done at once, and close. Never raises; closing twice is allowed."""
        with contextlib.suppress(OSError):
            self._socket.send(farewell, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self._socket.close()

    def _watch_deadline(self) -> None:
        if self._deadline == math.inf:
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        self._limit(min(left, self._timeout))

    def _limit(self, seconds: float) -> None:
        """Set the kernel's time-outs; they must not be 0, which means none."""
        microseconds = max(1, int(seconds * 1e6))
        timeval = struct.pack("@ll", *divmod(microseconds, 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def _broken(self, error: OSError) -> errors.SourceGone:
        if isinstance(error, BlockingIOError):
            return self._late()
        return errors.SourceGone(
            f"The connection to the NBD server at {self._path} broke: {error.strerror or error}.",
            "See whether the VM stopped, or the transfer ended.",
        )

    def _late(self) -> errors.SourceGone:
        return errors.SourceGone(
            f"The NBD server at {self._path} does not answer.",
            "Its storage may hang, or it may have as many clients as it serves (8 for vdsm's qemu-nbd).",
        )
