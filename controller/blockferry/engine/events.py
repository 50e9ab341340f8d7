"""
The engine's own explanation of a failure.

Every action of ours carries a correlation id; the engine marks with it the events that the action caused, at once or
later.
"""

from __future__ import annotations

import secrets

from blockferry import errors
from blockferry.engine.session import Session

_BAD = ("error", "warning", "alert")
_ENOUGH = 5


def new_correlation_id() -> str:
    """Return an id that no other action has: at most 50 characters of [A-Za-z0-9_-] are allowed."""
    return f"blockferry-{secrets.token_hex(8)}"


def explanation(session: Session, correlation_id: str) -> str:
    """
    Return " The engine says: …" with the events of one action that tell of trouble; empty when there are none.

    It goes behind a message, so it never raises: the failure that it explains is the news.
    """
    try:
        found = session.call(
            "list events", lambda api: api.events_service().list(search=f"correlation_id={correlation_id}", max=100)
        )
    except errors.Error:
        return ""
    bad = [event for event in found if event.severity is not None and event.severity.value in _BAD]
    bad.sort(key=lambda event: int(event.id))
    texts = list(dict.fromkeys(event.description.strip() for event in bad if event.description))
    return f" The engine says: {' '.join(texts[-_ENOUGH:])}" if texts else ""
