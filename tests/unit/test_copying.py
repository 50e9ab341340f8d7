"""Copying a disk into the repository: what is asked for, what is moved, how it stops."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import pytest

from blockferry import errors
from blockferry.config import Compression
from blockferry.jobs import compression, copying
from blockferry.jobs.copying import Copied, Stop
from blockferry.jobs.progress import Silent
from blockferry.repository import DiskWriter, Manifest, Repository
from blockferry.repository import settings as settings_module
from blockferry.transport import disk as disk_module
from blockferry.transport import patience
from blockferry.transport.disk import Reading
from blockferry.transport.ladder import Ladder
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.units import KiB
from tests.unit import memory_disks
from tests.unit import repository_images as images
from tests.unit.memory_disks import GRAIN, Disk, Way
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB


class Told(Silent):
    """What a progress was told."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int]] = []
        self.ended: list[str] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def advance(self, key: str, position: int, moved: int) -> None:
        self.positions.append((position, moved))

    def end(self, key: str) -> None:
        self.ended.append(key)


@pytest.fixture
def repository() -> Repository:
    store = MemoryStore()
    return Repository(store, settings_module.write(store, WINDOW, "none"))


def copy(
    disk: Disk, writer: DiskWriter, incremental: bool, stop: Stop | None = None, told: Told | None = None
) -> Copied:
    stop = stop or Stop()
    terms = copying.Terms(disk.size, incremental, WINDOW)
    ladder: Ladder[disk_module.Disk] = Ladder([Way(disk)], memory_disks.target(disk.size), stop.pause)
    return copying.copy(ladder, writer, terms, "system", stop, told or Told())


def back_up(
    repository: Repository, disk: Disk, incremental: bool, base: Manifest | None, told: Told | None = None
) -> tuple[Manifest, Copied]:
    with repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, disk.size, "incremental" if incremental else "full", base)
        copied = copy(disk, writer, incremental, told=told)
        images.finish(writer)
        point = draft.commit(mode="live", backup_id="b", checkpoint_id="c", parent=base, seconds=1.0)
    return point, copied


@pytest.fixture
def image() -> bytearray:
    """Five windows and a bit, of which the third is zero."""
    content = bytearray(random.Random(1).randbytes(5 * WINDOW + GRAIN + 512))
    content[2 * WINDOW : 3 * WINDOW] = bytes(WINDOW)
    return content


def test_full_then_incremental(repository: Repository, image: bytearray) -> None:
    told = Told()
    first, summary = back_up(repository, Disk(bytes(image)), False, None, told)
    assert images.restore(repository, first) == image
    assert (summary.dirty, summary.read, summary.moved) == (len(image), len(image) - WINDOW, len(image) - WINDOW)
    assert told.positions == sorted(told.positions)
    assert told.positions[-1] == (len(image), summary.moved)
    assert told.ended == [images.DISK]

    old = bytes(image)
    image[GRAIN : 2 * GRAIN] = b"x" * GRAIN
    image[-512:] = bytes(512)
    second, summary = back_up(repository, Disk(bytes(image), frozenset([GRAIN, 5 * WINDOW + GRAIN])), True, first)
    assert images.restore(repository, second) == image
    assert images.restore(repository, first) == old
    assert (summary.dirty, summary.read, summary.moved) == (GRAIN + 512, GRAIN, GRAIN)


def test_full_on_a_base_moves_what_it_has_not(
    repository: Repository, image: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "KNOWN_SPAN", 2 * WINDOW)
    first, _ = back_up(repository, Disk(bytes(image)), False, None)
    image[3 * WINDOW] ^= 1
    disk = Disk(bytes(image))
    second, summary = back_up(repository, disk, False, first)
    assert images.restore(repository, second) == image
    assert summary.moved == WINDOW
    assert summary.read == len(image) - WINDOW
    spans = [(request.start, request.length) for request in disk.requests]
    assert spans == [(0, 2 * WINDOW), (2 * WINDOW, 2 * WINDOW), (4 * WINDOW, WINDOW + GRAIN + 512)]
    for request in disk.requests:
        assert all(request.start <= start < request.start + request.length for start, _ in request.known)


def test_no_more_digests_than_the_wire_takes(
    repository: Repository, image: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "MAX_KNOWN", 3)
    first, _ = back_up(repository, Disk(bytes(image)), False, None)
    disk = Disk(bytes(image))
    second, summary = back_up(repository, disk, False, first)
    assert [len(request.known) for request in disk.requests] == [3]
    assert 0 < summary.moved < len(image) - WINDOW
    assert images.restore(repository, second) == image


def test_requests_grow(repository: Repository, image: bytearray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "FIRST_SPAN", WINDOW)
    monkeypatch.setattr(copying, "KNOWN_SPAN", 2 * WINDOW)
    disk = Disk(bytes(image))
    first, _ = back_up(repository, disk, False, None)
    assert [request.length for request in disk.requests] == [WINDOW, 2 * WINDOW, 2 * WINDOW, GRAIN + 512]
    disk = Disk(bytes(image), frozenset([0]))
    back_up(repository, disk, True, first)
    assert [request.length for request in disk.requests] == [WINDOW, 2 * WINDOW, len(image) - 3 * WINDOW]


