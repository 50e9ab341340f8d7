"""Writing a disk from a recovery point: what is written, what is not, and how it goes on when a way breaks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockferry import errors
from blockferry.jobs import upload
from blockferry.jobs.copying import Stop
from blockferry.jobs.progress import Silent
from blockferry.jobs.upload import Written
from blockferry.repository import Manifest, Repository, layout
from blockferry.repository import settings as settings_module
from blockferry.transport import patience
from blockferry.transport.disk import Target
from blockferry.transport.ladder import Ladder
from blockferry.transport.uploading import Upload
from blockferry_agent import compare, reader, writer
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, Known, Range
from blockferry_agent.units import KiB
from tests.unit import memory_disks
from tests.unit import repository_images as images
from tests.unit.memory_disks import Source
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
GRAIN = 64 * KiB


class Sink:
    """A disk in memory, as the agent's writer wants it. breaks_after: bytes of data, then the way breaks."""

    is_shareable = False

    def __init__(self, image: bytearray, breaks_after: int | None = None) -> None:
        self.image = image
        self.written: list[tuple[int, int, Kind]] = []
        self._left = breaks_after

    def write(self, start: int, data: bytes | memoryview) -> None:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise agent_errors.SourceGone("The way broke.")
        self.image[start : start + len(data)] = data
        self.written.append((start, len(data), Kind.DATA))

    def zero(self, start: int, length: int, may_punch: bool) -> None:
        self.image[start : start + length] = bytes(length)
        self.written.append((start, length, Kind.ZERO))

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Way:
    """A way to write (`UploadTransport`, and its `Upload`): the agent's writer and comparison, over memory."""

    remark = ""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.is_last_resort = name == "imageio"
        self.sink = sink
        self.size = len(sink.image)
        self.compared = 0
        self.closed = threading.Event()

    def open(self, target: Target) -> Way:
        return self

    def compare(self, known: Iterable[Known]) -> Iterator[Range]:
        expected = list(known)
        if not expected:
            return
        self.compared += sum(place.length for place in expected)
        request = compare.request(expected)
        disk = memory_disks.Disk(bytes(self.sink.image))
        reading = reader.read(lambda: Source(disk), request, workers=1, cut=compare.cut(expected))
        yield from compare.differences(request, reading)

    def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
        target = writer.Target(lambda: self.sink, self.size, may_punch=True)
        return iter(writer.Writing(target, blocks, window, workers=1))

    def close(self) -> None:
        self.closed.set()


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def repository(store: MemoryStore) -> Repository:
    return Repository(store, settings_module.write(store, WINDOW, "none"))


def image(seed: int, length: int = 6 * WINDOW) -> bytes:
    """Data, with two windows of zeros in it."""
    content = bytearray(random.Random(seed).randbytes(length))
    content[2 * WINDOW : 4 * WINDOW] = bytes(2 * WINDOW)
    return bytes(content)


def write(
    repository: Repository,
    point: Manifest,
    *ways: Way,
    only_differences: bool = False,
    skip_damaged: bool = False,
    stop: Stop | None = None,
) -> Written:
    ladder: Ladder[Upload] = Ladder(list(ways), memory_disks.target(ways[0].size), lambda seconds: None)
    terms = upload.Terms(WINDOW, False, "key", "web_Disk1", only_differences, skip_damaged)
    return upload.write(ladder, repository.disk(point, images.DISK), terms, stop or Stop(), Silent())


def test_a_new_disk_is_written_whole(repository: Repository) -> None:
    content = image(1)
    way = Way("grpc", Sink(bytearray(b"x" * len(content))))
    done = write(repository, images.full(repository, content), way)
    assert way.sink.image == content
    assert (done.data, done.zeros, done.gaps) == (4 * WINDOW, 2 * WINDOW, ())
    assert all(kind is Kind.ZERO for start, _, kind in way.sink.written if 2 * WINDOW <= start < 4 * WINDOW)
    (carrier,) = done.carriers
    assert (carrier.transport, carrier.start, carrier.moved, carrier.reason) == ("grpc", 0, 4 * WINDOW, None)
    assert way.compared == 0


def test_a_disk_that_is_right_already_is_not_written(repository: Repository) -> None:
    content = image(2)
    way = Way("grpc", Sink(bytearray(content)))
    done = write(repository, images.full(repository, content), way, only_differences=True)
    assert way.sink.written == []
    assert (done.data, done.zeros) == (0, 0)


def test_a_grain_in_every_window_costs_a_grain_of_each(repository: Repository) -> None:
    """As a database changes them, so a restore in place moves what changed, and not the windows around it."""
    content = image(3)
    changed = bytearray(content)
    for window in (0, 1, 2, 5):
        changed[window * WINDOW + GRAIN + 5] ^= 1
    way = Way("grpc", Sink(changed))
    done = write(repository, images.full(repository, content), way, only_differences=True)
    assert way.sink.image == content
    assert (done.data, done.zeros) == (3 * GRAIN, GRAIN)


