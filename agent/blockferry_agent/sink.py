"""Where a disk's bytes go, as the writer needs it: an NBD export (`nbd`) or, in the controller, Image I/O."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """
    One connection to a disk that may be written.

    Used by one thread at a time. After an error, only `close` may be called. Who opened it closes it; closing twice
    is allowed.
    """

    @property
    def is_shareable(self) -> bool:
        """Whether several connections may write side by side, each elsewhere, and `flush` on one covers all."""

    def write(self, start: int, data: bytes | memoryview) -> None:
        """
        Write all of `data` from `start` on. There are no short writes.

        Raises WriteFailed, another SourceError; what the range holds is then undefined.
        """

    def zero(self, start: int, length: int, may_punch: bool) -> None:
        """
        Make `length` bytes from `start` read as zeros, without sending any.

        may_punch: the storage may give up the space.  Raises as `write`.
        """

    def flush(self) -> None:
        """Make everything durable that was written before. Raises as `write`."""

    def close(self) -> None:
        """Give back the connection. Never raises."""
