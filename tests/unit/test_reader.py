"""The block reader, over disks in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest

from blockferry_agent import digest, errors, reader
from blockferry_agent.blocks import Block, Kind, ReadRequest, Summary
from tests.unit.disks import Disk, content

WINDOW = 4
WORKERS = 3


def request(disk: str, incremental: bool = True, **more: object) -> ReadRequest:
    return ReadRequest(0, len(disk), incremental, WINDOW, **more)  # type: ignore[arg-type]


def read(disk: Disk, **more: object) -> tuple[list[Block], Summary]:
    reading = reader.read(disk.open, request(disk.disk, **more), WORKERS)
    found = [owned(block) for block in reading]
    return found, reading.summary._replace(stalled=0.0)


def owned(block: Block) -> Block:
    """A block whose data is a copy of what it was lent."""
    return block._replace(data=bytes(block.data))


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.001)


def is_reading() -> bool:
    return any(thread.name.startswith("reader-") for thread in threading.enumerate())


def test_blocks_are_data_with_digest_and_zeros() -> None:
    found, summary = read(Disk("aABa0000cDEF"))
    assert found == [
        Block(1, 2, Kind.DATA, digest.xxh3(b"ab"), b"ab"),
        Block(4, 4, Kind.ZERO),
        Block(9, 3, Kind.DATA, digest.xxh3(b"def"), b"def"),
    ]
    assert summary == Summary(blocks=3, dirty=9, read=5, moved=5)


def test_a_full_read_has_everything() -> None:
    disk = Disk("aAbB....0000cccccc")
    found, summary = read(disk, incremental=False)
    image = bytearray(len(disk.disk))
    for block in found:
        image[block.start : block.end] = block.data or bytes(block.length)
    assert bytes(image) == content(disk.disk)
    assert summary.dirty == len(disk.disk)


def test_data_that_is_zero_is_found_out_by_its_digest() -> None:
    disk = Disk("\0\0\0\0BBBB")
    found, summary = read(disk, incremental=False)
    assert [block.kind for block in found] == [Kind.ZERO, Kind.DATA]
    assert summary == Summary(blocks=2, dirty=8, read=8, moved=4)


def test_a_block_that_the_caller_has_is_same() -> None:
    known = {
        (0, 4): digest.xxh3(b"abcd"),
        (4, 4): digest.xxh3(b"other"),
        (8, 3): digest.xxh3(b"ijkl"),  # another length
    }
    found, summary = read(Disk("ABCDEFGHIJKL"), known=known)
    assert [(block.start, block.kind) for block in found] == [(0, Kind.SAME), (4, Kind.DATA), (8, Kind.DATA)]
    assert found[0] == Block(0, 4, Kind.SAME)
    assert summary == Summary(blocks=3, dirty=12, read=12, moved=8)


def test_whole_windows_are_read_whole() -> None:
    found, summary = read(Disk("aAaabbbbc00c"), whole_windows=frozenset({0, 4, 8}))
    assert [(block.start, block.data) for block in found] == [(0, b"aaaa"), (8, b"c\0\0c")]
    assert summary == Summary(blocks=2, dirty=3, read=8, moved=8)


def test_nothing_to_read() -> None:
    disk = Disk("")
    assert read(disk, incremental=False) == ([], Summary(0, 0, 0, 0))
    assert disk.closed == disk.opened == 1


def test_workers_connect_only_when_there_is_data() -> None:
    disk = Disk("0000A000")
    read(disk)
    assert disk.closed == disk.opened == 2  # for the extents, and for the one block


def test_blocks_come_in_disk_order_however_long_each_takes() -> None:
    chance = random.Random(1)
    disk = Disk("ABCD" * 200, before_read=lambda start: time.sleep(chance.random() / 1000))
    found, _ = read(disk)
    assert [block.start for block in found] == list(range(0, 800, WINDOW))
    assert disk.closed == disk.opened == 1 + WORKERS


def test_a_slow_receiver_holds_the_workers_back() -> None:
    ahead = []
    received = 0

    def note(start: int) -> None:
        ahead.append(start // WINDOW + 1 - received)

    disk = Disk("ABCD" * 200, before_read=note)
    for number, _ in enumerate(reader.read(disk.open, request(disk.disk), WORKERS)):
        wait_until(lambda number=number: len(disk.reads) >= min(200, number + 1 + WORKERS))  # type: ignore[misc]
        received += 1
    assert max(ahead) <= WORKERS + 3  # and the one that the receiver has in hand
    assert received == 200


def test_the_first_error_is_raised_and_stops_everyone() -> None:
    def fail(start: int) -> None:
        if start == 40:
            raise errors.ReadFailed("Bad sector.")

    disk = Disk("ABCD" * 10000, before_read=fail)
    with pytest.raises(errors.ReadFailed, match="Bad sector"):
        read(disk)
    assert len(disk.reads) < 100
    assert disk.closed == disk.opened
    assert not is_reading()


def test_an_error_of_the_extents_is_raised() -> None:
    disk = Disk("aaaa")
    with pytest.raises(errors.BitmapMissing):
        read(disk)
    assert disk.closed == disk.opened
    assert not is_reading()


def test_an_error_while_connecting_is_raised() -> None:
    def refuse() -> None:
        raise errors.SourceGone("Gone.")

    with pytest.raises(errors.SourceGone):
        list(reader.read(refuse, request("ABCD"), WORKERS))  # type: ignore[arg-type]
    assert not is_reading()


def test_a_host_without_threads_is_the_error_that_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if is_reading():
            raise RuntimeError("can't start new thread")
        start(thread)

    disk = Disk("ABCD" * 100)
    monkeypatch.setattr(threading.Thread, "start", start_one)
    reading = iter(reader.read(disk.open, request(disk.disk), WORKERS))
    with pytest.raises(RuntimeError, match="new thread"):
        next(reading)
    assert not is_reading()
    assert disk.closed == disk.opened


def test_dropping_the_iterator_stops_the_workers() -> None:
    disk = Disk("ABCD" * 10000)
    blocks = iter(reader.read(disk.open, request(disk.disk), WORKERS))
    next(blocks)
    del blocks
    assert not is_reading()
    assert disk.closed == disk.opened
    assert len(disk.reads) < 100


def test_closing_from_another_thread_ends_the_iteration_with_an_error() -> None:
    reached = threading.Event()
    release = threading.Event()

    def hang(start: int) -> None:
        if start == 8:
            reached.set()
            release.wait(10)

    disk = Disk("ABCD" * 100, before_read=hang)
    reading = reader.read(disk.open, request(disk.disk), WORKERS)

    def stop() -> None:
        reached.wait(10)
        reading.stop()
        release.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(errors.Error, match="stopped before its end"):
        list(reading)
    stopper.join()
    assert disk.closed == disk.opened


def test_a_reading_that_was_closed_before_it_began_does_not_look_empty() -> None:
    disk = Disk("ABCD")
    with reader.read(disk.open, request(disk.disk), WORKERS) as reading:
        pass
    with pytest.raises(errors.Error, match="stopped"):
        list(reading)
    assert disk.opened == 0


@pytest.mark.parametrize("length", [0, 1, 512, 65536, 65537, 1024 * 1024 + 512])
def test_the_digest_of_zeros_is_that_of_zeros(length: int) -> None:
    assert digest.zeros(length) == digest.xxh3(bytes(length))


def test_the_digest_is_canonical() -> None:
    # From xxHash's own sanity test of the empty input.
    assert digest.xxh3(b"").hex() == "99aa06d3014798d86001c324468d497f"
