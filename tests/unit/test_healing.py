"""The next backup heals: what a disk still holds of a damaged chunk is stored anew, though it has not changed."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry.repository import Repository, marks
from blockferry.repository import settings as settings_module
from tests.unit import repository_images as images
from tests.unit.memory_disks import GRAIN, Disk
from tests.unit.repository_stores import MemoryStore
from tests.unit.test_failover import GRAINS, WINDOW, back_up, disk_content

WINDOWS = 6


@settings(max_examples=30, deadline=None)
@given(
    damaged=st.sets(st.integers(0, WINDOWS - 1)),
    changed=st.frozensets(st.integers(0, GRAINS - 1), max_size=8),
)
def test_an_incremental_reads_what_is_damaged(damaged: set[int], changed: frozenset[int]) -> None:
    store = MemoryStore()
    repository = Repository(store, settings_module.write(store, WINDOW, "none"))
    old = disk_content(1)
    base, _ = back_up(repository, Disk(bytes(old)), False, None, [])
    for entry in repository.disk(base, images.DISK).entries(0, len(old)):
        if entry.start // WINDOW in damaged:
            name = f"chunks/{entry.chunk.hex()[:2]}/{entry.chunk.hex()}"
            store.put(name, store.objects[name][:-1])
    found = repository.verify([base], lambda step: None).damage
    assert len(marks.all_of(store)) == len(found)

    new = bytearray(old)
    for grain in changed:
        start = grain * GRAIN
        new[start : start + GRAIN] = random.Random(grain).randbytes(len(new[start : start + GRAIN]))
    disk = Disk(bytes(new), frozenset(grain * GRAIN for grain in changed))
    point, copied = back_up(repository, disk, True, base, [])

    assert images.restore(repository, point) == new, "the new point needs nothing that is damaged"
    hurt = {hurt.point_id for each in repository.verify([base, point], lambda step: None).damage for hurt in each.hurts}
    assert hurt <= {base.id}
    still_there = {number for number in damaged if old[number * WINDOW :][:WINDOW] == new[number * WINDOW :][:WINDOW]}
    if still_there >= damaged:
        assert images.restore(repository, base) == old
        assert marks.all_of(store) == set()
    # Nothing else was read than what changed, and what is damaged.
    windows = damaged | {grain * GRAIN // WINDOW for grain in changed}
    assert copied.read <= len(windows) * WINDOW
    if not damaged:
        assert copied.dirty == sum(len(old[grain * GRAIN :][:GRAIN]) for grain in changed)
