"""The repository's own tests again, in a bucket; they are the unit tests' functions."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from blockferry import errors
from blockferry.repository import KeyFile, Keyring, Repository, Times, collection, layout
from blockferry.repository import store as stores
from blockferry_agent.units import KiB
from tests.component.object_stores import Service
from tests.unit import repository_images as images
from tests.unit.test_repository_points import (
    test_a_disk_that_loses_whole_pages_of_its_index,
    test_a_point_has_its_disks_in_one_order_whichever_began_first,
    test_a_point_without_ovf_says_why,
    test_a_range_of_a_disk_is_read_alone,
    test_a_reading_may_be_given_up,
    test_a_window_in_too_many_pieces_is_named_until_it_is_read_whole,
    test_an_incremental_needs_a_base,
    test_an_incremental_without_changes_stores_next_to_nothing,
    test_another_transport_carries_on_behind_the_last_good_block,
    test_ids_that_are_none_never_become_names,
    test_same_needs_the_whole_block_in_the_base,
    test_the_manifest_holds_what_was_measured,
    test_what_a_shrunk_disk_lost_does_not_come_back_when_it_grows,
    test_zeros_cost_nothing,
)

__all__ = [
    "test_a_disk_that_loses_whole_pages_of_its_index",
    "test_a_point_has_its_disks_in_one_order_whichever_began_first",
    "test_a_point_without_ovf_says_why",
    "test_a_range_of_a_disk_is_read_alone",
    "test_a_reading_may_be_given_up",
    "test_a_window_in_too_many_pieces_is_named_until_it_is_read_whole",
    "test_an_incremental_needs_a_base",
    "test_an_incremental_without_changes_stores_next_to_nothing",
    "test_another_transport_carries_on_behind_the_last_good_block",
    "test_ids_that_are_none_never_become_names",
    "test_same_needs_the_whole_block_in_the_base",
    "test_the_manifest_holds_what_was_measured",
    "test_what_a_shrunk_disk_lost_does_not_come_back_when_it_grows",
    "test_zeros_cost_nothing",
]

WINDOW = 256 * KiB


@pytest.fixture
def new_url(s3: Service) -> str:
    return f"s3://{s3.new_bucket()}/r"


@pytest.fixture
def repository(new_url: str) -> Repository:
    """Encrypted. The same tests with plain ones are those in Swift and Azurite."""
    return Repository.init(new_url, WINDOW, secret=KeyFile(b"k" * 32))


def test_a_repository_in_a_bucket_is_made_once(new_url: str) -> None:
    made = Repository.init(new_url, WINDOW)
    with pytest.raises(errors.Conflict, match="already"):
        Repository.init(new_url)
    with pytest.raises(errors.Conflict, match="already"):
        Repository.init(new_url, secret=KeyFile(bytes(32)))
    assert Repository.open(new_url).settings == made.settings


def test_of_several_that_make_a_repository_one_succeeds(new_url: str) -> None:
    def make(number: int) -> Repository | None:
        try:
            return Repository.init(new_url, WINDOW, secret=KeyFile(bytes([number]) * 32))
        except errors.Conflict:
            return None

    with ThreadPoolExecutor(4) as threads:
        made = [repository for repository in threads.map(make, range(4)) if repository is not None]
    assert len(made) == 1
    keyring = [Keyring.open(new_url, KeyFile(bytes([number]) * 32)) for number in range(4) if _opens(new_url, number)]
    assert [len(keys.list()) for keys in keyring] == [1], "the others' keys are gone"


def _opens(url: str, number: int) -> bool:
    try:
        Repository.open(url, KeyFile(bytes([number]) * 32))
    except errors.WrongKey:
        return False
    return True


def test_a_scratch_repository_leaves_nothing(repository: Repository) -> None:
    image = os.urandom(2 * WINDOW)
    images.full(repository, image)
    before = sorted(found.name for found in repository._store.listing("chunks"))
    with repository.scratch("full") as scratch:
        point = images.full(scratch, image)
        assert images.restore(scratch, point) == image
        assert scratch.url.startswith(repository.url + ".scratch-")
        left = stores.connect(scratch.url)
        kept = [left.get(found.name, WINDOW * 2) for found in left.listing("chunks")]
        assert len(kept) == 3
        assert all(content[:4] == b"BFen" for content in kept)
    assert list(left.listing("chunks")) == list(left.listing("vms")) == []
    assert not left.holds("repository.json")
    assert sorted(found.name for found in repository._store.listing("chunks")) == before


def test_points_in_a_bucket_come_back_and_are_verified(repository: Repository) -> None:
    old = os.urandom(5 * WINDOW)
    new = old[:WINDOW] + os.urandom(WINDOW) + old[2 * WINDOW :]
    first = images.full(repository, old)
    second = images.incremental(repository, old, new, first)
    points = repository.points()
    assert points == [second, first]
    assert [images.restore(repository, point) for point in points] == [new, old]
    assert repository.verify(points, lambda step: None).damage == ()


@pytest.fixture
def garbage() -> int:
    """How many chunks nobody needs: more than a request can list or delete."""
    return 1100


def test_a_bucket_is_collected(repository: Repository, garbage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a bucket are whole seconds, and cannot be moved: so what is deleted is old at once here."""
    monkeypatch.setattr(collection, "_MARGIN", -60)
    image = os.urandom(4 * WINDOW)
    gone = images.full(repository, image[: 2 * WINDOW])
    kept = images.full(repository, image[WINDOW:])
    for number in range(garbage):
        repository._store.put(layout.chunk(number.to_bytes(32, "little")), b"garbage")
    repository.delete(gone)
    times = Times(timedelta(minutes=-1), timedelta(minutes=-1))
    collected = repository.collect(times, lambda said: None)
    # And a chunk, a page, the index and the OVF.
    assert (collected.points, collected.freed.objects, collected.hindrance) == (1, garbage + 4, None)
    assert images.restore(repository, kept) == image[WINDOW:]
    assert repository.verify([kept], lambda step: None).damage == ()
    assert repository.verify([kept], lambda step: None, 0.5).damage == ()
