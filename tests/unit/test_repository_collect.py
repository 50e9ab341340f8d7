"""Collecting garbage: what goes, what stays, and what is said of it. `test_repository_together` has the rest."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.repository import Collected, Manifest, Repository, Times, Unreadable, layout, locks, marks
from blockferry.repository import settings as settings_module
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import FailingStore, MemoryStore
from tests.unit.test_repository_together import CONTENT, Backup

WINDOW = 256 * KiB
NOW = Times(timedelta(), timedelta(), 10)
A, B, C = (CONTENT[letter] for letter in "ABC")


@pytest.fixture(autouse=True)
def quick_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEWAL", 0.02)
    monkeypatch.setattr(locks, "POLL", 0.005)


@pytest.fixture(params=[None, b"m" * 32], ids=["plain", "encrypted"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(request.param)


class Site:
    """A repository in memory, whose clock the tests move."""

    def __init__(self, master: bytes | None = None) -> None:
        self.store = MemoryStore()
        self.master = master
        self.settings = settings_module.write(self.store, WINDOW, "zstd")
        self.repository = Repository(self.store, self.settings, master)

    def collect(self, times: Times = NOW, progress: Callable[[str], None] = lambda said: None) -> Collected:
        return self.repository.collect(times, progress)

    def garbage(self, content: bytes) -> None:
        """Store a chunk that nobody needs, long ago."""
        self.repository._chunks().put(content)
        self.store.now += 100_000

    def chunks(self) -> set[str]:
        return {name for name in self.store.objects if layout.digest_of(name)}


def test_what_a_deleted_point_needed_goes_with_the_trash(site: Site) -> None:
    first = images.full(site.repository, A + B)
    second = images.full(site.repository, A + C)
    needed = site.chunks()
    site.repository.delete(first)
    assert [point.id for point in site.repository.points()] == [second.id]
    site.store.now += timedelta(days=6).total_seconds()

    kept = site.collect(Times())
    assert (kept.points, kept.trash, kept.freed.objects, kept.hindrance) == (0, 1, 0, None)
    assert site.chunks() == needed
    assert site.repository.undelete(first.vm.id, first.id) == first
    assert images.restore(site.repository, first) == A + B

    site.repository.delete(first)
    site.store.now += timedelta(days=8).total_seconds()
    before = sum(map(len, site.store.objects.values()))
    freed = site.collect(Times())
    assert (freed.points, freed.trash, freed.hindrance) == (1, 0, None)
    # B, a page, the index and the OVF; the manifest went with the trash.
    assert freed.freed.objects == 4
    assert sum(map(len, site.store.objects.values())) == pytest.approx(before - freed.freed.length, abs=2000)
    assert images.restore(site.repository, second) == A + C
    assert site.repository.verify([second], lambda step: None).damage == ()
    with pytest.raises(errors.NotFound, match="trash"):
        site.repository.undelete(first.vm.id, first.id)
    assert not [name for name in site.store.objects if name.split("/")[0] in ("locks", "condemned", "rescued")]


def test_what_is_young_stays_for_now(site: Site) -> None:
    site.garbage(A)
    site.store.now -= 100_000 - 3600
    kept = site.collect(Times())
    assert (kept.freed.objects, kept.young.objects) == (0, 1)
    site.store.now += 100_000
    assert site.collect(Times()).freed.objects == 1


def test_what_a_running_backup_found_stays(site: Site) -> None:
    site.garbage(A)
    site.garbage(B)
    with site.repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, WINDOW, "full")
        writer.write(images.data(0, A))
        images.finish(writer)
        collected = site.collect()
        assert (collected.freed.objects, collected.rescued.objects, collected.hindrance) == (1, 1, None)
        point = draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1)
    assert images.restore(site.repository, point) == A


def test_what_a_running_backup_wrote_stays_however_long_it_runs(site: Site) -> None:
    with site.repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, WINDOW, "full")
        writer.write(images.data(0, A))
        images.finish(writer)
        site.store.now += timedelta(days=4).total_seconds()
        draft._repository_lock.renew()
        collected = site.collect()
        assert (collected.freed.objects, collected.hindrance) == (0, None)
        point = draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1)
    assert images.restore(site.repository, point) == A


def test_what_is_wanted_while_it_is_removed_is_stored_anew(site: Site) -> None:
    """The backup has answered, and then meets a chunk that is condemned."""
    site.garbage(A)
    reads = itertools.count()
    waiting: list[bool] = []
    with site.repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, WINDOW, "full")

        def finish() -> None:
            writer.write(images.data(0, A))
            images.finish(writer)

        thread = threading.Thread(target=finish)

        def progress(said: str) -> None:
            if said.startswith("reading") and next(reads) == 1:
                # All have answered by now, and nothing is removed yet.
                thread.start()
                thread.join(0.2)
                waiting.append(thread.is_alive())

        assert site.collect(progress=progress).freed.objects == 1
        thread.join(10)
        assert waiting == [True]
        point = draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1)
    assert images.restore(site.repository, point) == A


def test_who_keeps_a_damaged_point_in_the_trash_is_named(site: Site) -> None:
    point = images.full(site.repository, A)
    del site.store.objects[layout.index(point.vm.id, point.id, images.DISK)]
    with site.repository.reading("serve db"):
        site.repository.delete(point)
        hindrance = site.collect().hindrance
        assert hindrance is not None
        assert f"stays until he has ended: serve db (process {os.getpid()} on" in hindrance
    site.store.now += 1000
    assert site.collect().hindrance is None


def test_who_gives_up_does_not_wait_for_a_collection(site: Site) -> None:
    site.garbage(A)
    ended: list[float] = []

    def progress(said: str) -> None:
        if said.startswith("reading") and next(reads) == 1:
            writer.write(images.data(0, A))
            began = time.monotonic()
            stack.close()
            ended.append(time.monotonic() - began)

    reads = itertools.count()
    with contextlib.ExitStack() as stack:
        draft = stack.enter_context(site.repository.new_point(images.VM))
        writer = draft.disk(images.DISK, WINDOW, "full")
        assert site.collect(progress=progress).freed.objects == 1
    assert ended[0] < 5
    assert site.repository.points() == []


def test_what_becomes_a_point_meanwhile_stays(site: Site) -> None:
    site.garbage(A)
    points: list[Manifest] = []

    def progress(said: str) -> None:
        if said.startswith("looking") and not points:
            points.append(images.full(site.repository, A))

    collected = site.collect(progress=progress)
    assert (collected.freed.objects, collected.rescued.objects) == (0, 1)
    assert images.restore(site.repository, points[0]) == A


def test_a_point_that_is_brought_back_meanwhile_is_whole_or_stays_in_the_trash(site: Site) -> None:
    for when in ("reading", "looking", "removed"):
        point = images.full(site.repository, os.urandom(WINDOW))
        site.repository.delete(point)
        site.store.now += 100_000
        tried: list[bool] = []

        def progress(said: str, when: str = when, point: Manifest = point, tried: list[bool] = tried) -> None:
            if said.startswith(when) and not tried:
                tried.append(False)
                with contextlib.suppress(errors.Conflict, errors.NotFound):
                    site.repository.undelete(point.vm.id, point.id)
                    tried[0] = True

        site.collect(progress=progress)
        assert tried, when
        assert (point in site.repository.points()) == tried[0]
        if tried[0]:
            assert site.repository.verify([point], lambda step: None).damage == ()


def test_a_point_that_is_brought_back_too_slowly_is_not_brought_back(site: Site) -> None:
    """It is read from the trash, then flushing takes long: a whole collection passes, which answers were given to."""
    point = images.full(site.repository, A)
    site.repository.delete(point)
    site.store.now += 100_000
    collected: list[Collected] = []

    class Slow(MemoryStore):
        def commit(self, name: str, data: bytes) -> None:
            if layout.point_of(name) and not collected:
                site.store.now += 1
                collected.append(site.collect(Times(timedelta(seconds=-1000), timedelta(), 10)))
            super().commit(name, data)

    slow = Slow()
    slow.__dict__.update(site.store.__dict__)
    site.store.now = slow.now
    with pytest.raises(errors.NotFound, match="trash has no"):
        Repository(slow, site.settings, site.master).undelete(point.vm.id, point.id)
    assert collected[0].hindrance is None
    assert site.repository.points() == []


def test_what_the_base_of_a_running_backup_needs_stays(site: Site) -> None:
    base = images.full(site.repository, A + B)
    with site.repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, 2 * WINDOW, "incremental", base)
        site.repository.delete(base)
        assert site.collect().freed.objects == 0
        writer.write(images.data(0, C))
        images.finish(writer)
        point = draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=base, seconds=1)
    site.store.now += 100_000
    assert site.collect().points == 1
    assert images.restore(site.repository, point) == C + B


def test_nothing_is_built_on_a_point_that_was_deleted(site: Site) -> None:
    base = images.full(site.repository, A)
    site.repository.delete(base)
    with pytest.raises(errors.NotFound, match="was deleted"), site.repository.new_point(images.VM) as draft:
        draft.disk(images.DISK, WINDOW, "incremental", base)


def test_what_somebody_reads_stays(site: Site) -> None:
    point = images.full(site.repository, A + B)
    site.store.now += 100_000
    with site.repository.reading("restore"):
        site.repository.delete(point)
        collected = site.collect()
        assert (collected.points, collected.trash, collected.freed.objects) == (0, 1, 0)
        assert images.restore(site.repository, point) == A + B
    site.store.now += 1
    assert site.collect().points == 1


def test_of_a_backup_that_does_not_answer_everything_stays() -> None:
    site = Site()
    site.garbage(A)
    backup = Backup(site.store, images.VM, None, "...")
    backup.write("A")
    backup.crash(site.store, elsewhere=True)
    collected = site.collect(Times(timedelta(), timedelta(), 0.1))
    assert collected.hindrance is not None
    assert "No answer came from the backup of VM web (process" in collected.hindrance
    assert (collected.freed.objects, collected.left.objects) == (0, 1)
    site.store.now += locks.STALE + 700
    assert site.collect().freed.objects == 1


def test_when_something_cannot_be_known_nothing_is_removed(site: Site) -> None:
    site.garbage(C)
    point = images.full(site.repository, A)
    site.store.now += 100_000
    before = dict(site.store.objects)
    for name in (layout.manifest(point.vm.id, point.id), layout.index(point.vm.id, point.id, images.DISK)):
        site.store.put(name, before[name][:-2])
        collected = site.collect()
        assert collected.freed.objects == 0
        assert collected.hindrance is not None
        assert "nothing more was removed" in collected.hindrance
        assert name in collected.hindrance
        site.store.put(name, before[name])
    assert site.store.objects.keys() == before.keys()
    assert site.collect().freed.objects == 1


def test_one_collects_at_a_time(site: Site) -> None:
    refused: list[str] = []

    def progress(said: str) -> None:
        if not refused:
            with pytest.raises(errors.Conflict, match="collected already, by collect") as caught:
                site.collect()
            refused.append(str(caught.value))

    site.collect(progress=progress)
    assert refused


def test_marks_go_with_their_chunks(site: Site) -> None:
    site.garbage(A)
    (name,) = site.chunks()
    digest = layout.digest_of(name)
    assert digest is not None
    marks.put(site.store, digest, "It is torn.")
    site.collect()
    assert marks.all_of(site.store) == set()


def test_marks_of_what_is_not_there_go_and_others_stay(site: Site) -> None:
    images.full(site.repository, A)
    kept = next(digest for name in site.chunks() if (digest := layout.digest_of(name)) is not None)
    for digest in (kept, b"x" * 32):
        marks.put(site.store, digest, "It is torn.")
    site.collect()
    assert marks.all_of(site.store) == {kept}


def test_a_deleted_point_that_cannot_be_read_hinders_until_its_time_is_over(site: Site) -> None:
    good, bad = images.full(site.repository, A), images.full(site.repository, B)
    for point in (good, bad):
        site.repository.delete(point)
    name = layout.trashed(bad.vm.id, bad.id)
    site.store.put(name, site.store.objects[name][:-2])
    lost: list[Unreadable] = []
    assert [each.point.id for each in site.repository.trash(lost.append)] == [good.id]
    assert [(each.vm_id, each.point_id, each.name) for each in lost] == [(bad.vm.id, bad.id, name)]
    assert name in (site.collect(Times()).hindrance or "")
    site.store.now += timedelta(days=8).total_seconds()
    collected = site.collect(Times())
    assert (collected.points, collected.hindrance) == (2, None)
    assert site.chunks() == set()


def test_a_deleted_point_that_cannot_be_read_is_deleted_for_good(site: Site) -> None:
    site.repository.delete(images.full(site.repository, B))
    (name,) = (listed.name for listed in site.store.listing(layout.TRASH))
    site.store.put(name, b"{}")
    lost: list[Unreadable] = []
    site.repository.trash(lost.append)
    site.repository.forget(lost[0])
    site.store.now += 100_000
    assert site.collect(Times()).hindrance is None
    assert site.chunks() == set()


class StallingStore(MemoryStore):
    """
    One whose deletions of chunks are told of.

    deleting: called before each.
    """

    deleting: Callable[[], None] = staticmethod(lambda: None)

    def delete(self, name: str) -> None:
        if layout.digest_of(name):
            self.deleting()
        super().delete(name)


def test_a_collection_that_slept_in_the_midst_removes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile others took it for dead, and relied on what was left."""
    site, store = Site(), StallingStore()
    site.store = store
    site.repository = Repository(store, settings_module.write(store, WINDOW, "zstd"))
    for content in (A, B, C):
        site.garbage(content)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep() -> None:
        monkeypatch.setattr(time, "clock_gettime", lambda clock: now + locks.STALE + 1)

    store.deleting = sleep
    with pytest.raises(errors.RepositoryError, match="was lost"):
        site.collect()
    assert len(site.chunks()) == 2


