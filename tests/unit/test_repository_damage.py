"""Damage: every kind of file, cut, flipped or gone, is named, and never read as something else."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from blockferry import errors
from blockferry.repository import DiskReader, Hurt, Manifest, Repository, Step, Vm, index, layout, marks, settings
from blockferry.repository.chunks import Chunks
from blockferry.repository.index import PAGE, Entry, PageReference, Root
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
OTHER_VM = Vm("99999999-9a1e-4d35-9d3f-0a37be5a01a1", "db")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    # In the middle there is content: a bit of a frame's header may mean nothing, and then nothing is damaged.
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = [cut, emptied, flipped, longer, gone]


class Site:
    """
    A repository with three points of one VM and one of another, which share what they can.

    old, new: points of VM `web`; `new` is an incremental over `old`, of which it shares all chunks but one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = Repository.init(str(path), WINDOW)
        self.image = os.urandom(4 * WINDOW)
        self.newer_image = self.image[:WINDOW] + os.urandom(WINDOW) + self.image[2 * WINDOW :]
        self.old = images.full(self.repository, self.image)
        self.new = images.incremental(self.repository, self.image, self.newer_image, self.old)
        blocks = images.read(self.image[:WINDOW], [(0, WINDOW)], WINDOW)
        self.other = images.back_up(self.repository, blocks, WINDOW, vm=OTHER_VM)

    def chunk(self, point: Manifest, number: int) -> str:
        """Return the name of the chunk that window `number` of a point comes from."""
        return layout.chunk(self.entries(point)[number].chunk)

    def page(self, point: Manifest) -> str:
        return layout.chunk(self.repository.disk(point, images.DISK)._index.root.pages[0].chunk)

    def root(self, point: Manifest) -> str:
        return layout.index(point.vm.id, point.id, images.DISK)

    def entries(self, point: Manifest) -> list[Entry]:
        return self.repository.disk(point, images.DISK)._index.page(0)

    def damaged(self, points: list[Manifest]) -> dict[str, set[tuple[str, str | None]]]:
        """Verify points; return {object: {(point id, disk id)} that it hurts}."""
        found = self.repository.verify(points, lambda step: None).damage
        assert all(damage.name.rpartition("/")[2] in damage.reason for damage in found)
        return {damage.name: {(hurt.point_id, hurt.disk_id) for hurt in damage.hurts} for damage in found}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "r")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("what", ["chunk", "page", "root"])
def test_what_is_damaged_is_named_and_not_restored(site: Site, what: str, damage: Callable[[Path], None]) -> None:
    name = {"chunk": site.chunk(site.old, 0), "page": site.page(site.old), "root": site.root(site.old)}[what]
    damage(site.path / name)
    restored = bytearray()
    with pytest.raises(errors.Damaged, match=name.rpartition("/")[2]):
        for piece in site.repository.disk(site.old, images.DISK).read():
            restored += bytes(piece.length) if piece.data is None else piece.data
    assert site.image.startswith(bytes(restored))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_ovf_is_not_returned(site: Site, damage: Callable[[Path], None]) -> None:
    name = layout.ovf(images.VM.id, site.old.id)
    damage(site.path / name)
    with pytest.raises(errors.Damaged, match=r"vm\.ovf"):
        site.repository.ovf(site.old)
    assert site.damaged([site.old]) == {name: {(site.old.id, None)}}


