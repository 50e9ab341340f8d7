"""Marks: chunks that were found to be damaged. No backup relies on them; the next one that has them heals them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from blockferry.repository import documents, layout
from blockferry.repository.store import Store

FORMAT: Final = 1


class Mark(msgspec.Struct, frozen=True):
    """What is known of a damaged chunk. found: when (UTC).  reason: a sentence."""

    found: datetime
    reason: str
    format: Literal[1] = FORMAT


def all_of(store: Store) -> set[bytes]:
    """Return the digests of all chunks that are marked. Raises RepositoryError."""
    return {digest for listed in store.listing(layout.MARKS) if (digest := layout.marked_digest_of(listed.name))}


def put(store: Store, digest: bytes, reason: str) -> None:
    """Mark a chunk. Raises RepositoryError."""
    store.put(layout.mark(digest), documents.encode(Mark(datetime.now(UTC), reason)))


def take_away(store: Store, digests: Iterable[bytes]) -> None:
    """Unmark chunks that are sound again, or gone. Raises RepositoryError."""
    for digest in digests:
        store.delete(layout.mark(digest))
