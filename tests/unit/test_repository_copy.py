"""Copies of points in a second repository: the same content, whatever the keys, and no more moved than is missing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NamedTuple

import pytest

from blockferry import errors
from blockferry.jobs import replication
from blockferry.jobs.progress import Silent
from blockferry.repository import Copied, Manifest, Repository, Vm, layout, settings
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import FailingStore, MemoryStore

WINDOW = 256 * KiB
SECRETS = {"plain": None, "encrypted": b"1" * 32, "another key": b"2" * 32}


def make(master: bytes | None = None, store: MemoryStore | None = None) -> Repository:
    """Return a repository in memory."""
    place = MemoryStore() if store is None else store
    return Repository(place, settings.write(place, WINDOW, "zstd"), master)


class Site(NamedTuple):
    """Two points of a VM: one window in four changed."""

    source: Repository
    points: list[Manifest]
    images: list[bytes]


def make_site(master: bytes | None) -> Site:
    source = make(master)
    old = os.urandom(4 * WINDOW)
    new = old[:WINDOW] + os.urandom(WINDOW) + old[2 * WINDOW :]
    first = images.full(source, old)
    return Site(source, [first, images.incremental(source, old, new, first)], [old, new])


@pytest.fixture(params=["plain", "encrypted"])
def site(request: pytest.FixtureRequest) -> Site:
    return make_site(SECRETS[request.param])


@pytest.fixture(params=["plain", "encrypted", "another key"])
def target(request: pytest.FixtureRequest) -> Repository:
    return make(SECRETS[request.param])


def copy(site: Site, target: Repository, points: list[Manifest] | None = None) -> list[Copied]:
    return list(replication.run(site.source, target, site.points if points is None else points, Silent()))


def contents(target: Repository, points: list[Manifest]) -> list[bytes]:
    """What the copies of points hold, in every respect."""
    found = []
    for point in points:
        there = target.point(point.vm.id, point.id)
        assert (there.checkpoint_id, there.created) == (point.checkpoint_id, point.created)
        assert target.ovf(there) == "<ovf/>"
        found.append(images.restore(target, there))
    assert target.verify(target.points(), lambda step: None).damage == ()
    return found


def test_copies_hold_what_the_points_hold(site: Site, target: Repository) -> None:
    copied = copy(site, target, site.points[::-1])
    assert [done.point_id for done in copied] == [point.id for point in site.points], "oldest first"
    assert contents(target, site.points) == site.images


def test_only_what_is_missing_moves(site: Site, target: Repository) -> None:
    first, second = copy(site, target)
    assert (first.new, first.moved, first.chunks) == (True, 4 * WINDOW, 4)
    assert (second.moved, second.chunks) == (WINDOW, 4), "the grains of the window that changed"
    again = copy(site, target)
    assert [(done.new, done.moved, done.stored) for done in again] == [(False, 0, 0)] * 2


def test_what_another_vm_has_is_not_stored_twice(site: Site, target: Repository) -> None:
    """Names that differ hide what is the same: then it is read, but found before it is written."""
    copy(site, target)
    half = site.images[0][: 2 * WINDOW]
    blocks = images.read(half, [(0, len(half))], WINDOW)
    other = images.back_up(site.source, blocks, len(half), vm=Vm("99999999-9a1e-4d35-9d3f-0a37be5a01a1", "db"))
    (done,) = copy(site, target, [other])
    alike = site.source._names_key == target._names_key
    assert done.moved == (0 if alike else 2 * WINDOW)
    assert done.stored < 1024


def test_a_backup_goes_on_in_the_copy(site: Site, target: Repository) -> None:
    copy(site, target)
    newest = target.points()[0]
    changed = site.images[1][: 3 * WINDOW] + os.urandom(WINDOW)
    point = images.incremental(target, site.images[1], changed, newest)
    assert images.restore(target, point) == changed


def test_a_copy_that_is_broken_off_is_invisible_and_goes_on_later(site: Site) -> None:
    """Whichever call fails. What is missing in the end is written by the next copy."""
    at = 0
    while True:
        place = MemoryStore()
        made = settings.write(place, WINDOW, "zstd")
        failing = FailingStore(place, at=at, dies=True)
        broken = Repository(failing, made, SECRETS["another key"])
        target = Repository(place, made, SECRETS["another key"])
        with contextlib.suppress(errors.RepositoryError):
            copy(site, broken)
        assert len(target.points()) in (0, 1, 2)
        contents(target, [point for point in site.points if place.holds(layout.manifest(point.vm.id, point.id))])
        copy(site, target)
        assert contents(target, site.points) == site.images
        if not failing.failed:
            break
        at += 1
    assert at > 15


def test_damage_in_the_source_is_not_copied(site: Site, target: Repository) -> None:
    store = site.source._store
    inner = getattr(store, "_inner", store)
    entry = site.source.disk(site.points[1], images.DISK)._index.page(0)[2]
    inner.objects[layout.chunk(entry.chunk)] = b"rotten"
    with pytest.raises(errors.Damaged, match=entry.chunk.hex()):
        copy(site, target)
    assert [point.id for point in target.points()] == [site.points[0].id], "the one before is sound"


@pytest.mark.parametrize("what", ["chunk", "page"])
def test_a_copy_heals_what_is_damaged_in_the_target(site: Site, target: Repository, what: str) -> None:
    """What both points share is not relied on then, but comes from the source anew."""
    copy(site, target, site.points[:1])
    index = target.disk(target.points()[0], images.DISK)._index
    digest = index.page(0)[3].chunk if what == "chunk" else index.root.pages[0].chunk
    target._store.put(layout.chunk(digest), b"rotten")
    assert len(target.verify(target.points(), lambda step: None).damage) == 1
    copy(site, target)
    if what == "page":
        # Only a point of which the page is could bring it back.
        target.delete(target.points()[-1])
        assert contents(target, site.points[1:]) == site.images[1:]
    else:
        assert contents(target, site.points) == site.images


def test_windows_must_be_the_same(site: Site) -> None:
    place = MemoryStore()
    target = Repository(place, settings.write(place, 2 * WINDOW, "zstd"))
    with pytest.raises(errors.RepositoryError, match="window of memory: is 262144 bytes"):
        copy(site, target)


def test_a_repository_is_not_copied_into_itself(site: Site) -> None:
    with pytest.raises(errors.Conflict, match="are one repository"):
        copy(site, site.source)


class Warned(Silent):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.begun: list[tuple[str, int]] = []
        self.ended: list[str] = []
        self.advance: Callable[[str, int, int], None] = lambda key, position, moved: None

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def begin(self, key: str, label: str, total: int) -> None:
        self.begun.append((label, total))

    def end(self, key: str) -> None:
        self.ended.append(key)


@pytest.mark.parametrize(("source", "target", "warns"), [("encrypted", "plain", True), ("plain", "encrypted", False)])
def test_copying_in_the_clear_is_told(source: str, target: str, warns: bool) -> None:
    site, there = make_site(SECRETS[source]), make(SECRETS[target])
    progress = Warned()
    for repository, name in ((site.source, source), (there, target)):
        if SECRETS[name] is not None:
            proof = settings.Encryption("aes-256-gcm", "")
            repository.settings = settings.msgspec.structs.replace(repository.settings, encryption=proof)
    list(replication.run(site.source, there, site.points, progress))
    assert ["readable" in text for text in progress.warnings] == [True] * warns
    assert [label for label, _ in progress.begun] == [f"copying web system {point.id}" for point in site.points]
    assert len(progress.ended) == 2
