"""
Errors on the wire: the one table of gRPC status codes, for the agent, and its reverse, for the controller.

gRPC itself uses UNAVAILABLE, CANCELLED, DEADLINE_EXCEEDED, UNKNOWN, UNIMPLEMENTED and UNAUTHENTICATED for what happens
to a call on its way, so none of ours has one of those. It uses INTERNAL and RESOURCE_EXHAUSTED, too (a message that is
too large, say); ours always carry a hint in their metadata, if only an empty one, and that tells them apart. So a
broken connection is never taken for a broken disk. As numbers, so that nobody needs grpc to know them:
https://grpc.github.io/grpc/core/md_doc_statuscodes.html
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping

from blockferry_agent import errors

CODES: dict[type[errors.Error], int] = {
    errors.InvalidRequest: 3,  # INVALID_ARGUMENT
    errors.TicketNotFound: 5,  # NOT_FOUND
    errors.WriteFailed: 6,  # ALREADY_EXISTS: for nothing of that kind is left
    errors.TicketRefused: 7,  # PERMISSION_DENIED
    errors.Busy: 8,  # RESOURCE_EXHAUSTED
    errors.BitmapMissing: 9,  # FAILED_PRECONDITION
    errors.SourceGone: 10,  # ABORTED
    errors.ProtocolError: 11,  # OUT_OF_RANGE: what the server said is not possible
    errors.Error: 13,  # INTERNAL: a fault of the agent
    errors.ReadFailed: 15,  # DATA_LOSS
}
"""Every error that is raised, and no two with one code. SourceError only groups others and is never raised itself."""

HINT_KEY = "blockferry-hint"
"""Trailing metadata: the error's hint, percent-encoded (metadata is ASCII; gRPC does the same with the message)."""


RETRY_KEY = "retry-after"
"""Trailing metadata of Busy: whole seconds after which it makes sense to ask again."""

MAX_RETRY_AFTER = 60
"""What a controller takes for more is that."""


def code_of(error: errors.Error) -> int:
    """Return the status code of an error: its class's, or that of the nearest class above it."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def metadata_of(error: errors.Error) -> list[tuple[str, str]]:
    """Return the trailing metadata of a call that ends with an error."""
    metadata = [(HINT_KEY, hint_of(error))]
    if isinstance(error, errors.Busy):
        metadata.append((RETRY_KEY, str(error.retry_after)))
    return metadata


def hint_of(error: errors.Error) -> str:
    """Return an error's hint as it stands in the metadata."""
    return urllib.parse.quote(error.hint, safe=" ,;:.()'/")


def error_from(code: int, details: str, metadata: Mapping[str, str | bytes]) -> errors.Error | None:
    """Return the agent's error that a call ended with; None when it was gRPC that ended it."""
    cls = next((cls for cls, own in CODES.items() if own == code), None)
    hint = metadata.get(HINT_KEY)
    if cls is None or not isinstance(hint, str):
        return None
    if cls is errors.Busy:
        return errors.Busy(details, urllib.parse.unquote(hint), _retry_after(metadata.get(RETRY_KEY)))
    return cls(details, urllib.parse.unquote(hint))


def _retry_after(said: str | bytes | None) -> int:
    if not isinstance(said, str) or not said.isdecimal():
        return errors.RETRY_AFTER
    return min(int(said[:4]), MAX_RETRY_AFTER)
