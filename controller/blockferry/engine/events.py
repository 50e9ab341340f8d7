"""
The engine's own explanation of a failure.

Every action of ours carries a correlation id; the engine marks with it the events that the action caused, at once or
later.
"""

from __future__ import annotations

import secrets
from typing import Any

from blockferry import errors
from blockferry.engine.session import Session

_BAD = ("error", "warning", "alert")
_ENOUGH = 5

# The engine's code for a hybrid backup that succeeded, but whose snapshot may still be there.
SNAPSHOT_LEFT = 10813


def new_correlation_id() -> str:
    """Return an id that no other action has: at most 50 characters of [A-Za-z0-9_-] are allowed."""
    return f"blockferry-{secrets.token_hex(8)}"


def explanation(session: Session, correlation_id: str) -> str:
    """
    Return " The engine says: …" with the events of one action that tell of trouble; empty when there are none.

    It goes behind a message, so it never raises: the failure that it explains is the news.
    """
    found = _of(session, correlation_id)
    bad = [event for event in found if event.severity is not None and event.severity.value in _BAD]
    bad.sort(key=lambda event: int(event.id))
    texts = list(dict.fromkeys(event.description.strip() for event in bad if event.description))
    return f" The engine says: {' '.join(texts[-_ENOUGH:])}" if texts else ""


def tell_of(session: Session, correlation_id: str, code: int) -> bool:
    """Return whether one action caused an event of this code; False too when the engine does not answer."""
    return any(event.code == code for event in _of(session, correlation_id))


def _of(session: Session, correlation_id: str) -> list[Any]:
    """Return the events of one action; none when the engine does not answer."""
    try:
        return list(
            session.call(
                "list events",
                lambda api: api.events_service().list(search=f"correlation_id={correlation_id}", max=100),
            )
        )
    except errors.Error:
        return []
