"""
What can go wrong between a disk and the controller, as one tree. Each class says what its caller may do.

    Error
    ├── InvalidRequest       the caller asked for nonsense: mend the caller, do not repeat
    ├── TicketNotFound       Image I/O on this host knows no such ticket: start a new transfer
    ├── TicketRefused        the ticket exists but does not allow this: start a new transfer
    ├── BitmapMissing        no dirty bitmap behind the ticket: read the whole disk
    ├── Busy                 the agent does all that it may do: try later, or take another transport
    └── SourceError          the disk could not be read, or written, to its end
        ├── SourceGone       its server is not there (any more): see whether the VM stopped
        ├── ReadFailed       the storage answered with an error: see the host's logs, then repeat
        ├── WriteFailed      the storage refused a write: make room, or see the host's logs; then repeat
        └── ProtocolError    its server answered nonsense: do not trust a byte of it

The controller's tree (`blockferry.errors`) grows from the same root. On the wire each class has a gRPC status code:
the table is in `blockferry_agent.status`.
"""

from __future__ import annotations

RETRY_AFTER = 5
"""Seconds: a full read is many short calls, so within them one of those that are read has mostly made room."""


class Error(Exception):
    """
    Something went wrong that the operator can understand.

    message: a sentence that names the thing.  hint: the next step, a sentence; empty when there is none.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidRequest(Error):
    """The caller asked for nonsense: mend the caller, do not repeat."""


class TicketNotFound(Error):
    """Image I/O on this host knows no such ticket: start a new transfer."""


class TicketRefused(Error):
    """The ticket exists but does not allow this: start a new transfer."""


class BitmapMissing(Error):
    """There is no dirty bitmap behind the ticket: read the whole disk."""


class Busy(Error):
    """
    The agent does all that it may do: try later, or take another transport.

    retry_after: seconds after which it may have less to do.
    """

    def __init__(self, message: str, hint: str = "", retry_after: int = RETRY_AFTER) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class SourceError(Error):
    """The disk could not be read, or written, to its end."""


class SourceGone(SourceError):
    """The server of the disk is not there, or not any more: see whether the VM stopped."""


class ReadFailed(SourceError):
    """The storage answered a read with an error: see the host's logs, then repeat."""


class WriteFailed(SourceError):
    """The storage answered a write with an error: make room or see the host's logs, then repeat."""


class ProtocolError(SourceError):
    """The server of the disk answered nonsense: do not trust a byte of it."""


def unexpected(error: Exception) -> Error:
    """Return what a caller is told of a fault of the agent, whose details are in its log."""
    return Error(f"The agent failed unexpectedly ({type(error).__name__}).", "See its log on the host.")