@pytest.mark.parametrize(("setting", "compress"), [("zstd", True), ("off", False), ("auto", False)])
def test_limits_of_the_operator_go_along(
    writer: DiskWriter, image: bytearray, setting: Compression, compress: bool
) -> None:
    disk, stop = Disk(bytes(image)), Stop()
    terms = copying.Terms(disk.size, False, WINDOW, setting, 400 * KiB)
    ladder: Ladder[disk_module.Disk] = Ladder([Way(disk)], memory_disks.target(disk.size), stop.pause)
    copying.copy(ladder, writer, terms, "system", stop, Told())
    assert {(request.compress, request.bytes_per_second) for request in disk.requests} == {(compress, 400 * KiB)}


class SlowLink(Disk):
    """A disk whose blocks take their time to come, and less when they are compressed."""

    def read(self, request: ReadRequest) -> Reading:
        return SlowReading(super().read(request), 0.0001 if request.compress else 0.02)


class SlowReading:
    def __init__(self, reading: Reading, seconds: float) -> None:
        self._reading = reading
        self._seconds = seconds
        self._stalled = 0.0

    def __iter__(self) -> Iterator[Block]:
        for block in self._reading:
            time.sleep(self._seconds)  # the link, no synchronisation
            self._stalled += self._seconds
            yield block

    @property
    def wire_bytes(self) -> int:
        return self._reading.wire_bytes

    @property
    def summary(self) -> Summary:
        return self._reading.summary._replace(stalled=self._stalled)

    def close(self) -> None:
        self._reading.close()


def test_slow_link_gets_compressed_blocks(
    writer: DiskWriter, image: bytearray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "ENOUGH", 1)
    monkeypatch.setattr(copying, "KNOWN_SPAN", WINDOW)
    disk = SlowLink(bytes(image))
    copy(disk, writer, False)
    assert [request.compress for request in disk.requests] == [False, *[True] * 5]


def test_window_in_many_pieces_is_read_whole(repository: Repository, image: bytearray) -> None:
    point, _ = back_up(repository, Disk(bytes(image)), False, None)
    window = range(WINDOW, 2 * WINDOW, 16 * KiB)
    base = point
    for start in list(window)[1::2]:
        old = bytes(image)
        image[start : start + 512] = b"y" * 512
        base = images.incremental(repository, old, bytes(image), base, grain=512)

    old = bytes(image)
    image[WINDOW : WINDOW + 512] = b"z" * 512
    disk = Disk(bytes(image), frozenset([WINDOW]))
    mended, summary = back_up(repository, disk, True, base)
    assert [request.whole_windows for request in disk.requests] == [frozenset([WINDOW])]
    assert (summary.dirty, summary.read, summary.moved) == (GRAIN, WINDOW, WINDOW)
    assert images.restore(repository, mended) == image
    assert images.restore(repository, base) == old

    _, summary = back_up(repository, again := Disk(bytes(image), frozenset([WINDOW])), True, mended)
    assert [request.whole_windows for request in again.requests] == [frozenset()], "it is in one piece again"
    assert summary.read == GRAIN


def test_error_of_the_disk_is_the_one_raised(repository: Repository, image: bytearray) -> None:
    def fail() -> None:
        raise agent_errors.ReadFailed("Input/output error.")

    disk = Disk(bytes(image))
    disk.before_read = fail
    with pytest.raises(agent_errors.ReadFailed):
        back_up(repository, disk, False, None)
    assert repository.points() == []


@pytest.fixture
def writer(repository: Repository, image: bytearray) -> Iterator[DiskWriter]:
    with repository.new_point(images.VM) as draft:
        yield draft.disk(images.DISK, len(image), "full", None)


def test_stopped_before_it_began(writer: DiskWriter, image: bytearray) -> None:
    stop = Stop()
    stop.stop()
    with pytest.raises(errors.Interrupted):
        copy(Disk(bytes(image)), writer, False, stop)


def test_stopped_while_it_waits_for_the_disk(writer: DiskWriter, image: bytearray) -> None:
    disk, stop = Disk(bytes(image)), Stop()
    reading, goes_on = threading.Event(), threading.Event()

    def wait() -> None:
        reading.set()
        assert goes_on.wait(10)

    disk.before_read = wait
    caught: list[BaseException] = []

    def run() -> None:
        try:
            copy(disk, writer, False, stop)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert reading.wait(10)
    stopper = threading.Thread(target=stop.stop)
    stopper.start()
    # `stop` waits for the read in hand: it may end now.
    goes_on.set()
    stopper.join(10)
    thread.join(10)
    assert [type(error) for error in caught] == [errors.Interrupted]


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_MAX_PAUSE", 0.001)


@pytest.mark.usefixtures("short_pauses")
def test_busy_agent_is_asked_again(repository: Repository, image: bytearray) -> None:
    disk, told = Disk(bytes(image)), Told()

    def refuse() -> None:
        if len(disk.requests) < 3:
            raise agent_errors.Busy("Enough to do.")

    disk.before_read = refuse
    point, _ = back_up(repository, disk, False, None, told)
    assert images.restore(repository, point) == image
    assert len(disk.requests) == 3
    assert told.warnings == ["Disk system waits for host host1, for 5 minutes at most. Enough to do."]


@pytest.mark.usefixtures("short_pauses")
def test_agent_that_stays_busy(repository: Repository, image: bytearray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.Patience, "is_at_end", True)

    def refuse() -> None:
        raise agent_errors.Busy("Enough to do.")

    disk = Disk(bytes(image))
    disk.before_read = refuse
    with pytest.raises(errors.TransportError, match=r"grpc: Enough to do\."):
        back_up(repository, disk, False, None)
