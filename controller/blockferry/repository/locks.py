"""
Locks: who uses the repository, and for what. None excludes another; they tell `collect` what it must leave alone.

Everybody who uses the repository for longer than a moment keeps an object in `locks/`, and writes it again every 20
seconds. Times are the storage's, as listings have them, so that the machines' clocks need not agree.

    reading      restore, serve, verify       what was deleted since it began stays
    writing      backup, copy, undelete       also: what it wrote, and what it found and relies on, stays
    collecting   collect                      one at a time; writers look for what it condemns

A writer and a collector cannot miss each other: the one writes its lock and then looks for condemned chunks, the other
condemns chunks and then looks for locks. A collector removes nothing before every writer's lock says that it has seen
what is condemned (`Claim.seen`), or has gone.

A lock that nobody wrote for ten minutes is stale, and so is at once one whose process is known to have ended. A
collector takes stale locks away. A writer whose lock was taken away, because its machine slept, must not commit: it
looks for its lock right before, and right after.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from blockferry import errors
from blockferry.repository import documents, layout
from blockferry.repository.reliance import DIGEST, Reliance
from blockferry.repository.store import Store
from blockferry_agent.units import KiB

FORMAT: Final = 1

ROUND = 250_000
"""Chunks that a round of a collection may condemn: 8 MB in the store, 30 MB in the memory of each writer."""

STALE = 600.0
"""Seconds after which nobody believes in a lock that was not written again."""
_UNSURE = STALE / 2
"""Seconds after which its holder does not believe in it any more, so that it stops before others believe it gone."""
RENEWAL = 20.0
"""Seconds between writings of a lock."""
POLL = 1.0
"""The same, while somebody waits."""

_MAX_ENCODED = 64 * KiB

_log = logging.getLogger(__name__)

Kind = Literal["reading", "writing", "collecting"]


class Holder(msgspec.Struct, frozen=True):
    """
    A process.

    boot: of the host's kernel.  namespace: of process ids.  started: ticks after the boot, so that a pid that is used
    again is another process.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a lock says.

    purpose: for people.  began: by the storage's clock, in seconds since 1970; None in the first moment.
    since: by the holder's clock, for people.  seen: the rounds of collections whose condemned chunks the holder knows.
    """

    format: Literal[1] = FORMAT
    kind: Kind
    purpose: str
    holder: Holder
    since: datetime
    began: float | None = None
    seen: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name the holder, for messages."""
        return (
            f"{self.purpose} (process {self.holder.pid} on {self.holder.host}, since {self.since:%Y-%m-%d %H:%M} UTC)"
        )


class Held(NamedTuple):
    """A lock that somebody has."""

    id: str
    claim: Claim


