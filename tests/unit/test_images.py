"""Images that disks are restored to: complete under their name or not there, and never outside their directory."""

from __future__ import annotations

import random
import stat
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockferry import errors
from blockferry.jobs import images, restore
from blockferry.jobs.progress import Silent
from blockferry.repository import Manifest, Repository
from blockferry.repository import settings as settings_module
from blockferry_agent.units import KiB, MiB
from tests.unit import repository_images
from tests.unit.repository_stores import MemoryStore, file_size_limit

CONTENT = random.Random(3).randbytes(256 * KiB) + bytes(768 * KiB) + b"end".ljust(512, b"!")


@pytest.fixture
def repository() -> Repository:
    store = MemoryStore()
    return Repository(store, settings_module.write(store, 256 * KiB, "zstd"))


@pytest.fixture
def point(repository: Repository) -> Manifest:
    return repository_images.full(repository, CONTENT)


def run(
    repository: Repository,
    point: Manifest,
    directory: Path,
    image_format: images.Format = "raw",
    disks: Sequence[str] = (),
    replace: bool = False,
) -> list[Path]:
    restored = restore.run(repository, point, directory, image_format, disks, replace, False, Silent())
    return [Path(image.path) for image in restored]


def convert(path: Path) -> bytes:
    """The content of a qcow2 image."""
    raw = path.with_suffix(".converted")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw.read_bytes()


# An image


def test_raw_image_is_sparse_and_private(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    (path,) = run(repository, point, tmp_path / "new/directory")
    assert path == tmp_path / "new/directory/system.raw"
    assert path.read_bytes() == CONTENT
    assert path.stat().st_blocks * 512 < len(CONTENT) - 700 * KiB
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*path.parent.iterdir()] == [path]


def test_qcow2_image(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    (path,) = run(repository, point, tmp_path, "qcow2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
    assert convert(path) == CONTENT


def test_image_that_is_there_stays_unless_it_may_be_replaced(
    repository: Repository, point: Manifest, tmp_path: Path
) -> None:
    path = tmp_path / "system.raw"
    path.write_text("precious")
    with pytest.raises(errors.Conflict, match=r"system\.raw is there already.*--force") as caught:
        run(repository, point, tmp_path)
    assert errors.exit_code(caught.value) == 6
    assert path.read_text() == "precious"
    run(repository, point, tmp_path, replace=True)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_nothing_stays_of_an_image_that_failed(tmp_path: Path, image_format: images.Format) -> None:
    path = tmp_path / f"disk.{image_format}"
    path.write_text("precious")
    with pytest.raises(ZeroDivisionError), images.create(path, image_format, 1 * MiB) as image:
        image.write(0, memoryview(b"half"))
        raise ZeroDivisionError
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_text() == "precious"


def test_damaged_chunk_leaves_no_image(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    store = repository._store
    assert isinstance(store, MemoryStore)
    for name, data in store.objects.items():
        if name.startswith("chunks/") and len(data) > 100 * KiB:
            store.objects[name] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(errors.Damaged):
        run(repository, point, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_a_killed_restore_left_is_written_over(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    (tmp_path / ".system.raw.partial").write_bytes(b"\xff" * 2 * MiB)
    (path,) = run(repository, point, tmp_path)
    assert path.read_bytes() == CONTENT
    assert [*tmp_path.iterdir()] == [path]


def test_two_restores_of_one_image(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    with (
        images.create(tmp_path / "system.raw", "raw", 512),
        pytest.raises(errors.Conflict, match=r"Another restore is writing .*system"),
    ):
        run(repository, point, tmp_path)
    assert (tmp_path / "system.raw").read_bytes() == bytes(512)


def test_planted_link_is_not_followed(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory = tmp_path / "restored"
    directory.mkdir()
    (directory / ".system.raw.partial").symlink_to(victim)
    with pytest.raises(errors.RestoreError):
        run(repository, point, directory)
    assert victim.read_text() == "precious"


# A place that cannot be written


def test_file_where_the_directory_should_be(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.RestoreError, match=r"The directory .*file cannot be made: File exists") as caught:
        run(repository, point, tmp_path / "file")
    assert errors.exit_code(caught.value) == 11


def test_directory_that_cannot_be_written(repository: Repository, point: Manifest) -> None:
    # Nobody may make files there, not even root.
    with pytest.raises(errors.RestoreError, match=r"/proc/self/system\.raw cannot be written: .*another directory"):
        run(repository, point, Path("/proc/self"))


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_no_room(repository: Repository, point: Manifest, tmp_path: Path, image_format: images.Format) -> None:
    with file_size_limit(200 * KiB), pytest.raises(errors.RestoreError, match="cannot"):
        run(repository, point, tmp_path, image_format)
    assert not any(tmp_path.iterdir())


def test_machine_without_qemu_img(
    repository: Repository, point: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.RestoreError, match=r"need qemu-img, .* Install it .* or restore as raw"):
        run(repository, point, tmp_path, "qcow2")
    assert not any(tmp_path.iterdir())


# Names


def with_aliases(repository: Repository, aliases: Sequence[str]) -> Manifest:
    """A point with one small disk for each alias."""
    with repository.new_point(repository_images.VM) as draft:
        for number in range(len(aliases)):
            writer = draft.disk(str(uuid.UUID(int=number)), 512, "full")
            writer.write(repository_images.data(0, bytes([number + 1]) * 512))
            repository_images.finish(writer)
        point = draft.commit(mode="live", backup_id="b", checkpoint_id=None, parent=None, seconds=1.0)
    disks = [msgspec.structs.replace(disk, alias=alias) for disk, alias in zip(point.disks, aliases, strict=True)]
    return msgspec.structs.replace(point, disks=tuple(disks))


def test_aliases_become_names(repository: Repository, tmp_path: Path) -> None:
    aliases = ["../../etc/passwd", "..", "größe €", "a\nb\0c", ".hidden", "x" * 500]
    paths = run(repository, with_aliases(repository, aliases), tmp_path)
    names = ["_.._etc_passwd", "disk", "gr__e__", "a_b_c", "hidden", "x" * 100]
    assert [path.name for path in paths] == [f"{name}.raw" for name in names]


def test_equal_names_are_told_apart_by_id(repository: Repository, tmp_path: Path) -> None:
    point = with_aliases(repository, ["data", "da/ta", "da:ta"])
    paths = run(repository, point, tmp_path)
    ids = [disk.id for disk in point.disks]
    assert [path.name for path in paths] == [f"data-{ids[0]}.raw", f"da_ta-{ids[1]}.raw", f"da_ta-{ids[2]}.raw"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    aliases=st.lists(st.text(max_size=300) | st.sampled_from(["a", "..", "a/b", "a_b", "."]), min_size=1, max_size=5)
)
def test_no_alias_leads_out_of_the_directory(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory, aliases: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("restored")
    paths = run(repository, with_aliases(repository, aliases), directory)
    assert len(set(paths)) == len(aliases)
    assert sorted(paths) == sorted(directory.iterdir())
    for number, path in enumerate(paths):
        assert path.parent == directory
        assert path.read_bytes() == bytes([number + 1]) * 512


def test_some_disks_by_alias(repository: Repository, tmp_path: Path) -> None:
    point = with_aliases(repository, ["system", "data"])
    (path,) = run(repository, point, tmp_path, disks=["data"])
    assert path == tmp_path / "data.raw"
    with pytest.raises(errors.NotFound, match=r"has no disk swap\. It has: system, data"):
        run(repository, point, tmp_path, disks=["swap"])