def impatient() -> None:
    """Collect, interrupted more than once while a chunk is being deleted. Print what was there until that had ended."""
    store = StallingStore()
    site = Site()
    site.repository = Repository(store, settings_module.write(store, WINDOW, "zstd"))
    site.repository._chunks().put(A)
    store.now += 100_000

    def interrupt() -> None:
        for _ in range(3):
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        print(sorted({name.partition("/")[0] for name in store.objects}))

    store.deleting = interrupt
    site.collect()


def test_an_impatient_user_does_not_leave_a_collection_at_work() -> None:
    """While anything is being deleted, the lock and the list of the condemned stay."""
    code = "from tests.unit import test_repository_collect as tests; tests.impatient()"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr
    assert done.stdout == "['chunks', 'condemned', 'locks', 'repository.json']\n"


class TightStore(MemoryStore):
    """A full one: it takes no more than 4 KiB at once, until something was deleted."""

    full = True

    def put(self, name: str, data: bytes) -> None:
        if self.full and len(data) > 4 * KiB:
            raise errors.RepositoryFull("There is no room.")
        super().put(name, data)

    def delete(self, name: str) -> None:
        self.full = self.full and not layout.digest_of(name)
        super().delete(name)


def test_a_full_disk_is_emptied_in_small_pieces_first() -> None:
    store = TightStore()
    repository = Repository(store, settings_module.write(store, WINDOW, "zstd"))
    for number in range(500):
        store.put(layout.chunk(number.to_bytes(32, "big")), b"garbage")
    store.now += 100_000
    freed = repository.collect(NOW, lambda said: None)
    assert freed.freed.objects == 500


