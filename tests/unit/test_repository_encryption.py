"""Encryption: what lies in the storage tells nothing, and nothing in it can be changed or moved unseen."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.repository import Manifest, MasterKey, Repository, Vm, keys, layout
from blockferry.repository.encryption import OVERHEAD, SealedStore, Sealer
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
KEY = keys.KeyFile(b"k" * 32)
TEXT = b"the quick brown fox " * 40_000


class Site:
    """An encrypted repository with a full backup and an incremental one, and another VM with the same content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = Repository.init(str(path), WINDOW, secret=KEY)
        self.image = TEXT[: 3 * WINDOW]
        self.changed = self.image[:WINDOW] + os.urandom(WINDOW) + self.image[2 * WINDOW :]
        self.old = images.full(self.repository, self.image)
        self.new = images.incremental(self.repository, self.image, self.changed, self.old)
        self.other = images.back_up(
            self.repository,
            images.read(self.image, [(0, len(self.image))], WINDOW),
            len(self.image),
            vm=Vm("99999999-9a1e-4d35-9d3f-0a37be5a01a1", "db"),
        )

    def sealed(self) -> Iterator[Path]:
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and path.name != "repository.json" and path.parent.name not in ("keys", "locks"):
                yield path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "r")


def read_all(repository: Repository, points: list[Manifest]) -> list[bytes]:
    found = []
    for point in points:
        again = repository.point(point.vm.id, point.id)
        assert again == point
        assert repository.ovf(again) == "<ovf/>"
        found.append(images.restore(repository, again))
    return found


def test_every_point_comes_back(site: Site) -> None:
    points = [site.old, site.new, site.other]
    assert read_all(site.repository, points) == [site.image, site.changed, site.image]
    assert site.repository.verify(points, lambda step: None).damage == ()


def test_nothing_in_the_storage_tells_what_it_is(site: Site) -> None:
    for path in site.sealed():
        content = path.read_bytes()
        assert content.startswith(b"BFen")
        # None so short that it could be there by chance.
        for word in (b"quick brown", b"<ovf/>", b'"format"', b'"index"', images.VM.id.encode(), images.DISK.encode()):
            assert word not in content, path
    names = {path.name for path in site.sealed()}
    assert all(re.fullmatch(rf"[0-9a-f]{{64}}|{layout.UUID}\.index|vm\.ovf|manifest\.json", name) for name in names)


def test_names_of_chunks_differ_from_repository_to_repository(site: Site, tmp_path: Path) -> None:
    """Whoever knows a file cannot tell from a name whether it is stored."""
    names = []
    for name, secret in (("plain", None), ("other", keys.KeyFile(b"o" * 32))):
        repository = Repository.init(str(tmp_path / name), WINDOW, secret=secret)
        images.full(repository, site.image)
        names.append({path.name for path in (tmp_path / name / "chunks").rglob("*") if path.is_file()})
    names.append({path.name for path in (site.path / "chunks").rglob("*") if path.is_file()})
    assert not names[0] & names[1] and not names[1] & names[2] and not names[0] & names[2]


def test_the_same_content_is_stored_once(site: Site) -> None:
    """Two whole windows, which differ by where they cut the text, one that changed, and the pages."""
    assert site.other.disks[0].bytes.stored < site.old.disks[0].bytes.stored


def test_any_changed_byte_is_found(site: Site) -> None:
    points = [site.old, site.new, site.other]
    for path in site.sealed():
        content = path.read_bytes()
        for place in {0, 4, 5, 8, 19, 20, len(content) // 2, len(content) - 17, len(content) - 1}:
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(errors.Damaged, match=path.name):
                read_all(site.repository, points)
        path.write_bytes(content)
    read_all(site.repository, points)


def test_an_object_in_the_place_of_another_is_found(site: Site) -> None:
    points = [site.old, site.new, site.other]
    paths = list(site.sealed())
    for target, source in zip(paths, paths[1:] + paths[:1], strict=True):
        content = target.read_bytes()
        shutil.copy(source, target)
        with pytest.raises(errors.Damaged, match=target.name):
            read_all(site.repository, points)
        target.write_bytes(content)


def test_a_manifest_in_the_place_of_another_is_found(site: Site) -> None:
    for target, source in ((site.new, site.old), (site.other, site.old)):
        path = site.path / layout.manifest(target.vm.id, target.id)
        shutil.copy(site.path / layout.manifest(source.vm.id, source.id), path)
        with pytest.raises(
            errors.Damaged, match=r"manifest\.json is damaged: it is not what was encrypted under this name"
        ):
            site.repository.point(target.vm.id, target.id)


def test_a_plain_object_is_refused(site: Site, tmp_path: Path) -> None:
    """Whoever has no key cannot make one up."""
    plain = Repository.init(str(tmp_path / "plain"), WINDOW)
    point = images.full(plain, site.image)
    folder = site.path / "vms" / point.vm.id / point.id
    shutil.copytree(tmp_path / "plain/vms" / point.vm.id / point.id, folder)
    with pytest.raises(errors.Damaged, match="it is not encrypted"):
        site.repository.points()


def test_one_name_is_sealed_differently_each_time() -> None:
    sealer = Sealer(b"m" * 32)
    first, second = sealer.seal("a", b"x"), sealer.seal("a", b"x")
    assert first != second
    assert len(first) == OVERHEAD + 1
    assert sealer.open("a", first) == sealer.open("a", second) == b"x"
    for name, other in (("b", sealer), ("a", Sealer(b"n" * 32))):
        with pytest.raises(ValueError, match="not what was encrypted"):
            other.open(name, first)


def test_another_version_is_named() -> None:
    sealed = bytearray(Sealer(b"m" * 32).seal("a", b"x"))
    sealed[4] = 2
    with pytest.raises(ValueError, match=r"does not know \(2\)"):
        Sealer(b"m" * 32).open("a", bytes(sealed))


def test_limits_are_those_of_the_content() -> None:
    store = SealedStore(MemoryStore(), Sealer(b"m" * 32))
    store.put("a", b"four")
    assert store.get("a", 4) == b"four"
    with pytest.raises(errors.Damaged, match="longer"):
        store.get("a", 3)


def test_a_master_key_opens_without_any_other(site: Site) -> None:
    master = keys.unlock(site.repository._store._inner, site.repository.settings.id, KEY)[1]  # type: ignore[attr-defined]
    shutil.rmtree(site.path / "keys")
    assert read_all(Repository.open(str(site.path), MasterKey(master)), [site.old]) == [site.image]
