"""Locks: who counts as there, who as gone, and what a writer may do whose lock was lost."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from blockferry import errors
from blockferry.repository import Repository, layout, locks, reliance
from blockferry.repository import settings as settings_module
from blockferry.repository.store import Listed
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    settings_module.write(store, WINDOW, "zstd")
    return store


@pytest.fixture
def collector(store: MemoryStore) -> Iterator[locks.Lock]:
    with locks.held(store, "collecting", "collect") as lock:
        yield lock


def rewrite(store: MemoryStore, lock: locks.Lock, field: str, value: str) -> None:
    """Let a lock be another process's."""
    name = layout.lock(lock.id)
    old = store.objects[name]
    new = re.sub(rb'"%s": ("[^"]*"|\d+)' % field.encode(), f'"{field}": {value}'.encode(), old)
    assert new != old
    store.put(name, new)


def test_a_lock_is_there_while_it_is_held(store: MemoryStore, collector: locks.Lock) -> None:
    with locks.held(store, "reading", "restore of VM web") as lock:
        (held,) = collector.others()
        assert held.id == lock.id
        assert held.claim.began == store.now
        assert str(held.claim).startswith(f"restore of VM web (process {os.getpid()} on ")
    assert collector.others() == []
    assert list(store.listing(layout.LOCKS)) != [], "the collector's own"


def test_a_process_that_has_ended_holds_nothing(store: MemoryStore, collector: locks.Lock) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with locks.held(store, "writing", "backup") as lock:
        started = locks._started(process.pid)
        rewrite(store, lock, "pid", str(process.pid))
        rewrite(store, lock, "started", f'"{started}"')
        assert len(collector.others()) == 1
        process.communicate(b"\n")
        assert collector.others() == []
        assert not store.holds(layout.lock(lock.id)), "a collector takes it away"


@pytest.mark.parametrize("field", ["host", "boot", "namespace"])
def test_of_a_process_elsewhere_nothing_is_known_until_it_is_silent(
    store: MemoryStore, collector: locks.Lock, field: str
) -> None:
    with locks.held(store, "writing", "backup") as lock:
        rewrite(store, lock, "pid", "4194305")
        rewrite(store, lock, field, '"another"')
        store.now += locks.STALE - 1
        assert len(collector.others()) == 1
        store.now += 2
        assert collector.others() == []
        with pytest.raises(errors.RepositoryError, match="was lost"):
            lock.check()


def test_a_lock_that_was_taken_away_does_not_come_back(store: MemoryStore) -> None:
    with locks.held(store, "writing", "backup") as lock:
        store.delete(layout.lock(lock.id))
        for refuses in (lock.renew, lock.check, lock.renew):
            with pytest.raises(errors.RepositoryError, match="was lost"):
                refuses()
        assert not store.holds(layout.lock(lock.id))