class Lock:
    """
    A lock of this process. Begun and ended by its maker (`held` does it); a thread writes it again in between.

    id: of the lock.  reliance: of a writer; the thread answers collections with it.
    """

    def __init__(self, store: Store, kind: Kind, purpose: str) -> None:
        self.id = secrets.token_hex(16)
        self.reliance = Reliance(self._urge, self.check_age)
        self._store = store
        self._name = layout.lock(self.id)
        self._claim = Claim(kind=kind, purpose=purpose, holder=_this_process(), since=datetime.now(UTC))
        self._is_written = threading.Lock()
        self._is_lost = False
        self._urged = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lock-{kind}", daemon=True)
        self._renewed = time.clock_gettime(time.CLOCK_BOOTTIME)

    def begin(self) -> None:
        """Write the lock, and know what is condemned. Raises RepositoryError."""
        self._put()
        self._claim = msgspec.structs.replace(self._claim, began=self.now())
        self.renew()
        self._thread.start()

    def end(self) -> None:
        """Take the lock away, as far as the store lets us: otherwise it becomes stale."""
        # Whoever still works under it, in a thread that nobody waits for, must not go on.
        self._is_lost = True
        self._ended.set()
        self._urged.set()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(errors.RepositoryError):
            self._store.delete(self._name)

    def renew(self) -> None:
        """Write the lock again, and answer collections. Raises RepositoryError, also when the lock was lost."""
        with self._is_written:
            self.check()
            if self._claim.kind == "writing":
                self._heed_collections()
            self._put()

    def check(self) -> None:
        """Raise RepositoryError unless the lock is there, so that everybody heeds it."""
        self.check_age()
        if not self._store.holds(self._name):
            # For good: what it stood for was not heeded meanwhile.
            self._is_lost = True
            raise self._lost()

    def check_age(self) -> None:
        """Raise RepositoryError when the lock is known to be lost, or others may soon think it stale: it is too old."""
        # A clock that goes on while the machine sleeps.
        if self._is_lost or time.clock_gettime(time.CLOCK_BOOTTIME) - self._renewed > _UNSURE:
            raise self._lost()

    def now(self) -> float:
        """Return the time by the storage's clock, as of the last renewal. Raises RepositoryError."""
        return self._listed()[0]

    def settled(self) -> float:
        """
        Return a time by the storage's clock: what was written before is of points that are there, or of no running
        backup. Of nothing this is known when a lock cannot be read: -inf. Raises RepositoryError.
        """
        now = self.now()
        try:
            return min((held.claim.began or now for held in self.others() if held.claim.kind == "writing"), default=now)
        except errors.Damaged:
            return float("-inf")

    def others(self) -> list[Held]:
        """
        Return the locks of all others that are not stale. A collector takes the stale ones away.

        Raises RepositoryError, also for a lock that this version cannot read: nobody knows what that one needs.
        """
        self.renew()
        living = []
        for lock_id, claim in self._all_others():
            if claim is not None:
                living.append(Held(lock_id, claim))
            elif self._claim.kind == "collecting":
                _log.info("The lock %s is stale, and taken away", lock_id)
                self._store.delete(layout.lock(lock_id))
        return living

    def _keep(self) -> None:
        """Renew the lock until it is ended."""
        told = ""
        while not self._ended.is_set():
            if self._urged.wait(RENEWAL):
                # Somebody waits for the end of a collection, so look often.
                self._ended.wait(POLL)
            if self._ended.is_set():
                return
            try:
                self.renew()
                told = ""
            except errors.Error as error:
                # `check` will say it if it stays so.
                if error.message != told:
                    _log.warning("A lock of the repository could not be written: %s", error.message)
                told = error.message
            if not self.reliance.rounds:
                self._urged.clear()

    def _urge(self) -> None:
        self._urged.set()

    def _put(self) -> None:
        began = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._store.put(self._name, documents.encode(self._claim))
        # A put that hung for long brings a lock back that others have taken away.
        self.check_age()
        self._renewed = began

    def _heed_collections(self) -> None:
        """Answer what is condemned, and forget what is not any more."""
        rounds = {
            round_id for each in self._store.listing(layout.CONDEMNED) if (round_id := layout.round_of(each.name))
        }
        # Of a collector that has died nothing is to be feared, and nothing to be waited for.
        alive = {lock_id for lock_id, claim in self._all_others() if claim is not None} if rounds else set()
        rounds = {round_id for round_id in rounds if round_id.partition("-")[0] in alive}
        for round_id in rounds - self.reliance.rounds:
            try:
                condemned = read_digests(self._store, layout.condemned(round_id))
            except errors.NotFound:
                continue
            needed = self.reliance.condemn(round_id, condemned)
            self._store.put(layout.rescued(round_id, self.id), b"".join(needed))
        self.reliance.keep_only(rounds)
        self._claim = msgspec.structs.replace(self._claim, seen=tuple(sorted(self.reliance.rounds)))

    def _all_others(self) -> Iterator[tuple[str, Claim | None]]:
        """Generate the locks of all others; None for what a stale one says, which a power failure may have torn."""
        now, others = self._listed()
        for lock_id, modified in others.items():
            if now - modified > STALE:
                yield lock_id, None
                continue
            with contextlib.suppress(errors.NotFound):
                claim = _read(self._store, lock_id)
                yield lock_id, None if _is_gone(claim.holder) else claim

    def _listed(self) -> tuple[float, dict[str, float]]:
        """
        Return when this lock was written, and when those of all others were, by their ids.

        Looks twice: a directory's listing may miss a file that is replaced meanwhile (of those in wide use btrfs's
        does), but not again a moment later, as nobody writes his lock twice within a second.
        """
        listed = {
            lock_id: each.modified
            for _ in range(2)
            for each in self._store.listing(layout.LOCKS)
            if (lock_id := layout.lock_id_of(each.name)) is not None
        }
        if self.id not in listed:
            raise self._lost()
        return listed.pop(self.id), listed

    def _lost(self) -> errors.RepositoryError:
        return errors.RepositoryError(
            f"The lock in {self._store.url} was lost: for minutes it could not be written, or this machine slept.",
            "Run this again; what is stored already is used.",
        )


@contextmanager
def held(store: Store, kind: Kind, purpose: str) -> Iterator[Lock]:
    """Have a lock. purpose: what it is for, such as "backup of VM web". Raises RepositoryError."""
    lock = Lock(store, kind, purpose)
    try:
        lock.begin()
        yield lock
    finally:
        lock.end()


def read_digests(store: Store, name: str) -> set[bytes]:
    """Return the digests that an object holds. Raises NotFound, Damaged, RepositoryError."""
    data = store.get(name, ROUND * DIGEST)
    if len(data) % DIGEST:
        raise errors.Damaged(f"{store.url}/{name} is damaged: it ends within a digest.")
    return {data[start : start + DIGEST] for start in range(0, len(data), DIGEST)}


def _read(store: Store, lock_id: str) -> Claim:
    name = layout.lock(lock_id)
    return documents.decode(store.get(name, _MAX_ENCODED), Claim, FORMAT, f"{store.url}/{name}")


def _this_process() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _boot(), _namespace(), pid, _started(pid))


def _is_gone(holder: Holder) -> bool:
    """Tell whether a process is known to have ended. Of one elsewhere (also in another container) nothing is known."""
    here = _this_process()
    if (holder.host, holder.boot, holder.namespace) != (here.host, here.boot, here.namespace) or not holder.boot:
        return False
    started = _started(holder.pid)
    if started:
        return started != holder.started
    try:
        os.kill(holder.pid, 0)
    except PermissionError:
        # Another user's, which /proc may hide.
        return False
    except (ProcessLookupError, OverflowError):
        return True
    # Ended, and not yet waited for.
    return True


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink())
    return ""


def _started(pid: int) -> str:
    """Return when the process was started, in ticks after the boot; "" when it has ended, or cannot be seen."""
    with contextlib.suppress(OSError):
        # Behind the name, in parentheses, which may hold anything; see proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    return ""
