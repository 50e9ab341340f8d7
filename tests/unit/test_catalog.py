from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.jobs import catalog
from blockferry.repository import Manifest, Repository, Vm

ONE, OTHER = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.init(str(tmp_path / "repository"))


def take(repository: Repository, vm_id: str, name: str) -> Manifest:
    """Commit a point without disks."""
    with repository.new_point(Vm(vm_id, name)) as draft:
        return draft.commit(mode="cold", backup_id="b", checkpoint_id=None, parent=None, seconds=1.0)


def spoil(repository: Repository, point: Manifest) -> None:
    (Path(repository.url) / "vms" / point.vm.id / point.id / "manifest.json").write_bytes(b"\0" * 100)


def test_a_renamed_vm_keeps_its_points(repository: Repository) -> None:
    ids = {take(repository, ONE, "old").id, take(repository, ONE, "new").id}
    for name in ("old", "new", ONE):
        assert {point.id for point in catalog.points(repository, name)} == ids


def test_who_has_the_name_now_comes_before_who_had_it(repository: Repository) -> None:
    take(repository, ONE, "db01")
    take(repository, ONE, "retired")
    mine = take(repository, OTHER, "db01")
    assert catalog.point(repository, "db01", "latest") == mine


def test_two_of_a_name_are_told_apart_by_id(repository: Repository) -> None:
    take(repository, ONE, "db01")
    mine = take(repository, OTHER, "db01")
    with pytest.raises(errors.Ambiguous, match=ONE):
        catalog.points(repository, "db01")
    assert catalog.points(repository, OTHER) == [mine]


def test_points_are_meant_by_the_first_characters(repository: Repository) -> None:
    first, second = take(repository, ONE, "db01"), take(repository, ONE, "db01")
    assert catalog.point(repository, "db01", first.id) == first
    assert catalog.point(repository, "db01", "latest") in (first, second)
    with pytest.raises(errors.Ambiguous, match="Write more"):
        catalog.point(repository, "db01", "2")
    with pytest.raises(errors.NotFound, match="blockferry list db01"):
        catalog.point(repository, "db01", "1999")


def test_latest_is_never_silently_an_older_one(repository: Repository) -> None:
    points = sorted((take(repository, ONE, "db01"), take(repository, ONE, "db01")), key=lambda point: point.id)
    spoil(repository, points[1])
    with pytest.raises(errors.Damaged, match=points[0].id):
        catalog.point(repository, "db01", "latest")
    assert catalog.point(repository, "db01", points[0].id) == points[0]
    assert catalog.points(repository, "db01") == [points[0]]


def test_another_vms_damage_is_nobody_elses(repository: Repository) -> None:
    mine = take(repository, ONE, "db01")
    take(repository, OTHER, "web")
    spoil(repository, take(repository, OTHER, "web"))
    assert catalog.point(repository, "db01", "latest") == mine