def test_a_put_that_hung_brings_no_lock_back(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with locks.held(store, "writing", "backup") as lock:
        put = store.put

        def hang(name: str, data: bytes) -> None:
            monkeypatch.setattr(time, "clock_gettime", lambda clock: now + locks.STALE)
            put(name, data)

        monkeypatch.setattr(store, "put", hang)
        for refuses in (lock.renew, lock.check):
            with pytest.raises(errors.RepositoryError, match="was lost"):
                refuses()


def test_a_torn_lock_is_in_the_way_until_it_is_stale(store: MemoryStore, collector: locks.Lock) -> None:
    store.put(layout.lock("0" * 32), b"")
    with pytest.raises(errors.Damaged):
        collector.others()
    store.now += locks.STALE + 1
    assert collector.others() == []


def test_only_a_collector_takes_locks_away(store: MemoryStore) -> None:
    with locks.held(store, "writing", "one") as one, locks.held(store, "writing", "two") as two:
        store.now += locks.STALE + 1
        assert one.others() == []
        two.check()


def test_a_machine_that_slept_does_not_believe_in_its_lock(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    with locks.held(store, "writing", "backup") as lock:
        lock.check()
        monkeypatch.setattr(time, "clock_gettime", lambda clock: now + locks.STALE)
        for refuses in (lock.check_age, lock.check, lock.renew):
            with pytest.raises(errors.RepositoryError, match="was lost"):
                refuses()
    assert list(store.listing(layout.LOCKS)) == []


def test_a_backup_whose_lock_was_lost_is_not_committed(store: MemoryStore) -> None:
    repository = Repository.on(store)
    with pytest.raises(errors.RepositoryError, match="was lost"), repository.new_point(images.VM) as draft:
        images.finish(draft.disk(images.DISK, 0, "full"))
        store.delete(layout.lock(draft._repository_lock.id))
        draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1)
    assert repository.points() == []


def test_a_lock_of_a_newer_version_stops_a_collection(store: MemoryStore, collector: locks.Lock) -> None:
    with locks.held(store, "writing", "backup") as lock:
        rewrite(store, lock, "format", "2")
        with pytest.raises(errors.RepositoryError, match="format 2"):
            collector.others()


def test_what_is_condemned_is_waited_for(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.02)
    monkeypatch.setattr(locks, "POLL", 0.01)
    wanted, other = os.urandom(32), os.urandom(32)
    with locks.held(store, "collecting", "collect") as collector:
        round_id = f"{collector.id}-1"
        store.put(layout.condemned(round_id), wanted)
        with locks.held(store, "writing", "backup") as writer:
            (held,) = collector.others()
            assert held.claim.seen == (round_id,), "known before anything is written"
            with writer.reliance.looking_for(other):
                pass
            found = threading.Event()

            def look() -> None:
                with writer.reliance.looking_for(wanted):
                    found.set()

            thread = threading.Thread(target=look)
            thread.start()
            assert not found.wait(0.1)
            store.delete(layout.condemned(round_id))
            assert found.wait(10)
            thread.join()


def test_what_a_dead_collection_condemned_is_not_waited_for(store: MemoryStore) -> None:
    with locks.held(store, "collecting", "collect") as collector:
        store.put(layout.condemned(f"{collector.id}-1"), os.urandom(32))
        rewrite(store, collector, "started", '"0"')
        with locks.held(store, "writing", "backup") as writer:
            assert not writer.reliance.rounds


def test_a_repository_that_cannot_be_written_is_read_all_the_same(store: MemoryStore) -> None:
    class ReadOnly(MemoryStore):
        def put(self, name: str, data: bytes) -> None:
            raise errors.RepositoryError("It is read-only.")

    read_only = ReadOnly()
    read_only.objects = store.objects
    with Repository.on(read_only).reading("restore"):
        pass


def test_a_storage_that_fails_for_a_while_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.001)
    tries = itertools.count(1)
    is_failing = threading.Event()
    passed = threading.Event()

    class Failing(MemoryStore):
        def put(self, name: str, data: bytes) -> None:
            if is_failing.is_set():
                if next(tries) == 10:
                    passed.set()
                raise errors.RepositoryError("It is full.")
            super().put(name, data)

    with locks.held(Failing(), "writing", "backup"):
        is_failing.set()
        assert passed.wait(10)
    assert caplog.text.count("It is full.") == 1


def test_who_waits_stops_when_his_lock_is_lost(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliance, "_LOOK", 0.01)
    monkeypatch.setattr(locks, "POLL", 0.01)
    with locks.held(store, "writing", "backup") as lock:
        lock.reliance.condemn("round", [b"c" * 32])
        store.delete(layout.lock(lock.id))
        with pytest.raises(errors.RepositoryError, match="was lost"), lock.reliance.looking_for(b"c" * 32):
            pass


def test_a_backup_whose_lock_was_lost_stops_at_its_next_chunk(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Repository.on(store).new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, 2 * WINDOW, "full")
        writer.write(images.data(0, os.urandom(WINDOW)))
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: now + locks.STALE)
        writer.write(images.data(WINDOW, os.urandom(WINDOW)))
        with pytest.raises(errors.RepositoryError, match="was lost"):
            images.finish(writer)


class BlinkingStore(MemoryStore):
    """One whose listing of locks misses every lock once, as btrfs may miss a file that is replaced meanwhile."""

    def listing(self, folder: str) -> Iterator[Listed]:
        if folder == layout.LOCKS:
            self.seen = not getattr(self, "seen", False)
            if self.seen:
                return
        yield from super().listing(folder)


def test_a_lock_that_a_listing_misses_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    store = BlinkingStore()
    with locks.held(store, "writing", "backup") as writer, locks.held(store, "collecting", "collect") as collector:
        assert [held.id for held in collector.others()] == [writer.id]


def test_what_was_written_before_the_oldest_writer_began_is_settled(store: MemoryStore) -> None:
    with locks.held(store, "reading", "verify") as lock:
        assert lock.settled() == store.now
        began = store.now
        with locks.held(store, "writing", "backup"):
            store.now += 100
            lock.renew()
            assert lock.settled() == began
        assert lock.settled() == store.now
