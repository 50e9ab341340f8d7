"""
Collecting garbage: removing what no recovery point needs any more, beside backups, restores and whatever else runs.

    1. know what is needed     manifests, and those in the trash that are not to be emptied: their pages, their chunks
    2. list what is there      what is not needed, and older than anything that a running backup wrote, is condemned,
                               at most 250,000 chunks in a round
    3. wait for the writers    each says what it relies on, and then answers, in its lock, that it has seen the round
    4. look again              at manifests that came meanwhile, and at what was rescued
    5. remove the rest         writers that want one of these chunks wait, and store it anew

When anything cannot be known, such as what a point with a damaged index needs, nothing is removed. A collection that
is killed has removed some of what nobody needed; the next one goes on. See `locks` for who may miss whom, and when.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from typing import NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import layout, locks, marks, trash
from blockferry.repository.chunks import Chunks
from blockferry.repository.locks import Held, Lock
from blockferry.repository.manifest import Manifest
from blockferry.repository.needs import FOLDERS, Needs
from blockferry.repository.store import Listed, Store

_MARGIN = 600.0
"""Seconds that what a running writer found is older than its lock, at most: file servers' clients have clocks, too."""
_PIECE = 1000
"""Objects that one thread removes, with one request where the storage can."""
_LEAST = 100
"""Objects that must find room in a round: 3200 bytes."""


class Times(NamedTuple):
    """
    trash: how long deleted points can be had back.  young: what is younger is not removed: a backup that was broken off
    uses it when it is run again.  wait: seconds that running backups may take to answer; they look every 20.
    """

    trash: timedelta = timedelta(days=7)
    young: timedelta = timedelta(days=1)
    wait: float = 120.0