@pytest.mark.parametrize("late", [False, True], ids=["before it took effect", "after it took effect"])
def test_a_collection_that_dies_has_removed_nothing_that_is_needed(late: bool) -> None:
    for at in range(5, 2000, 7):
        site = Site()
        site.garbage(A)
        site.garbage(B)
        gone, point = (images.full(site.repository, image) for image in (A + C, B + C))
        site.repository.delete(gone)
        site.store.now += 100_000
        failing = FailingStore(site.store, at, late=late, dies=True)
        with contextlib.suppress(errors.RepositoryError):
            Repository(failing, site.settings).collect(NOW, lambda said: None)
        assert images.restore(site.repository, point) == B + C
        if not failing.failed:
            break
        site.store.now += locks.STALE + 1
        assert site.collect().hindrance is None
        assert images.restore(site.repository, point) == B + C
        # Two chunks, a page.
        assert len(site.chunks()) == 3
        assert not [name for name in site.store.objects if name.split("/")[0] in ("locks", "condemned", "rescued")]
    assert at > 250


def test_unfinished_files_of_killed_writers_go(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path / "r"), WINDOW)
    point = images.full(repository, A)
    folder = tmp_path / "r/chunks/ab"
    folder.mkdir(exist_ok=True)
    (folder / f"{'ab' * 32}#17").write_bytes(b"torn")
    (folder / "somebody's").write_bytes(b"else")
    os.utime(folder / f"{'ab' * 32}#17", (1, 1))
    collected = repository.collect(Times(), lambda said: None)
    assert (collected.freed.objects, collected.freed.length) == (1, 4)
    assert sorted(path.name for path in folder.iterdir() if len(path.name) < 60) == ["somebody's"]
    assert images.restore(repository, point) == A