def test_when_all_differs_it_is_not_looked_at_twice_for_ever(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "COMPARED_SPAN", WINDOW)
    content = image(4)
    way = Way("grpc", Sink(bytearray(image(5))))
    done = write(repository, images.full(repository, content), way, only_differences=True)
    assert way.sink.image == content
    assert (done.data, done.zeros) == (4 * WINDOW, 0)
    assert way.compared == len(content) + WINDOW


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    old=st.lists(st.sampled_from("0ab"), min_size=1, max_size=12),
    new=st.lists(st.sampled_from("0abc"), min_size=12, max_size=12),
    tail=st.sampled_from([0, 512, 5000]),
    point_changes=st.lists(st.integers(0, 11), max_size=3),
)
def test_whatever_the_disk_holds_becomes_the_point(
    repository: Repository, old: list[str], new: list[str], tail: int, point_changes: list[int]
) -> None:
    """old: what the disk holds, new: what it shall hold, half grains each; the point's index is in pieces."""
    part = GRAIN // 2

    def disk(letters: list[str]) -> bytes:
        parts = {"0": bytes(part), **{letter: random.Random(letter).randbytes(part) for letter in "abcd"}}
        return b"".join(parts[letter] for letter in letters) + b"t" * tail

    before = [*new]
    for place in point_changes:
        before[place] = "d"
    first = images.full(repository, disk(before))
    point = images.incremental(repository, disk(before), disk(new), first)
    wanted = disk(new)
    way = Way("grpc", Sink(bytearray(disk(old)[: len(wanted)].ljust(len(wanted), b"\0"))))
    differs = way.sink.image != wanted
    write(repository, point, way, only_differences=True)
    assert way.sink.image == wanted
    if not differs:
        assert way.sink.written == []


def test_another_way_goes_on_where_one_broke(repository: Repository) -> None:
    content = image(6)
    disk = bytearray(len(content))
    first = Way("grpc", Sink(disk, breaks_after=3 * WINDOW))
    second = Way("imageio", Sink(disk))
    done = write(repository, images.full(repository, content), first, second)
    assert disk == content
    assert done.data + done.zeros == len(content), "nothing is counted twice"
    assert done.carriers[-1].transport == "imageio"
    assert "grpc broke at" in str(done.carriers[-1].reason)
    assert sum(carrier.moved for carrier in done.carriers) == done.data


def test_what_another_way_finds_done_is_not_written_again(repository: Repository) -> None:
    content = image(7)
    disk = bytearray(image(8))
    first = Way("grpc", Sink(disk, breaks_after=3 * WINDOW))
    second = Way("imageio", Sink(disk))
    write(repository, images.full(repository, content), first, second, only_differences=True)
    assert disk == content
    assert sum(length for _, length, _ in second.sink.written) <= 2 * WINDOW


def test_a_damaged_chunk_is_not_written(repository: Repository, store: MemoryStore) -> None:
    content = image(9)
    point = images.full(repository, content)
    entries = list(repository.disk(point, images.DISK).entries(0, len(content)))
    broken = entries[1]
    store.delete(layout.chunk(broken.chunk))
    for only_differences in (False, True):
        way = Way("grpc", Sink(bytearray(b"x" * len(content))))
        with pytest.raises(errors.Damaged, match=broken.chunk.hex()):
            write(repository, point, way, only_differences=only_differences)
        assert way.sink.image[broken.start : broken.end] == b"x" * broken.length

        way = Way("grpc", Sink(bytearray(b"x" * len(content))))
        done = write(repository, point, way, only_differences=only_differences, skip_damaged=True)
        (gap,) = done.gaps
        assert (gap.start, gap.length) == (broken.start, broken.length)
        assert broken.chunk.hex() in gap.reason
        holes = bytearray(content)
        holes[broken.start : broken.end] = bytes(broken.length)
        assert way.sink.image == holes


def test_all_of_what_is_lost_is_named_however_much_of_it_is_written(repository: Repository, store: MemoryStore) -> None:
    content = image(9)
    point = images.full(repository, content)
    before = bytearray(len(content))
    before[WINDOW : WINDOW + GRAIN] = b"x" * GRAIN
    del store.objects[layout.chunk(blake3(content[WINDOW : 2 * WINDOW]).digest())]
    way = Way("grpc", Sink(before))
    done = write(repository, point, way, only_differences=True, skip_damaged=True)
    assert [(gap.start, gap.length) for gap in done.gaps] == [(WINDOW, WINDOW)]
    assert way.sink.image == content[:WINDOW] + bytes(WINDOW) + content[2 * WINDOW :]


def test_a_busy_agent_is_asked_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    class BusyAtFirst(Way):
        refusals = 2

        def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
            if self.refusals:
                self.refusals -= 1
                raise agent_errors.Busy("The agent writes 4 disks already.")
            return super().write(blocks, window, compress)

    content = image(12)
    ways = BusyAtFirst("grpc", Sink(bytearray(len(content)))), Way("imageio", Sink(bytearray(len(content))))
    done = write(repository, images.full(repository, content), *ways)
    assert ways[0].sink.image == content
    assert [carrier.transport for carrier in done.carriers] == ["grpc"]

    monkeypatch.setattr(patience.Patience, "is_at_end", True)
    ways[0].refusals = 1
    done = write(repository, images.full(repository, content), *ways)
    assert [carrier.transport for carrier in done.carriers] == ["imageio"]
    assert "The agent writes 4 disks already" in str(done.carriers[0].reason)


def test_it_can_be_stopped_while_nothing_moves(repository: Repository) -> None:
    """As with a host that hangs: closing its disk is what ends it."""

    class Hanging(Way):
        def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
            stop.stop()
            assert self.closed.wait(10)
            raise errors.TransportError("It was closed.")

    stop = Stop()
    content = image(11)
    ways = Hanging("grpc", Sink(bytearray(len(content)))), Way("imageio", Sink(bytearray(len(content))))
    with pytest.raises(errors.Interrupted):
        write(repository, images.full(repository, content), *ways, stop=stop)
    assert ways[1].sink.written == []


def test_no_thread_is_left(repository: Repository) -> None:
    content = image(10)
    before = threading.active_count()
    with pytest.raises(errors.TransportError, match="No transport"):
        write(repository, images.full(repository, content), Way("grpc", Sink(bytearray(len(content)), 0)))
    assert threading.active_count() == before