@pytest.mark.parametrize("damage", [cut, emptied], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_no_point(site: Site, damage: Callable[[Path], None]) -> None:
    damage(site.path / layout.manifest(images.VM.id, site.old.id))
    with pytest.raises(errors.Damaged, match=site.old.id):
        site.repository.point(images.VM.id, site.old.id)


def test_verify_counts_the_points_that_it_cannot_know(site: Site) -> None:
    """Also where all else is sound, and when points of another VM were asked for."""
    name = layout.manifest(OTHER_VM.id, site.other.id)
    cut(site.path / name)
    found = site.repository.verify([site.old], lambda step: None)
    assert found.damage == ()
    assert [(lost.vm_id, lost.point_id, lost.name) for lost in found.unreadable] == [(OTHER_VM.id, site.other.id, name)]


def test_sound_points_are_said_to_be_sound(site: Site) -> None:
    found = site.repository.verify(site.repository.points(), lambda step: None)
    assert found.damage == found.unreadable == ()
    assert (found.chunks, found.checked) == (9, 6 * WINDOW), "web's four windows, four new grains, db's window"


def test_verify_tells_how_far_it_is(site: Site) -> None:
    steps: list[Step] = []
    site.repository.verify([site.old], steps.append)
    assert steps[-1].position == steps[-1].size == len(site.image)
    assert [step.checked for step in steps] == [4 * WINDOW] * 2


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_shared_chunk_hurts_every_point_that_needs_it(site: Site, damage: Callable[[Path], None]) -> None:
    name = site.chunk(site.old, 0)
    damage(site.path / name)
    everyone = {(point.id, images.DISK) for point in (site.old, site.new, site.other)}
    assert site.damaged([site.old]) == {name: everyone}
    assert site.damaged(site.repository.points()) == {name: everyone}


def test_a_chunk_of_one_point_hurts_only_that(site: Site) -> None:
    gone(site.path / site.chunk(site.new, 1))
    gone(site.path / site.chunk(site.old, 1))
    assert site.damaged([site.new]) == {site.chunk(site.new, 1): {(site.new.id, images.DISK)}}
    assert site.damaged([site.old, site.new]) == {
        site.chunk(site.old, 1): {(site.old.id, images.DISK)},
        site.chunk(site.new, 1): {(site.new.id, images.DISK)},
    }
    assert site.damaged([site.other]) == {}


def test_pages_and_roots_are_verified_too(site: Site) -> None:
    page = site.page(site.new)
    root = site.root(site.old)
    flipped(site.path / page)
    flipped(site.path / root)
    assert site.damaged([site.new]) == {
        page: {(site.new.id, images.DISK)},
        root: {(site.old.id, images.DISK)},
    }, "the other point's root was met while the points that are hurt were looked for"


def test_hurts_name_the_vm(site: Site) -> None:
    gone(site.path / site.chunk(site.other, 0))
    (damage,) = site.repository.verify([site.other], lambda step: None).damage
    assert Hurt(OTHER_VM.id, "db", site.other.id, images.DISK) in damage.hurts


def test_a_full_backup_without_base_mends_the_chunks_that_it_reads(site: Site) -> None:
    for number in range(4):
        random.choice([cut, flipped, gone])(site.path / site.chunk(site.old, number))
    images.full(site.repository, site.image)
    assert site.damaged(site.repository.points()) == {}
    assert images.restore(site.repository, site.new) == site.newer_image


def test_an_incremental_over_a_damaged_index_is_refused(site: Site) -> None:
    flipped(site.path / site.root(site.new))
    with pytest.raises(errors.Damaged, match=site.new.id):
        images.incremental(site.repository, site.newer_image, site.image, site.new)
    flipped(site.path / site.page(site.old))
    with pytest.raises(errors.Damaged):
        images.incremental(site.repository, site.image, site.newer_image, site.old)


def test_what_an_entry_wants_must_be_in_its_chunk() -> None:
    """An index that names a sound chunk, but more of it than there is."""
    chunks = Chunks(MemoryStore(), "zstd")
    short = chunks.put(os.urandom(4 * KiB))
    page = chunks.put(index.encode_page(0, [Entry(0, 8 * KiB, short.digest)]))
    reader = DiskReader(Root(8 * KiB, WINDOW, {0: PageReference(0, page.digest)}), chunks)
    with pytest.raises(errors.Damaged, match="has only 4096 bytes"):
        list(reader.read())


@pytest.mark.parametrize("lost", [0, 1], ids=["sound", "with damage"])
def test_memory_is_what_the_roots_take(lost: int) -> None:
    """Many points of a disk, each with its own version of every page: 40 bytes for each of them, and little more."""
    points, pages = 30, 200
    store = MemoryStore()
    repository = Repository(store, settings.write(store, WINDOW, "none"))
    base = images.back_up(repository, [], 0)
    for _ in range(points):
        content = os.urandom(512)
        blocks = [images.data(page * PAGE + page, content) for page in range(pages)]
        point = images.back_up(repository, blocks, pages * PAGE, "incremental", base)
    if lost:
        del store.objects[layout.chunk(blake3(content).digest())]
    known = repository.points()

    tracemalloc.start()
    try:
        found = repository.verify(known, lambda step: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [damage.hurts[0].point_id for damage in found.damage] == [point.id] * lost
    assert peak < 100 * points * pages


def test_the_end_of_a_page_is_not_the_end_of_verification(site: Site) -> None:
    """Pages behind the first are read as well."""
    blocks = [images.zero(0, PAGE), images.data(PAGE, os.urandom(WINDOW))]
    point = images.back_up(site.repository, blocks, PAGE + WINDOW)
    (entry,) = site.repository.disk(point, images.DISK)._index.page(1)
    flipped(site.path / layout.chunk(entry.chunk))
    assert set(site.damaged([point])) == {layout.chunk(entry.chunk)}


# Without reading all of it.


@pytest.mark.parametrize("damage", [emptied, gone], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("what", ["chunk", "page", "root"])
def test_a_quick_look_finds_what_is_not_there(site: Site, what: str, damage: Callable[[Path], None]) -> None:
    name = {"chunk": site.chunk(site.new, 1), "page": site.page(site.new), "root": site.root(site.new)}[what]
    damage(site.path / name)
    found = site.repository.verify(site.repository.points(), lambda step: None, 0)
    assert [each.name for each in found.damage] == [name]
    assert {hurt.point_id for hurt in found.damage[0].hurts} == {site.new.id}


def test_a_quick_look_reads_no_content(site: Site) -> None:
    flipped(site.path / site.chunk(site.new, 1))
    found = site.repository.verify(site.repository.points(), lambda step: None, 0)
    assert (found.chunks, found.checked, found.present, found.covered, found.damage) == (0, 0, 8, None, ())


def test_shares_come_to_all_of_it(tmp_path: Path) -> None:
    """One chunk after another is read, the newest first; then they are read again."""
    repository = Repository.init(str(tmp_path), WINDOW)
    point = images.full(repository, os.urandom(5 * WINDOW))
    entries = list(repository.disk(point, images.DISK).entries(0, 5 * WINDOW))
    for age, entry in enumerate(entries):
        os.utime(tmp_path / layout.chunk(entry.chunk), (1_000_000 - age, 1_000_000 - age))
    steps: list[Step] = []
    covered = []
    for number in range(5):
        flipped(tmp_path / layout.chunk(entries[number].chunk))
        os.utime(tmp_path / layout.chunk(entries[number].chunk), (1_000_000 - number, 1_000_000 - number))
        found = repository.verify([point], steps.append, 0.19)
        assert [each.name for each in found.damage][-1:] == [layout.chunk(entries[number].chunk)]
        flipped(tmp_path / layout.chunk(entries[number].chunk))
        os.utime(tmp_path / layout.chunk(entries[number].chunk), (1_000_000 - number, 1_000_000 - number))
        covered.append(found.covered)
    assert covered == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.01)
    found = repository.verify([point], steps.append, 0.19)
    assert (found.damage, found.checked, found.covered) == ((), 2 * WINDOW, pytest.approx(0.2, abs=0.01))
    assert steps[-1].disk_id is None
    assert marks.all_of(repository._store) == set()


# What is known to be damaged.


def test_a_damaged_chunk_is_marked_until_it_is_sound(site: Site) -> None:
    name = site.chunk(site.old, 0)
    content = (site.path / name).read_bytes()
    flipped(site.path / name)
    site.damaged(site.repository.points())
    digest = layout.digest_of(name)
    assert marks.all_of(site.repository._store) == {digest}
    assert [each.name for each in site.repository.verify([site.old], lambda step: None, 0).damage] == [name]
    (site.path / name).write_bytes(content)
    assert site.repository.verify([site.old], lambda step: None, 0).damage == ()
    assert marks.all_of(site.repository._store) == set()


@pytest.mark.parametrize(
    ("error", "marked"),
    [(errors.RepositoryError("The service did not answer in time."), 0), (errors.StorageFailing("I/O error."), 1)],
    ids=["out of reach", "bad place"],
)
@pytest.mark.parametrize("share", [1.0, 0.999], ids=["all", "share"])
def test_what_is_only_out_of_reach_is_told_and_not_marked(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: errors.Error, marked: int, share: float
) -> None:
    name = site.chunk(site.old, 0)
    get = site.repository._store.get

    def fail(asked: str, limit: int) -> bytes:
        if asked == name:
            raise error
        return get(asked, limit)

    monkeypatch.setattr(site.repository._store, "get", fail)
    found = site.repository.verify(site.repository.points(), lambda step: None, share)
    assert [(damage.name, damage.reason) for damage in found.damage] == [(name, error.message)]
    assert len(marks.all_of(site.repository._store)) == marked


def test_a_point_that_was_deleted_meanwhile_is_not_missed(site: Site) -> None:
    points = site.repository.points()
    site.repository.delete(points[0])
    site.repository._store.delete(layout.index(points[0].vm.id, points[0].id, points[0].disks[0].id))
    assert site.repository.verify(points, lambda step: None).damage == ()


def test_what_is_known_to_be_damaged_is_met_before_it_is_needed(site: Site) -> None:
    path = site.path / site.chunk(site.old, 0)
    content = path.read_bytes()
    flipped(path)
    site.repository.check_disk(site.old, images.DISK)
    site.damaged(site.repository.points())
    with pytest.raises(errors.Damaged, match=path.name):
        site.repository.check_disk(site.old, images.DISK)
    site.repository.check_disk(site.old, images.DISK, chunks=False)
    path.write_bytes(content)
    site.repository.check_disk(site.old, images.DISK)
    (site.path / site.root(site.old)).unlink()
    with pytest.raises(errors.Damaged, match="index"):
        site.repository.check_disk(site.old, images.DISK, chunks=False)


def test_a_marked_chunk_is_no_reason_to_leave_a_block_out(site: Site) -> None:
    flipped(site.path / site.chunk(site.old, 0))
    site.damaged(site.repository.points())
    known = images.known(site.repository, site.old)
    assert sorted(start for start, _ in known) == [WINDOW, 2 * WINDOW, 3 * WINDOW]
    images.full(site.repository, site.image, site.old)
    assert marks.all_of(site.repository._store) == set()
    assert site.damaged(site.repository.points()) == {}


def test_what_is_damaged_is_healed_by_a_block_that_is_cut_otherwise(site: Site) -> None:
    """A piece of a window that an incremental stored; then the window is read whole, and has it still."""
    piece = os.urandom(64 * KiB)
    changed = site.newer_image[: 64 * KiB] + piece + site.newer_image[128 * KiB :]
    newest = images.incremental(site.repository, site.newer_image, changed, site.new, 64 * KiB)
    name = layout.chunk(blake3(piece).digest())
    flipped(site.path / name)
    assert site.damaged(site.repository.points()) == {name: {(newest.id, images.DISK)}}
    healing = images.back_up(site.repository, [images.data(0, changed[:WINDOW])], 4 * WINDOW, "incremental", newest)
    assert marks.all_of(site.repository._store) == set()
    assert site.damaged(site.repository.points()) == {}
    assert images.restore(site.repository, newest) == images.restore(site.repository, healing) == changed


def test_windows_whose_chunks_are_damaged_are_named(site: Site) -> None:
    for number in (0, 2):
        flipped(site.path / site.chunk(site.old, number))
    site.damaged(site.repository.points())
    with site.repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, 4 * WINDOW, "incremental", site.new)
        assert writer.damaged_windows(0, 4 * WINDOW) == [0, 2 * WINDOW]
        assert writer.damaged_windows(WINDOW, WINDOW) == []
