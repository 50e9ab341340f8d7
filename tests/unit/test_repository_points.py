"""Recovery points: what is restored is what was backed up, whatever happened in between."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from blockferry import errors
from blockferry.repository import Carrier, File, Manifest, Repository, Unreadable, Vm, layout
from blockferry.repository import settings as settings_module
from blockferry.repository.chunks import Compression
from blockferry.repository.index import PAGE
from blockferry.repository.manifest import BackupMode
from blockferry.repository.store import Store
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block
from blockferry_agent.units import GiB, KiB, MiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import FailingStore, MemoryStore, file_size_limit

WINDOW = 256 * KiB
SECTOR = 512


def repository_on(
    store: Store, window: int = WINDOW, compression: Compression = "zstd", master: bytes | None = None
) -> Repository:
    """Make a repository, sealed with a master key when there is one."""
    return Repository(store, settings_module.write(store, window, compression), master)


@pytest.fixture
def repository() -> Repository:
    return repository_on(MemoryStore())


# Whatever happens to a disk.


class Disk(RuleBasedStateMachine):
    """
    A guest writes, zeroes and resizes; backups are taken, some of them die, power fails; every point reads as its disk.
    The repository is plain or encrypted.

    The disk begins shortly before the end of an index page, so that what happens crosses it.
    """

    points = Bundle("points")
    origin = PAGE - 2 * WINDOW

    @initialize(
        seed=st.integers(0, 2**32),
        compression=st.sampled_from(["zstd", "none"]),
        master=st.sampled_from([None, b"m" * 32]),
    )
    def begin(self, seed: int, compression: Compression, master: bytes | None) -> None:
        self.random = random.Random(seed)
        self.store = MemoryStore()
        self.master = master
        self.repository = repository_on(self.store, WINDOW, compression, master)
        self.image = bytearray(self.random.randbytes(3 * WINDOW + 5 * SECTOR))
        self.contents: dict[str, bytes] = {}
        self.failed: list[bytes] = []
        self.newest: Manifest | None = None

    def places(self, start: float, length: int) -> slice:
        """Return a range of sectors within the image."""
        first = int(start * (len(self.image) // SECTOR)) * SECTOR
        return slice(first, min(first + length * SECTOR, len(self.image)))

    @rule(start=st.floats(0, 0.99), length=st.integers(1, 700), pattern=st.sampled_from(["random", "text", "same"]))
    def write(self, start: float, length: int, pattern: str) -> None:
        place = self.places(start, length)
        count = place.stop - place.start
        content = {"random": self.random.randbytes(count), "text": b"text" * (count // 4), "same": b"\xff" * count}
        self.image[place] = content[pattern]

    @rule(start=st.floats(0, 0.99), length=st.integers(1, 2000))
    def zero(self, start: float, length: int) -> None:
        place = self.places(start, length)
        self.image[place] = bytes(place.stop - place.start)

    @rule(sectors=st.integers(1, 3500))
    def resize(self, sectors: int) -> None:
        size = sectors * SECTOR
        self.image = self.image[:size].ljust(size, b"\0")

    @rule(target=points, with_base=st.booleans())
    def full(self, with_base: bool) -> Manifest:
        base = self.newest if with_base else None
        known = images.known(self.repository, base) if base else {}
        return self.committed(self.full_blocks(known), "full", base)

    @rule(target=points, whole_windows=st.booleans(), grain=st.sampled_from([SECTOR, 64 * KiB]))
    def incremental(self, whole_windows: bool, grain: int) -> object:
        if self.newest is None:
            return multiple()
        blocks = self.incremental_blocks(self.newest, whole_windows, grain)
        return self.committed(blocks, "incremental", self.newest)

    @rule(at=st.integers(0, 30), late=st.booleans(), dies=st.booleans())
    def failed_backup(self, at: int, late: bool, dies: bool) -> None:
        store = FailingStore(self.store, at, late=late, dies=dies)
        failing = Repository(store, self.repository.settings, self.master)
        try:
            point = images.back_up(failing, self.full_blocks({}), self.origin + len(self.image))
        except errors.RepositoryError:
            self.failed.append(bytes(self.image))
            # A manifest whose commit failed after it took effect is taken away again, unless the controller died.
            left = [point for point in self.repository.points() if point.id not in self.contents]
            assert len(left) <= (1 if late and dies else 0)
        else:
            left = [point]
        for point in left:
            self.contents[point.id] = bytes(self.image)
            self.newest = point

    @rule()
    def power_failure(self) -> None:
        self.store.lose_power(self.random)
        # A point whose commit failed after it took effect was taken away; that may be undone, but only as a whole.
        for point in self.repository.points():
            if point.id not in self.contents:
                content = images.restore(self.repository, point, start=self.origin)
                assert content in self.failed
                self.contents[point.id] = content

    @rule()
    def failed_writes(self) -> None:
        self.store.lose_writes()

    @rule(point=points)
    def restore(self, point: Manifest) -> None:
        assert images.restore(self.repository, point, start=self.origin) == self.contents[point.id]

    @invariant()
    def visible_is_what_was_committed(self) -> None:
        if hasattr(self, "repository"):
            assert {point.id for point in self.repository.points()} == set(self.contents)

    def teardown(self) -> None:
        if not hasattr(self, "repository"):
            return
        self.power_failure()
        for point in self.repository.points():
            assert images.restore(self.repository, point, start=self.origin) == self.contents[point.id]
        assert self.repository.verify(self.repository.points(), lambda step: None).damage == ()

    def full_blocks(self, known: dict[tuple[int, int], bytes]) -> Iterator[Block]:
        yield images.zero(0, self.origin)
        yield from self.shifted([(0, len(self.image))], known)

    def incremental_blocks(self, base: Manifest, whole_windows: bool, grain: int) -> Iterator[Block]:
        ranges = list(images.dirty_ranges(self.contents[base.id], bytes(self.image), grain))
        if whole_windows:
            starts = sorted({start // WINDOW * WINDOW for start, _ in ranges})
            ranges = [(start, min(start + WINDOW, len(self.image))) for start in starts]
        yield from self.shifted(ranges, {})

    def shifted(self, ranges: list[tuple[int, int]], known: dict[tuple[int, int], bytes]) -> Iterator[Block]:
        here = {(start - self.origin, length): digest for (start, length), digest in known.items()}
        for block in images.read(bytes(self.image), ranges, WINDOW, here):
            yield block._replace(start=block.start + self.origin)

    def committed(self, blocks: Iterator[Block], mode: BackupMode, base: Manifest | None) -> Manifest:
        self.newest = images.back_up(self.repository, blocks, self.origin + len(self.image), mode, base)
        self.contents[self.newest.id] = bytes(self.image)
        return self.newest


TestDisk = Disk.TestCase
TestDisk.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# Nothing is visible before all of it is there.


@pytest.mark.parametrize("late", [False, True], ids=["before it took effect", "after it took effect"])
@pytest.mark.parametrize("dies", [False, True], ids=["one call fails", "the controller dies"])
def test_whichever_call_fails_there_are_the_old_points_or_one_more(late: bool, dies: bool) -> None:
    old = os.urandom(5 * WINDOW)
    new = old[:WINDOW] + bytes(WINDOW) + os.urandom(100 * KiB) + old[2 * WINDOW + 100 * KiB :]
    for at in range(100):
        store = MemoryStore()
        repository = repository_on(store)
        base = images.full(repository, old)
        failing = FailingStore(store, at, late=late, dies=dies)
        with contextlib.suppress(errors.RepositoryError):
            images.incremental(Repository(failing, repository.settings), old, new, base)
        store.lose_power(random.Random(at))

        points = repository.points()
        assert points[-1] == base
        assert len(points) <= 2
        for point, content in zip(reversed(points), (old, new), strict=False):
            assert images.restore(repository, point) == content
        if not failing.failed:
            break
        after = images.incremental(repository, old, new, base)
        assert images.restore(repository, after) == new
    assert not failing.failed
    assert at > 8


def test_a_backup_that_is_given_up_leaves_only_chunks() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    before = set(store.objects)
    with pytest.raises(KeyboardInterrupt), repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, WINDOW, "full")
        writer.write(images.data(0, os.urandom(WINDOW)))
        images.finish(writer)
        draft.ovf("<ovf/>")
        raise KeyboardInterrupt
    assert all(name.startswith("chunks/") for name in set(store.objects) - before)
    assert repository.points() == []


def test_the_first_error_is_the_one_raised() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    full_store = FailingStore(store, at=8, dies=True, error=lambda: errors.RepositoryFull("There is no room."))
    with pytest.raises(errors.RepositoryFull):
        images.full(Repository(full_store, repository.settings), os.urandom(20 * WINDOW))


def test_a_failed_writer_takes_nothing_more() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    failing = Repository(FailingStore(store, at=7), repository.settings)
    with failing.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, 100 * WINDOW, "full")
        with pytest.raises(errors.RepositoryError):
            for number in range(100):
                writer.write(images.data(number * WINDOW, os.urandom(WINDOW)))
        with pytest.raises(errors.RepositoryError):
            writer.write(images.zero(writer.position, WINDOW))
        with pytest.raises(errors.RepositoryError):
            images.finish(writer)
        with pytest.raises(agent_errors.InvalidRequest, match="not finished"):
            draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=0)


def test_a_full_directory_ends_a_backup_and_the_next_one_succeeds(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path / "r"), WINDOW)
    image = os.urandom(10 * WINDOW)
    with file_size_limit(WINDOW // 2), pytest.raises(errors.RepositoryFull, match="Make room"):
        images.full(repository, image)
    assert repository.points() == []
    assert images.restore(repository, images.full(repository, image)) == image


# What it costs.


def test_scattered_grains_cost_what_they_hold() -> None:
    """One random 64 KiB grain in each 1 MiB window, over a full backup."""
    store = MemoryStore()
    repository = repository_on(store, 1 * MiB)
    windows = 64
    old = os.urandom(windows * MiB)
    base = images.full(repository, old)
    new = bytearray(old)
    for window in range(windows):
        place = window * MiB + random.randrange(16) * images.GRAIN
        new[place : place + images.GRAIN] = os.urandom(images.GRAIN)
    before = sum(map(len, store.objects.values()))

    point = images.incremental(repository, old, bytes(new), base)

    dirty = windows * images.GRAIN
    written = sum(len(data) for name, data in store.objects.items()) - before
    assert written / dirty <= 1.1
    stored = point.disks[0].bytes.stored
    assert 0 <= written - stored <= 4 * KiB, "the figure in the manifest leaves out its own length and the OVF"
    assert images.restore(repository, point) == new


def test_an_incremental_without_changes_stores_next_to_nothing(repository: Repository) -> None:
    image = os.urandom(10 * WINDOW)
    base = images.full(repository, image)
    assert images.incremental(repository, image, image, base).disks[0].bytes.stored < 1 * KiB
    assert images.full(repository, image, base).disks[0].bytes.stored < 1 * KiB


def test_zeros_cost_nothing(repository: Repository) -> None:
    image = os.urandom(WINDOW)
    base = images.full(repository, image)
    point = images.incremental(repository, image, bytes(WINDOW), base)
    assert point.disks[0].bytes.stored < 1 * KiB
    assert images.restore(repository, point) == bytes(WINDOW)


def test_a_huge_sparse_disk_is_quick_and_small() -> None:
    size = 8 * 1024 * GiB
    places = [0, 300 * GiB, size - 4 * KiB]
    repository = repository_on(MemoryStore(), 1 * MiB)

    def blocks() -> Iterator[Block]:
        position = 0
        for place in places:
            if place > position:
                yield images.zero(position, place - position)
            yield images.data(place, b"\1" * 4 * KiB)
            position = place + 4 * KiB

    tracemalloc.start()
    try:
        point = images.back_up(repository, blocks(), size)
        newer = images.back_up(repository, [images.data(5 * GiB, b"\2" * 512)], size, "incremental", point)
        pieces = list(repository.disk(newer, images.DISK).read())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [piece.start for piece in pieces if piece.data is not None] == [0, 5 * GiB, 300 * GiB, size - 4 * KiB]
    assert newer.disks[0].bytes.stored < 2 * KiB
    assert peak < 20 * MiB


def test_memory_stays_bounded_while_the_store_is_slow() -> None:
    """A store that accepts nothing for a while does not let blocks pile up."""
    store = MemoryStore()
    repository = repository_on(store, 1 * MiB)
    gate = threading.Event()
    accepted: list[int] = []

    class Slow(MemoryStore):
        def put(self, name: str, data: bytes) -> None:
            assert not name.startswith("chunks/") or gate.wait(30)
            store.put(name, data)

    slow = Slow()
    slow.objects, slow._modified = store.objects, store._modified

    def feed() -> None:
        def blocks() -> Iterator[Block]:
            for number in range(64):
                accepted.append(number)
                yield images.data(number * MiB, os.urandom(1 * MiB))

        images.back_up(Repository(slow, repository.settings), blocks(), 64 * MiB)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        deadline = time.monotonic() + 30
        while len(accepted) < 17 and time.monotonic() < deadline:
            time.sleep(0.01)
        # A chance to go too far.
        feeder.join(0.2)
        assert len(accepted) == 17, "sixteen in flight, and one that waits"
    finally:
        gate.set()
        feeder.join(30)
    assert len(accepted) == 64


# Fragments.


def test_a_window_in_too_many_pieces_is_named_until_it_is_read_whole(repository: Repository) -> None:
    image = os.urandom(8 * WINDOW)
    base = images.full(repository, image)
    new = bytearray(image)
    for number in range(5):
        place = 3 * WINDOW + (2 * number + 1) * 4 * KiB
        new[place : place + 4 * KiB] = os.urandom(4 * KiB)
    point = images.incremental(repository, image, bytes(new), base, grain=4 * KiB)

    def broken(base: Manifest) -> frozenset[int]:
        with repository.new_point(images.VM) as draft:
            return draft.disk(images.DISK, len(new), "incremental", base).broken_windows(0, len(new))

    assert broken(base) == frozenset()
    assert broken(point) == {3 * WINDOW}

    whole = [images.data(3 * WINDOW, bytes(new[3 * WINDOW : 4 * WINDOW]))]
    mended = images.back_up(repository, whole, len(new), "incremental", point)
    assert broken(mended) == frozenset()
    assert images.restore(repository, mended) == new


# Disks that change their size.


@pytest.mark.parametrize("touched", [False, True], ids=["nothing written", "its new end written"])
@pytest.mark.parametrize("shrunk", [0, 512, WINDOW, WINDOW + 512, 2 * WINDOW])
def test_what_a_shrunk_disk_lost_does_not_come_back_when_it_grows(
    repository: Repository, shrunk: int, touched: bool
) -> None:
    image = os.urandom(3 * WINDOW)
    small = bytearray(image[:shrunk])
    if touched:
        small[-512:] = b"\1" * min(512, shrunk)
    large = bytes(small).ljust(len(image), b"\0")
    full = images.full(repository, image)
    shorter = images.incremental(repository, image, bytes(small), full, grain=512)
    longer = images.incremental(repository, bytes(small), large, shorter)
    assert images.restore(repository, shorter) == small
    assert images.restore(repository, longer) == large


def test_a_disk_that_loses_whole_pages_of_its_index(repository: Repository) -> None:
    end = images.data(2 * PAGE, b"\1" * WINDOW)
    full = images.back_up(repository, [images.zero(0, 2 * PAGE), end], 2 * PAGE + WINDOW)
    shorter = images.back_up(repository, [], PAGE, "incremental", full)
    longer = images.back_up(repository, [], 2 * PAGE + WINDOW, "incremental", shorter)
    assert list(repository.disk(longer, images.DISK).read()) == [(0, 2 * PAGE + WINDOW, None)]


# What a transport may not say.


def block_at(start: int, length: int = 4 * KiB) -> Block:
    return images.data(start, b"\1" * length)


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([block_at(4 * KiB), block_at(0)], "left out|after"),
        ([block_at(0), block_at(0)], "after 4096"),
        ([images.zero(0, 2 * WINDOW), block_at(WINDOW)], "after"),
        ([images.zero(0, 4 * WINDOW + 512)], "of 1049088 bytes"),
        ([images.zero(0, 0)], "of 0 bytes"),
        ([images.zero(0, WINDOW - 512), block_at(WINDOW - 512, 1024)], "border"),
        ([block_at(0)._replace(data=b"\2" * 4 * KiB)], "not what was read"),
        ([block_at(0)._replace(data=b"\1" * 1 * KiB)], "not what was read"),
        ([images.same(0, WINDOW)], "base does not have"),
        ([images.zero(0, WINDOW), images.zero(2 * WINDOW, WINDOW)], "left out"),
        ([images.zero(0, WINDOW)], "ended at"),
    ],
)
def test_blocks_that_cannot_be_true_are_refused(repository: Repository, blocks: list[Block], told: str) -> None:
    with pytest.raises(agent_errors.ProtocolError, match=told):
        images.back_up(repository, blocks, 4 * WINDOW)
    assert repository.points() == []


def test_another_transport_carries_on_behind_the_last_good_block(repository: Repository) -> None:
    image = os.urandom(4 * WINDOW)
    good = list(images.read(image, [(0, len(image))], WINDOW))

    with repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, len(image), "full")
        for block in good[:2]:
            writer.write(block)
        with pytest.raises(agent_errors.ProtocolError):
            writer.write(good[2]._replace(data=bytes(WINDOW)))
        assert writer.position == 2 * WINDOW
        for block in good[2:]:
            writer.write(block)
        images.finish(writer)
        point = draft.commit(mode="hybrid", backup_id="b", checkpoint_id=None, parent=None, seconds=1)
    assert images.restore(repository, point) == image


def test_same_needs_the_whole_block_in_the_base(repository: Repository) -> None:
    image = os.urandom(WINDOW)
    base = images.full(repository, image)
    with pytest.raises(agent_errors.ProtocolError, match="base does not have"):
        images.back_up(
            repository, [images.same(0, WINDOW // 2), images.zero(WINDOW // 2, WINDOW // 2)], WINDOW, "full", base
        )


def test_an_incremental_needs_a_base(repository: Repository) -> None:
    with repository.new_point(images.VM) as draft:
        with pytest.raises(agent_errors.InvalidRequest, match="needs a base"):
            draft.disk(images.DISK, WINDOW, "incremental")
        other = images.full(repository, os.urandom(WINDOW))
        with pytest.raises(errors.NotFound, match="has no disk"):
            draft.disk(str(uuid.uuid4()), WINDOW, "incremental", other)


# Several disks, several controllers.


def test_disks_are_written_side_by_side(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path), WINDOW)
    disks = {str(uuid.uuid4()): os.urandom(20 * WINDOW + 512 * number) for number in range(3)}
    shared = os.urandom(20 * WINDOW)
    with repository.new_point(images.VM) as draft:

        def write(disk_id: str, image: bytes) -> None:
            writer = draft.disk(disk_id, 2 * len(image), "full")
            for block in images.read(
                image + shared[: len(image)].ljust(len(image), b"\0"), [(0, 2 * len(image))], WINDOW
            ):
                writer.write(block)
            images.finish(writer)

        threads = [threading.Thread(target=write, args=disk) for disk in disks.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        point = draft.commit(mode="cold", backup_id="b", checkpoint_id="c", parent=None, seconds=1)
    for disk_id, image in disks.items():
        assert images.restore(repository, point, disk_id)[: len(image)] == image
    assert repository.verify([point], lambda step: None).damage == ()


def test_a_point_has_its_disks_in_one_order_whichever_began_first(repository: Repository) -> None:
    ids = sorted(str(uuid.uuid4()) for _ in range(4))
    disks = [(ids[3], "logs", True), (ids[0], "data", False), (ids[1], "tmp", False), (ids[2], "tmp", False)]
    with repository.new_point(images.VM) as draft:
        for disk_id, alias, bootable in reversed(disks):
            images.finish(draft.disk(disk_id, 0, "full"), alias, bootable)
        point = draft.commit(mode="cold", backup_id="b", checkpoint_id="c", parent=None, seconds=1)
    assert [(disk.id, disk.alias, disk.bootable) for disk in point.disks] == disks


def test_two_controllers_may_write_the_same_at_once(tmp_path: Path) -> None:
    Repository.init(str(tmp_path), WINDOW)
    image = os.urandom(30 * WINDOW)
    points: list[Manifest] = []
    vms = [Vm(str(uuid.uuid4()), name) for name in ("a", "b")]

    def back_up(vm: Vm) -> None:
        repository = Repository.open(str(tmp_path))
        blocks = images.read(image, [(0, len(image))], WINDOW)
        points.append(images.back_up(repository, blocks, len(image), vm=vm))

    threads = [threading.Thread(target=back_up, args=[vm]) for vm in vms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repository = Repository.open(str(tmp_path))
    assert len(points) == 2
    for point in points:
        assert images.restore(repository, point) == image
    assert repository.points(vms[0].id) == [point for point in points if point.vm == vms[0]]


# Reading.


def test_a_range_of_a_disk_is_read_alone(repository: Repository) -> None:
    image = os.urandom(WINDOW) + bytes(WINDOW) + os.urandom(WINDOW + 512)
    reader = repository.disk(images.full(repository, image), images.DISK)
    for start, length in ((0, 0), (100, 1), (WINDOW - 1, 2), (10, 3 * WINDOW), (len(image), 0), (WINDOW + 1, 5)):
        pieces = list(reader.read(start, length))
        content = b"".join(bytes(piece.length) if piece.data is None else piece.data for piece in pieces)
        assert content == image[start : start + length]
        assert not pieces or pieces[0].start == start
    for start, length in ((-1, 1), (0, len(image) + 1), (len(image) + 1, 0)):
        with pytest.raises(agent_errors.InvalidRequest):
            list(reader.read(start, length))


def test_a_chunk_is_fetched_once_for_all_its_pieces() -> None:
    """A window of one chunk, with four later blocks laid over it, is read with five fetches."""
    store = MemoryStore()
    repository = repository_on(store)
    image = os.urandom(WINDOW)
    base = images.full(repository, image)
    new = bytearray(image)
    for number in range(4):
        place = (2 * number + 1) * 4 * KiB
        new[place : place + 4 * KiB] = os.urandom(4 * KiB)
    point = images.incremental(repository, image, bytes(new), base, grain=4 * KiB)
    fetched: list[str] = []

    class Watched(MemoryStore):
        def get(self, name: str, limit: int) -> bytes:
            fetched.append(name)
            return store.get(name, limit)

    assert images.restore(Repository(Watched(), repository.settings), point) == new
    assert len(fetched) == 1 + 1 + 5, "the root, the page, five chunks"


def test_a_reading_may_be_given_up(repository: Repository) -> None:
    image = os.urandom(20 * WINDOW)
    pieces = repository.disk(images.full(repository, image), images.DISK).read()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("restore")]


# The list.


def test_points_are_listed_newest_first_and_survive_reopening(tmp_path: Path) -> None:
    repository = Repository.init(str(tmp_path), WINDOW, "none")
    image = os.urandom(WINDOW)
    first = images.full(repository, image)
    second = images.incremental(repository, image, image[::-1], first)
    reopened = Repository.open(f"file://{tmp_path}")
    assert reopened.settings == repository.settings
    assert reopened.points() == [second, first]
    assert reopened.points(images.VM.id) == [second, first]
    assert reopened.points(str(uuid.uuid4())) == []
    assert reopened.point(images.VM.id, first.id) == first
    assert reopened.ovf(first) == "<ovf/>"
    assert (second.parent_id, second.parent_checkpoint_id) == (first.id, first.checkpoint_id)


def test_a_point_without_ovf_says_why(repository: Repository) -> None:
    with repository.new_point(images.VM) as draft:
        draft.without_ovf("The engine had locked the disks.")
        point = draft.commit(mode="live", backup_id="b", checkpoint_id=None, parent=None, seconds=1)
    with pytest.raises(errors.NotFound, match="locked"):
        repository.ovf(point)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b"\xff" * 10, b'{"format": 1}', b'{"format": "x"}'])
def test_an_unreadable_manifest_is_told_and_hides_no_other(damage: bytes) -> None:
    store = MemoryStore()
    repository = repository_on(store)
    points = [images.full(repository, os.urandom(WINDOW)) for _ in range(2)]
    name = layout.manifest(images.VM.id, points[0].id)
    store.objects[name] = damage
    told: list[Unreadable] = []
    assert repository.points(unreadable=told.append) == points[1:]
    assert [(lost.vm_id, lost.point_id, lost.name) for lost in told] == [(images.VM.id, points[0].id, name)]
    assert f"{name} is damaged" in told[0].reason
    with pytest.raises(errors.Damaged, match=points[0].id):
        repository.points()


def test_a_manifest_in_another_format_is_refused_and_new_fields_are_not() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    point = images.full(repository, os.urandom(WINDOW))
    name = layout.manifest(images.VM.id, point.id)
    document = msgspec.json.decode(store.objects[name])
    store.objects[name] = msgspec.json.encode(document | {"colour": "red"})
    assert repository.point(images.VM.id, point.id) == point
    store.objects[name] = msgspec.json.encode({"format": 2})
    with pytest.raises(errors.RepositoryError, match="format 2"):
        repository.point(images.VM.id, point.id)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["created"], "2026-11-22T19:43:14"),
        (["created"], 1795376594),
        (["id"], "latest"),
        (["parent_id"], "../../etc"),
        (["vm", "id"], "x"),
        (["disks", 0, "id"], "sda"),
        (["disks", 0, "id"], images.VM.id.upper()),
        (["disks", 0, "id"], images.DISK + "\n"),
        (["disks", 0, "index", "blake3"], "0" * 64 + "\n"),
        (["disks", 0, "size"], -1),
        (["disks", 0, "size"], 2**63),
    ],
)
def test_a_manifest_with_values_that_cannot_be_is_damaged(path: list[str | int], value: object) -> None:
    store = MemoryStore()
    repository = repository_on(store)
    point = images.full(repository, os.urandom(WINDOW))
    sound = images.full(repository, os.urandom(WINDOW))
    name = layout.manifest(images.VM.id, point.id)
    document = place = msgspec.json.decode(store.objects[name])
    *way, field = path
    for step in way:
        place = place[step]
    place[field] = value
    store.objects[name] = msgspec.json.encode(document)
    with pytest.raises(errors.Damaged, match=name):
        repository.point(images.VM.id, point.id)
    found = repository.verify(repository.points(unreadable=lambda lost: None), lambda step: None)
    assert [lost.point_id for lost in found.unreadable] == [point.id]
    assert repository.points(unreadable=lambda lost: None) == [sound]


def test_a_manifest_in_another_points_place_is_damaged() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    one, two = (images.full(repository, os.urandom(WINDOW)) for _ in range(2))
    store.objects[layout.manifest(images.VM.id, one.id)] = store.objects[layout.manifest(images.VM.id, two.id)]
    with pytest.raises(errors.Damaged, match=two.id):
        repository.point(images.VM.id, one.id)


@pytest.mark.parametrize("bad", ["", "..", "../../etc", "x" * 36, images.VM.id.upper(), images.VM.id + "/x", "\0"])
def test_ids_that_are_none_never_become_names(repository: Repository, bad: str) -> None:
    point_id = "20261122T194314Z-3f9a1c"
    for vm_id, point, disk_id in ((bad, point_id, images.DISK), (images.VM.id, bad, images.DISK)):
        with pytest.raises(errors.NotFound, match="is not the id of a"):
            layout.index(vm_id, point, disk_id)
        with pytest.raises(errors.NotFound):
            repository.point(vm_id, point)
    with pytest.raises(errors.NotFound), repository.new_point(images.VM) as draft:
        draft.disk(bad, WINDOW, "full")
    with pytest.raises(errors.NotFound), repository.new_point(Vm(bad, "x")) as draft:
        images.finish(draft.disk(images.DISK, 0, "full"))


def test_other_files_in_the_folders_are_no_points() -> None:
    store = MemoryStore()
    repository = repository_on(store)
    for name in (
        "vms/README",
        "vms/x/y/manifest.json",
        f"vms/{images.VM.id}/x/manifest.json",
        "vms/a/b/c/manifest.json",
    ):
        store.put(name, b"")
    assert repository.points(unreadable=lambda lost: pytest.fail(lost.reason)) == []


# The repository's own settings.


def test_a_repository_is_made_once(tmp_path: Path) -> None:
    made = Repository.init(str(tmp_path / "new" / "r"), 8 * MiB, "none")
    with pytest.raises(errors.Conflict, match="already"):
        Repository.init(str(tmp_path / "new" / "r"))
    assert Repository.open(made.url).settings == made.settings
    assert made.settings.window == 8 * MiB


@pytest.mark.parametrize("window", [0, 128 * KiB, 16 * MiB, 1 * MiB + 512, 3 * MiB])
def test_windows_have_bounds(tmp_path: Path, window: int) -> None:
    with pytest.raises(errors.RepositoryError, match="power of two"):
        Repository.init(str(tmp_path), window)


def test_an_empty_directory_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(errors.RepositoryError, match="repository init"):
        Repository.open(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "kind", "told"),
    [
        ({"format": 2}, errors.RepositoryError, "format 2"),
        ({"compression": "lz4"}, errors.Damaged, "lz4"),
        ({"window": 1000}, errors.Damaged, "1000 bytes"),
        ({"encryption": {"key": "…"}}, errors.Damaged, "encryption"),
    ],
)
def test_settings_that_this_version_cannot_follow_are_refused(
    changes: dict[str, object], kind: type[errors.Error], told: str
) -> None:
    store = MemoryStore()
    repository_on(store)
    document = msgspec.json.decode(store.objects[layout.SETTINGS])
    store.objects[layout.SETTINGS] = msgspec.json.encode(document | changes)
    with pytest.raises(kind, match=told):
        Repository.on(store)


def test_the_manifest_holds_what_was_measured(repository: Repository) -> None:
    carriers = (
        Carrier(transport="netcat", start=0, moved=2, reason=None, remark="clear text"),
        Carrier(transport="imageio", start=512, moved=0, reason="No agent answers on host1.", remark=None),
    )
    with repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, WINDOW, "full")
        writer.write(images.zero(0, WINDOW))
        writer.finish(
            alias="data",
            format="raw",
            bootable=False,
            interface="virtio",
            carriers=carriers,
            dirty=4,
            read=3,
            moved=2,
            seconds=0.5,
        )
        point = draft.commit(mode="cold", backup_id="b", checkpoint_id=None, parent=None, seconds=9)
    disk = repository.points()[0].disk(images.DISK)
    assert (disk.bytes.dirty, disk.bytes.read, disk.bytes.moved) == (4, 3, 2)
    assert disk.carriers == carriers
    assert isinstance(disk.index, File)
    assert repository.points() == [point]
