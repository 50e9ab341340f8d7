"""
What somebody who writes relies on, so that a collection beside him does not remove it.

He relies on the chunks that he finds in the storage: no manifest may name them yet. When a collection is about to
remove chunks, it condemns them first. He answers which of those he relies on already, and from then on waits with the
others until they are gone, and stores them anew.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from blockferry import errors

DIGEST = 32
"""Bytes of a chunk's digest."""

_WAIT = 3600.0
"""Seconds that a writer waits for a collection to remove what it condemned: many times what that takes."""
_LOOK = 10.0
"""Seconds between two looks, in the meantime, at whether the writer is still believed in."""


class Reliance:
    """
    The chunks that one writer relies on: 32 bytes of memory for each that he found. Called by several threads at once.

    urge: told when somebody begins to wait, so that the end of a collection is looked for at once.
    check: raises when collections may not heed this writer any more; then he had better stop.
    was_asked: whether any collection has condemned anything since this was made, and was answered.
    """

    def __init__(self, urge: Callable[[], None] = lambda: None, check: Callable[[], None] = lambda: None) -> None:
        self.was_asked = False
        self._urge = urge
        self._check = check
        self._changed = threading.Condition()
        self._found = bytearray()
        self._looked_for: Counter[bytes] = Counter()
        self._condemned: dict[str, frozenset[bytes]] = {}
        self._is_over = False

    @contextmanager
    def looking_for(self, digest: bytes) -> Iterator[Callable[[], None]]:
        """
        Look for a chunk within this. The function that it gives says that the chunk is not there, so that nothing of
        it is relied on but what is stored now.

        Waits while the chunk is condemned. Raises RepositoryError when that does not end, or the writer gives up
        meanwhile, and what `check` raises.
        """
        missing = False
        self._check()

        def note_missing() -> None:
            nonlocal missing
            missing = True

        with self._changed:
            self._wait_for(digest)
            self._looked_for[digest] += 1
        try:
            yield note_missing
        finally:
            with self._changed:
                self._looked_for[digest] -= 1
                if not self._looked_for[digest]:
                    del self._looked_for[digest]
                if not missing:
                    self._found += digest

    def condemn(self, round_id: str, digests: Collection[bytes]) -> set[bytes]:
        """Take note of chunks that will be removed, and return those of them that are relied on already."""
        condemned = frozenset(digests)
        with self._changed:
            self.was_asked = True
            self._condemned[round_id] = condemned
            relied = {digest for digest in self._digests() if digest in condemned}
            return relied | (condemned & self._looked_for.keys())

    def keep_only(self, rounds: Collection[str]) -> None:
        """Forget all rounds but these: they are over."""
        with self._changed:
            for round_id in [known for known in self._condemned if known not in rounds]:
                del self._condemned[round_id]
            self._changed.notify_all()

    def give_up(self) -> None:
        """Let nobody wait any more, however long the collection takes: what is looked for is not needed now."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def rounds(self) -> frozenset[str]:
        """Those whose condemned chunks are known here."""
        with self._changed:
            return frozenset(self._condemned)

    def _wait_for(self, digest: bytes) -> None:
        if self._is_condemned(digest):
            self._urge()
            deadline = time.monotonic() + _WAIT
            while not self._changed.wait_for(lambda: self._is_over or not self._is_condemned(digest), _LOOK):
                self._check()
                if time.monotonic() > deadline:
                    raise errors.RepositoryError(
                        f"A collection of the repository has not ended for {_WAIT / 60:.0f} minutes.",
                        "Look for what runs `blockferry collect`, and end it; then run this again.",
                    )
            if self._is_over:
                raise errors.RepositoryError("This was given up while it waited for a collection of the repository.")

    def _is_condemned(self, digest: bytes) -> bool:
        return any(digest in condemned for condemned in self._condemned.values())

    def _digests(self) -> Iterator[bytes]:
        for start in range(0, len(self._found), DIGEST):
            yield bytes(self._found[start : start + DIGEST])
