"""A disk whose transports break on the way: what arrives is the disk, and nothing of it twice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry import errors
from blockferry.jobs import copying
from blockferry.jobs.copying import Copied, Stop
from blockferry.jobs.progress import Silent
from blockferry.repository import DiskWriter, Manifest, Repository
from blockferry.repository import settings as settings_module
from blockferry.transport import disk as disk_module
from blockferry.transport import ladder
from blockferry.transport.disk import Reading, Target
from blockferry.transport.ladder import Ladder
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, ReadRequest, Summary
from blockferry_agent.units import KiB
from tests.unit import memory_disks
from tests.unit import repository_images as images
from tests.unit.memory_disks import GRAIN, Disk
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB

BREAKS = (
    errors.TransportError("The stream ended early."),
    errors.AgentUnreachable("The agent does not answer."),
    agent_errors.Error("The agent failed unexpectedly."),
    agent_errors.SourceGone("The NBD server closed the connection."),
    agent_errors.ProtocolError("It sent nonsense."),
)


class Frail(NamedTuple):
    """
    A transport (`transport.disk.Transport`) that breaks.

    lives: for each time that it is opened, the blocks after which it breaks; afterwards it cannot be opened any more.
    """

    name: str
    disk: Disk
    lives: list[int]
    error: errors.Error
    is_last_resort: bool = False

    def open(self, target: Target) -> FrailDisk:
        if not self.lives:
            raise self.error
        return FrailDisk(self.disk, self.lives.pop(0), self.error)


class FrailDisk:
    remark = ""

    def __init__(self, disk: Disk, blocks: int, error: errors.Error) -> None:
        self.size = disk.size
        self._disk = disk
        self._left = blocks
        self._error = error

    def read(self, request: ReadRequest) -> Reading:
        return FrailReading(self, self._disk.read(request))

    def close(self) -> None: ...

    def use(self) -> None:
        """One more block is to pass."""
        if not self._left:
            raise self._error
        self._left -= 1


class FrailReading:
    def __init__(self, disk: FrailDisk, reading: Reading) -> None:
        self._disk = disk
        self._reading = reading

    def __iter__(self) -> Iterator[Block]:
        for block in self._reading:
            self._disk.use()
            yield block
        self._disk.use()  # the summary may be what is lost

    @property
    def summary(self) -> Summary:
        return self._reading.summary

    @property
    def wire_bytes(self) -> int:
        return self._reading.summary.moved

    def close(self) -> None:
        self._reading.close()


class Warned(Silent):
    """What a progress was told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def no_comeback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "COMEBACK", 0.0)


def new_repository() -> Repository:
    store = MemoryStore()
    return Repository(store, settings_module.write(store, WINDOW, "none"))


def disk_content(seed: int) -> bytearray:
    """Five windows and a bit, with zeros in whole windows and in parts of them."""
    content = bytearray(random.Random(seed).randbytes(5 * WINDOW + GRAIN + 512))
    content[2 * WINDOW : 3 * WINDOW] = bytes(WINDOW)
    content[3 * WINDOW + GRAIN : 3 * WINDOW + 2 * GRAIN] = bytes(GRAIN)
    return content


def copy(writer: DiskWriter, disk: Disk, incremental: bool, ways: list[Frail], warned: Warned | None = None) -> Copied:
    stop = Stop()
    climb: Ladder[disk_module.Disk] = Ladder(
        [*ways, memory_disks.Way(disk, "last")], memory_disks.target(disk.size), stop.pause
    )
    return copying.copy(
        climb, writer, copying.Terms(disk.size, incremental, WINDOW), "system", stop, warned or Warned()
    )


def back_up(
    repository: Repository,
    disk: Disk,
    incremental: bool,
    base: Manifest | None,
    ways: list[Frail],
    warned: Warned | None = None,
) -> tuple[Manifest, Copied]:
    with repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, disk.size, "incremental" if incremental else "full", base)
        copied = copy(writer, disk, incremental, ways, warned)
        images.finish(writer)
        point = draft.commit(mode="live", backup_id="b", checkpoint_id="c", parent=base, seconds=1.0)
    return point, copied


@st.composite
def frail_ways(draw: st.DrawFn) -> list[tuple[str, list[int], errors.Error]]:
    names = draw(st.lists(st.sampled_from(["netcat", "grpc", "ssh"]), unique=True, max_size=3))
    return [(name, draw(st.lists(st.integers(0, 9), max_size=6)), draw(st.sampled_from(BREAKS))) for name in names]


GRAINS = (5 * WINDOW + GRAIN + 512 + GRAIN - 1) // GRAIN


@settings(max_examples=30, deadline=None)
@given(
    first=frail_ways(),
    second=frail_ways(),
    third=frail_ways(),
    changed=st.frozensets(st.integers(0, GRAINS - 1), max_size=8),
    span=st.sampled_from([WINDOW, 2 * WINDOW, 64 * WINDOW]),
)
def test_whatever_breaks_the_point_is_the_disk(
    first: list[tuple[str, list[int], errors.Error]],
    second: list[tuple[str, list[int], errors.Error]],
    third: list[tuple[str, list[int], errors.Error]],
    changed: frozenset[int],
    span: int,
) -> None:
    """A first backup, an incremental and one that lost its checkpoint: each like one through a transport that lasts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "KNOWN_SPAN", span)
        patch.setattr(copying, "MAX_WHOLE_WINDOWS", span // WINDOW)
        frail, sound = new_repository(), new_repository()
        old = disk_content(1)
        new = bytearray(old)
        for grain in changed:
            start = grain * GRAIN
            new[start : start + GRAIN] = random.Random(grain).randbytes(len(new[start : start + GRAIN]))
        dirty = frozenset(grain * GRAIN for grain in changed)
        base: tuple[Manifest | None, Manifest | None] = (None, None)
        steps = ((old, frozenset[int](), False, first), (new, dirty, True, second), (old, dirty, False, third))
        for image, grains, incremental, ways in steps:
            disk = Disk(bytes(image), grains)
            frail_ways = [Frail(name, disk, list(lives), error) for name, lives, error in ways]
            broken, copied = back_up(frail, disk, incremental, base[0], frail_ways)
            whole, expected = back_up(sound, disk, incremental, base[1], [])
            base = broken, whole
            assert images.restore(frail, broken) == image
            assert broken.disks[0].index == whole.disks[0].index, "as without any break"
            assert copied.moved == expected.moved, "nothing was moved twice"
            assert_in_order(copied, disk.size)


def assert_in_order(copied: Copied, size: int) -> None:
    starts = [carrier.start for carrier in copied.carriers]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] < size
    assert sum(carrier.moved for carrier in copied.carriers) == copied.moved
    assert all(carrier.reason for carrier in copied.carriers[1:])
