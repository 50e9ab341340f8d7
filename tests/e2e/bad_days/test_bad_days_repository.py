"""Bad days with the repository: full, away, damaged."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockferry_agent.units import KiB
from tests.e2e.bad_days.scene import Scene

pytestmark = pytest.mark.lab


def repository_of(scene: Scene) -> Path:
    return scene.operator.directory / "repository"


def test_no_repository(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory\n")
    (tmp_path / "empty").mkdir()
    below_a_file = str(tmp_path / "file" / "below")
    for url, says in (
        (str(tmp_path / "none"), f"no repository at {tmp_path}/none.*Mount it"),
        (below_a_file, f"no repository at {below_a_file}"),
        (str(tmp_path / "empty"), f"{tmp_path}/empty.*repository init"),
        ("ftp://bucket/backups", "ftp://bucket/backups cannot be used"),
    ):
        result = scene.backup(config=scene.config(repository={"url": url}), timeout=10)
        scene.assert_says(result, 8, says)
    result = scene.operator.run(*scene.config(repository={"url": below_a_file}), "repository", "init")
    scene.assert_survived(result, 8, f"directory {below_a_file} cannot be made")
    assert not (tmp_path / "none").exists()


def test_repository_is_full(scene: Scene) -> None:
    """A chunk does not fit, as far as the operating system lets this process write."""
    with scene.held_backup() as held:
        resource.prlimit(held.process.pid, resource.RLIMIT_FSIZE, (100 * KiB, 100 * KiB))
        held.open()
        result = held.end()
    scene.assert_survived(result, 8, f"{repository_of(scene)}/chunks/.* cannot be written: File too large", "Make room")


def test_repository_goes_away_in_mid_disk(scene: Scene) -> None:
    """As when a file system is unmounted: an empty directory is left in its place."""
    path = repository_of(scene)
    away = path.with_name("away")
    with scene.held_backup() as held:
        path.rename(away)
        path.mkdir()
        held.open()
        result = held.end()
    left = sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())
    scene.assert_says(result, 8, f"repository {path} went away while it was used", "Mount it again")
    assert left == []
    path.rmdir()
    away.rename(path)
    scene.assert_survived(result, 8)


# Damaged.


def test_base_is_damaged(scene: Scene) -> None:
    newest = scene.points[0]
    with damaged(point_file(scene, newest, f"{scene.vm.disks[0].id}.index")):
        result = scene.backup("--json")
        scene.assert_says(result, 0, f"base {newest} is damaged: .*{scene.vm.disks[0].id}.index", "Building on nothing")
        scene.assert_says(scene.operator.run("verify", scene.vm.name), 9, "No backup mends")
    # The attempt that met the damage was ended in the engine, and nobody needs to do it again.
    again = scene.backup("--json")
    assert "earlier backup" not in again.errors
    scene.points.insert(0, result.document["id"])
    scene.assert_went_on(again)


def test_chunk_is_damaged(scene: Scene, tmp_path: Path) -> None:
    scene.write()
    scene.assert_next_succeeds()
    chunk = max((path for path in (repository_of(scene) / "chunks").rglob("*") if path.is_file()), key=by_age)
    with damaged(chunk):
        verified = scene.operator.run("verify", scene.vm.name, "--json")
        scene.assert_says(verified, 9, "1 stored object is damaged")
        (damage,) = verified.document["damage"]
        assert damage["name"] == f"chunks/{chunk.parent.name}/{chunk.name}"
        assert [hurt["point_id"] for hurt in damage["hurts"]] == scene.points[:1]
        restored = scene.operator.run("restore", scene.vm.name, "--to", str(tmp_path / "restored"))
        scene.assert_says(restored, 9, f"{chunk.name} is damaged", "verify|--fresh")
        assert not (tmp_path / "restored" / f"{scene.vm.name}_Disk1.raw").exists()
        assert not list((tmp_path / "restored").glob("*.partial"))
        # What it does not need, can be restored.
        scene.operator.do("restore", scene.vm.name, scene.points[1], "--to", str(tmp_path / "older"))
    scene.assert_survived(restored, 9)


def test_manifest_is_damaged(scene: Scene) -> None:
    newest, *older = scene.points
    with damaged(point_file(scene, newest, "manifest.json")):
        result = scene.operator.run("list", scene.vm.name, "--json")
        assert [point["id"] for point in result.document] == older
        scene.assert_says(result, 0, f"{newest}/manifest.json is damaged")
        for words in (["verify", scene.vm.name], ["verify"]):
            scene.assert_says(scene.operator.run(*words), 9, f"{newest}/manifest.json is damaged")
        result = scene.backup("--json")
        scene.assert_says(result, 0, f"{newest}/manifest.json is damaged")
    scene.assert_went_on(result)


def point_file(scene: Scene, point_id: str, name: str) -> Path:
    return repository_of(scene) / "vms" / scene.vm.id / point_id / name


def by_age(path: Path) -> int:
    return path.stat().st_mtime_ns


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """One byte of a file is another one until the block ends."""
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    try:
        yield
    finally:
        path.write_bytes(content)
