"""
Stores for tests of the repository: one in memory that can lose its power, and one that fails when it is told to.

They are stores like any other: `test_repository_store.py` puts them through the same contract.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random

from blockferry import errors
from blockferry.repository.store import Batch, Listed, Store


class MemoryStore:
    """
    Objects in memory. What was not committed is at risk of `lose_power` and `lose_writes`, as in a page cache.

    objects: by name, as every reader sees them.  now: the storage's clock, in seconds; it moves when a test moves it.
    """

    url = "memory:"
    side_by_side = 2
    vouches = False

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.now = 1_000_000.0
        self._modified: dict[str, float] = {}
        self._at_risk: dict[str, bytes | None] = {}
        self._lost: dict[str, bytes | None] = {}
        self._lock = threading.Lock()

    def get(self, name: str, limit: int) -> bytes:
        with self._lock:
            data = self.objects.get(name)
        if data is None:
            raise errors.NotFound(f"{name} is not there.")
        if len(data) > limit:
            raise errors.Damaged(f"{name} is longer than it can be.")
        return data

    def forget(self, name: str) -> None:
        with self._lock:
            if name in self._lost:
                self._become(name, self._lost.pop(name))

    def put(self, name: str, data: bytes) -> None:
        with self._lock:
            self._change(name, data)

    def holds(self, name: str) -> bool:
        with self._lock:
            return name in self.objects

    def put_new(self, name: str, data: bytes) -> None:
        with self._lock:
            if name in self.objects:
                raise errors.Conflict(f"{name} is there already.")
            self._change(name, data)

    def listing(self, folder: str) -> Iterator[Listed]:
        with self._lock:
            found = [
                Listed(name, len(data), self._modified[name])
                for name, data in self.objects.items()
                if name.startswith(f"{folder}/")
            ]
        yield from found

    def delete(self, name: str) -> None:
        with self._lock:
            self._change(name, None)

    def delete_all(self, names: Iterable[str]) -> None:
        for name in names:
            self.delete(name)

    def remove_unfinished(self, before: float) -> list[Listed]:
        return []

    @contextmanager
    def batch(self) -> Iterator[MemoryStore]:
        yield self

    def flush(self) -> None:
        with self._lock:
            self._at_risk.clear()

    def commit(self, name: str, data: bytes) -> None:
        with self._lock:
            self._at_risk.clear()
            self._become(name, data)

    def lose_writes(self) -> None:
        """Nothing that was put or deleted since the last commit arrives; readers see it until it is forgotten."""
        self._lost |= self._at_risk
        self._at_risk.clear()

    def lose_power(self, random: Random) -> None:
        """What was put or deleted since the last commit arrives, or does not, or arrives in part."""
        for name in list(self._lost):
            self.forget(name)
        for name, before in self._at_risk.items():
            now = self.objects.get(name)
            outcomes = [now, before]
            if now is not None:
                outcomes += [now[: random.randrange(len(now))], bytes(len(now)), b""]
            self._become(name, random.choice(outcomes))
        self._at_risk.clear()

    def _change(self, name: str, data: bytes | None) -> None:
        self._at_risk.setdefault(name, self._lost.pop(name, self.objects.get(name)))
        self._become(name, data)

    def _become(self, name: str, data: bytes | None) -> None:
        self.objects.pop(name, None)
        if data is not None:
            self.objects[name] = data
            self._modified[name] = self.now


class FailingStore:
    """
    Another store, of which one call fails.

    at: number of the call that fails, from 0.  late: after it took effect.  dies: every later call fails too, as when
    the controller was killed.
    """

    def __init__(
        self,
        inner: Store,
        at: int,
        *,
        late: bool = False,
        dies: bool = False,
        error: Callable[[], Exception] = lambda: errors.RepositoryError("The storage failed."),
    ) -> None:
        self.url = inner.url
        self.side_by_side = inner.side_by_side
        self.vouches = inner.vouches
        self.failed = False
        self._inner = inner
        self._left = at
        self._late = late
        self._dies = dies
        self._error = error
        self._lock = threading.Lock()

    def get(self, name: str, limit: int) -> bytes:
        with self._failing():
            return self._inner.get(name, limit)

    def forget(self, name: str) -> None:
        self._inner.forget(name)

    def put(self, name: str, data: bytes) -> None:
        with self._failing():
            self._inner.put(name, data)

    def holds(self, name: str) -> bool:
        with self._failing():
            return self._inner.holds(name)

    def put_new(self, name: str, data: bytes) -> None:
        with self._failing():
            self._inner.put_new(name, data)

    def listing(self, folder: str) -> Iterator[Listed]:
        with self._failing():
            yield from list(self._inner.listing(folder))

    def delete(self, name: str) -> None:
        with self._failing():
            self._inner.delete(name)

    def delete_all(self, names: Iterable[str]) -> None:
        with self._failing():
            self._inner.delete_all(names)

    def remove_unfinished(self, before: float) -> list[Listed]:
        with self._failing():
            return self._inner.remove_unfinished(before)

    @contextmanager
    def batch(self) -> Iterator[FailingBatch]:
        with self._inner.batch() as batch:
            yield FailingBatch(batch, self._failing)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        with self._lock:
            fails = self._left == 0 or (self._dies and self._left < 0)
            self._left -= 1
        if fails:
            self.failed = True
        if fails and not self._late:
            raise self._error()
        yield
        if fails:
            raise self._error()


class FailingBatch:
    """The batch of a failing store."""

    def __init__(self, inner: Batch, failing: Callable[[], AbstractContextManager[None]]) -> None:
        self._inner = inner
        self._failing = failing

    def flush(self) -> None:
        with self._failing():
            self._inner.flush()

    def commit(self, name: str, data: bytes) -> None:
        with self._failing():
            self._inner.commit(name, data)


@contextmanager
def file_size_limit(length: int) -> Iterator[None]:
    """Let the kernel refuse files longer than `length` bytes: Python ignores the signal, write(2) says EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