class Amount(msgspec.Struct, frozen=True):
    """Objects. length: bytes that they take in the storage."""

    objects: int = 0
    length: int = 0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(self.objects + other.objects, self.length + other.length)


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a collection did.

    points: of the trash, that are gone for good.  trash: points that stay in it for now.  freed: what was removed.
    young: nobody needs it, but it is too young, or a running backup may have written it.
    rescued: running backups rely on it.  left: what could not be removed.
    hindrance: sentences that say why something was left, or nothing was done; None when nothing hindered.
    """

    points: int = 0
    trash: int = 0
    freed: Amount = Amount()
    young: Amount = Amount()
    rescued: Amount = Amount()
    left: Amount = Amount()
    hindrance: str | None = None


def collect(
    store: Store,
    chunks: Chunks,
    points: Callable[[], list[Manifest]],
    times: Times,
    progress: Callable[[str], None],
) -> Collected:
    """
    Remove what nobody needs. points: lists all recovery points of the repository.  progress: told what is being done.

    Raises Conflict when another collection runs, RepositoryError.
    """
    with locks.held(store, "collecting", "collect") as lock:
        others = lock.others()
        for held in others:
            if held.claim.kind == "collecting":
                raise errors.Conflict(
                    f"The repository is being collected already, by {held.claim}.", "Wait until it has ended."
                )
        _forget_rounds_but(store, {held.id for held in others})
        return _Collection(store, chunks, points, lock, times, progress).run(others)


class _Collection:
    """One collection."""

    def __init__(
        self,
        store: Store,
        chunks: Chunks,
        points: Callable[[], list[Manifest]],
        lock: Lock,
        times: Times,
        progress: Callable[[str], None],
    ) -> None:
        self._store = store
        self._points = points
        self._lock = lock
        self._times = times
        self._progress = progress
        self._needs = Needs(store, chunks)
        self._rounds = itertools.count(1)
        self._collected = Collected()

    def run(self, others: Sequence[Held]) -> Collected:
        """Do it all. others: the locks of the others."""
        now = self._lock.now()
        in_use = min((held.claim.began or now for held in others), default=float("inf")) - _MARGIN
        keep_deleted = min(now - self._times.trash.total_seconds(), in_use)
        cut = min(now - self._times.young.total_seconds(), in_use)
        try:
            self._learn(keep_deleted)
        except errors.Damaged as error:
            return msgspec.structs.replace(self._collected, hindrance=_unknown(error, others))
        self._note(points=trash.empty(self._store, keep_deleted), trash=trash.count(self._store))
        garbage = self._garbage(cut)
        found: list[Listed] = []
        while found := [*found, *itertools.islice(garbage, locks.ROUND - len(found))]:
            round_id = f"{self._lock.id}-{next(self._rounds)}"
            condemned = self._condemn(round_id, found)
            hindrance = self._round(round_id, condemned)
            if hindrance is not None:
                left = _amount(itertools.chain(found, garbage))
                return msgspec.structs.replace(self._collected, left=left, hindrance=hindrance)
            found = found[len(condemned) :]
        unfinished = self._store.remove_unfinished(cut)
        self._note(freed=self._collected.freed + _amount(unfinished))
        self._forget_marks()
        return self._collected

    def _learn(self, keep_deleted: float) -> None:
        """Know what is needed, as of now. What was deleted before `keep_deleted` is not."""
        self._progress("reading what the recovery points need")
        # A point that is being deleted or brought back is in one of these, whenever it moves.
        self._learn_trash(keep_deleted)
        self._needs.add(self._points())
        self._learn_trash(keep_deleted)

    def _learn_trash(self, keep_deleted: float) -> None:
        self._needs.add([each.point for each in trash.contents(self._store, since=keep_deleted)])

    def _garbage(self, cut: float) -> Iterator[Listed]:
        """Generate what is not needed and older than `cut`. Count what is younger."""
        for listed in self._store.listing(layout.VMS):
            if not self._needs.needs_beside(listed.name) and not self._is_young(listed, cut):
                yield listed
        for number in range(FOLDERS):
            self._progress(f"looking for what nobody needs: {number * 100 // FOLDERS} %")
            for listed in self._store.listing(f"{layout.CHUNKS}/{number:02x}"):
                digest = layout.digest_of(listed.name)
                if digest is not None and digest not in self._needs and not self._is_young(listed, cut):
                    yield listed

    def _is_young(self, listed: Listed, cut: float) -> bool:
        if listed.modified < cut:
            return False
        self._note(young=self._collected.young + _amount([listed]))
        return True

    def _condemn(self, round_id: str, found: Sequence[Listed]) -> Sequence[Listed]:
        """Let writers know of what was found, or, on a full disk, of as much as there is room for. Return that."""
        digests = [layout.digest_of(listed.name) or b"" for listed in found]
        length = len(found)
        while True:
            try:
                self._store.put(layout.condemned(round_id), b"".join(digests[:length]))
                return found[:length]
            except errors.RepositoryFull:
                if length <= _LEAST:
                    raise
                length //= 2

    def _round(self, round_id: str, condemned: Sequence[Listed]) -> str | None:
        """Remove what is condemned, as far as nobody turns out to need it. Return what hindered it."""
        try:
            silent = self._wait_for_writers(round_id)
            if silent:
                return f"No answer came from the {silent[0]}. End it if it hangs, then run this again."
            try:
                self._learn(float("-inf"))
            except errors.Damaged as error:
                return _unknown(error)
            rescued = self._rescued(round_id)
            doomed = []
            for listed in condemned:
                if layout.digest_of(listed.name) in rescued or self._is_needed(listed):
                    self._note(rescued=self._collected.rescued + _amount([listed]))
                else:
                    doomed.append(listed)
            self._remove(doomed)
        finally:
            # From here on nobody waits for these chunks any more.
            self._store.delete(layout.condemned(round_id))
            self._store.delete_all([listed.name for listed in self._store.listing(layout.rescued_folder(round_id))])
        return None

    def _wait_for_writers(self, round_id: str) -> list[locks.Claim]:
        """Wait until every writer has seen the round. Return the locks of those that have not, in the time there is."""
        deadline = time.monotonic() + self._times.wait
        while True:
            writers = [held.claim for held in self._lock.others() if held.claim.kind == "writing"]
            silent = [claim for claim in writers if round_id not in claim.seen]
            if not silent or time.monotonic() > deadline:
                return silent
            self._progress(f"waiting for an answer from {len(silent)} of {len(writers)} that write")
            time.sleep(locks.POLL)

    def _rescued(self, round_id: str) -> set[bytes]:
        """Return what writers need of a round."""
        found: set[bytes] = set()
        for listed in self._store.listing(layout.rescued_folder(round_id)):
            found |= locks.read_digests(self._store, listed.name)
        return found

    def _is_needed(self, listed: Listed) -> bool:
        digest = layout.digest_of(listed.name)
        if digest is None:
            return self._needs.needs_beside(listed.name)
        return digest in self._needs

    def _remove(self, doomed: Sequence[Listed]) -> None:
        """Remove objects. Raises RepositoryError, also when others may think that this collection is dead."""
        pieces = [doomed[start : start + _PIECE] for start in range(0, len(doomed), _PIECE)]
        with self._store.batch() as batch:
            # Deleted manifests must not come back after a power failure, when what they need is gone.
            batch.flush()
        removing: list[Future[Amount]] = []
        with ThreadPoolExecutor(self._store.side_by_side, thread_name_prefix="collect") as threads:
            try:
                removing.extend(threads.submit(self._remove_piece, piece) for piece in pieces)
                for done in removing:
                    self._note(freed=self._collected.freed + done.result())
                    self._progress(f"removed {self._collected.freed.objects} objects")
            finally:
                _end(removing)

    def _remove_piece(self, piece: Sequence[Listed]) -> Amount:
        self._store.delete_all(self._still_doomed(piece))
        return _amount(piece)

    def _still_doomed(self, piece: Sequence[Listed]) -> Iterator[str]:
        """Generate the names, each while others believe in this collection: it may sleep between any two."""
        for listed in piece:
            self._lock.check_age()
            yield listed.name

    def _forget_marks(self) -> None:
        """Take away the marks of chunks that are gone."""
        marked = (digest for digest in marks.all_of(self._store) if digest not in self._needs)
        marks.take_away(self._store, [digest for digest in marked if not self._store.holds(layout.chunk(digest))])

    def _note(self, **changes: object) -> None:
        self._collected = msgspec.structs.replace(self._collected, **changes)


def _forget_rounds_but(store: Store, lock_ids: Collection[str]) -> None:
    """Take away what the rounds of all collections but these left: they were killed."""
    names = [each.name for folder in (layout.CONDEMNED, layout.RESCUED) for each in store.listing(folder)]
    store.delete_all([name for name in names if name.split("/")[1].partition("-")[0] not in lock_ids])


def _end(removing: Sequence[Future[Amount]]) -> None:
    """Wait until what is under way has ended, however often the user interrupts: nobody may rely on it before."""
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            for piece in removing:
                piece.cancel()
            wait(removing)
            return


def _amount(objects: Iterable[Listed]) -> Amount:
    count = length = 0
    for listed in objects:
        count += 1
        length += listed.length
    return Amount(count, length)


def _unknown(error: errors.Damaged, others: Sequence[Held] = ()) -> str:
    told = f"What the points need cannot be known, so nothing more was removed: {error}"
    if not others:
        return told
    running = ", ".join(str(held.claim) for held in others)
    return f"{told} What was deleted while somebody reads or writes stays until he has ended: {running}."
