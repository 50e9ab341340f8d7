"""The stores: one contract, and what a directory adds to it."""

from __future__ import annotations

import errno
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.repository import store as stores
from blockferry.repository.encryption import OVERHEAD, SealedStore, Sealer
from blockferry.repository.store import Store, directory, faults
from tests.unit.repository_stores import FailingStore, MemoryStore, file_size_limit


@pytest.fixture(params=["directory", "memory", "failing", "sealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return stores.create(str(tmp_path))
    memory = MemoryStore()
    if request.param == "sealed":
        return SealedStore(memory, Sealer(bytes(32)))
    return memory if request.param == "memory" else FailingStore(memory, at=1000)


def names(store: Store, folder: str) -> list[str]:
    return sorted(found.name for found in store.listing(folder))


# The contract.


def test_what_was_put_is_there(store: Store) -> None:
    store.put("chunks/ab/abcd", b"one")
    assert store.get("chunks/ab/abcd", limit=3) == b"one"
    store.put("chunks/ab/abcd", b"two!")
    assert store.get("chunks/ab/abcd", limit=4) == b"two!"


def test_what_was_not_put_is_not_found(store: Store) -> None:
    store.put("chunks/ab/abcd", b"one")
    for name in ("chunks/ab/abce", "chunks/ab", "nowhere/at/all"):
        with pytest.raises(errors.NotFound):
            store.get(name, limit=10)


def test_an_object_longer_than_expected_is_damaged(store: Store) -> None:
    store.put("a", b"four")
    with pytest.raises(errors.Damaged, match="longer"):
        store.get("a", limit=3)


def test_names_are_those_of_a_folder(store: Store) -> None:
    for name in ("vms/1/manifest", "vms/1/x/y", "vms/10/manifest", "other"):
        store.put(name, b"")
    assert names(store, "vms/1") == ["vms/1/manifest", "vms/1/x/y"]
    assert names(store, "vms") == ["vms/1/manifest", "vms/1/x/y", "vms/10/manifest"]
    assert names(store, "nothing") == []


def test_a_listing_tells_length_and_time(store: Store) -> None:
    store.put("a/b", b"four")
    (found,) = store.listing("a")
    assert found.name == "a/b"
    assert found.length == 4 + (OVERHEAD if isinstance(store, SealedStore) else 0)
    assert 0 < found.modified < 10**10


def test_what_is_there_is_told(store: Store) -> None:
    store.put("a/b", b"")
    assert store.holds("a/b")
    assert not store.holds("a")
    assert not store.holds("a/c")


def test_a_new_object_is_made_once(store: Store) -> None:
    store.put_new("a/b", b"first")
    with pytest.raises(errors.Conflict, match="a/b"):
        store.put_new("a/b", b"second")
    assert store.get("a/b", 10) == b"first"


def test_of_several_that_make_an_object_one_succeeds(store: Store) -> None:
    def make(number: int) -> bool:
        try:
            store.put_new("a", str(number).encode())
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, range(8)))
    assert sum(made) == 1
    assert store.get("a", 1) == str(made.index(True)).encode()


def test_forgetting_loses_nothing(store: Store) -> None:
    store.put("a/b", b"1")
    store.forget("a/b")
    store.forget("nowhere")
    assert store.get("a/b", 1) == b"1"


def test_deleting_twice_is_no_error(store: Store) -> None:
    store.put("a/b", b"")
    store.delete("a/b")
    store.delete("a/b")
    assert names(store, "a") == []


def test_many_are_deleted_and_what_is_not_there_is_no_error(store: Store) -> None:
    store.put("d/a", b"")
    store.put("d/b", b"")
    store.put("d/c", b"")
    store.delete_all(["d/a", "d/c", "d/x"])
    assert [listed.name for listed in store.listing("d")] == ["d/b"]
    store.delete_all([])


def test_a_batch_puts_its_last_object(store: Store) -> None:
    with store.batch() as batch:
        store.put("a/chunk", b"chunk")
        batch.flush()
        batch.commit("a/b/manifest", b"manifest")
        batch.commit("a/b/manifest", b"replaced")
    assert store.get("a/b/manifest", limit=100) == b"replaced"
    assert names(store, "a") == ["a/b/manifest", "a/chunk"]


# A directory.


def test_a_directory_is_a_path_or_a_file_url(tmp_path: Path) -> None:
    (tmp_path / "my backups").mkdir()
    stores.connect(str(tmp_path / "my backups")).put("a", b"1")
    assert stores.connect(f"file://{tmp_path}/my%20backups").get("a", 1) == b"1"


def test_a_new_directory_is_for_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        stores.create(str(tmp_path / "backups/r")).put("chunks/ab/abcd", b"secret")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "backups/r").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "backups").stat().st_mode) == 0o755, "that is somebody else's"


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o2750)
    stores.create(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o2750


@pytest.mark.parametrize("url", ["ftp://host/backups", "https://host/backups", "file://server/share", "nonsense://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(errors.RepositoryError, match="neither a directory nor a bucket"):
        stores.connect(url)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.RepositoryError, match=f"no repository at {tmp_path}/gone"):
        stores.connect(str(tmp_path / "gone"))


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.RepositoryError):
        stores.create(str(tmp_path / "file"))
    with pytest.raises(errors.RepositoryError):
        stores.connect(str(tmp_path / "file"))


def test_no_room_is_told_as_such_and_leaves_the_old_object(tmp_path: Path) -> None:
    store = stores.create(str(tmp_path))
    store.put("a", b"old")
    with file_size_limit(1000), pytest.raises(errors.RepositoryFull, match="Make room"):
        store.put("a", bytes(2000))
    with store.batch() as batch, file_size_limit(1000), pytest.raises(errors.RepositoryFull, match="Make room"):
        batch.commit("a", bytes(2000))
    assert store.get("a", 10) == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_file_system_is_recognised(number: int) -> None:
    """No test can fill a file system here."""
    expected = rf"^x cannot be written: {os.strerror(number)}\. Make room"
    with pytest.raises(errors.RepositoryFull, match=expected), faults.of_a_directory("x cannot be written"):
        raise OSError(number, os.strerror(number))


def test_what_nobody_may_do_is_said_in_one_line() -> None:
    """Root may write everywhere but in /sys."""
    with pytest.raises(errors.RepositoryError) as caught:
        stores.connect("/sys").put("blockferry", b"x")
    assert str(caught.value).startswith("/sys/blockferry cannot be written: ")
    assert "\n" not in str(caught.value)


def test_a_failed_flush_fails_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor of a pipe cannot be flushed: the kernel's error must come through, and no manifest appear."""
    store = stores.create(str(tmp_path))
    with store.batch() as batch:
        monkeypatch.setattr(batch, "_directory", -1)
        with pytest.raises(errors.RepositoryError, match=r"manifest cannot be written: Bad file descriptor\."):
            batch.commit("manifest", b"x")
    assert list(tmp_path.iterdir()) == []


def is_cached(path: Path) -> bool:
    """Tell whether the kernel has a file's content in memory."""
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(100)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pytest.skip(f"The file system of {path} does not tell what is cached.")
    return True


def test_what_is_forgotten_is_read_from_the_storage(tmp_path: Path) -> None:
    store = stores.create(str(tmp_path))
    with store.batch() as batch:
        store.put("chunk", os.urandom(100_001))
        batch.commit("manifest", b"x")
    assert is_cached(tmp_path / "chunk")
    # The kernel may be busy with a page, and keep it then.
    deadline = time.monotonic() + 10
    while is_cached(tmp_path / "chunk"):
        assert time.monotonic() < deadline
        store.forget("chunk")


def unnumbered(path: Path) -> Path:
    """Leave out the number of an unfinished file."""
    name, mark, _ = path.name.partition("#")
    return path.with_name(name + mark)


def test_everything_is_flushed_before_the_last_object_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, Path, set[str]]] = []

    def watch(name: str, flush: Callable[[int], None]) -> Callable[[int], None]:
        def watched(descriptor: int) -> None:
            names = {unnumbered(path).name for path in tmp_path.rglob("*") if path.is_file()}
            flushed.append((name, unnumbered(Path(f"/proc/self/fd/{descriptor}").readlink()), names))
            flush(descriptor)

        return watched

    monkeypatch.setattr(directory, "_syncfs", watch("syncfs", directory._syncfs))
    monkeypatch.setattr(os, "fsync", watch("fsync", os.fsync))
    store = stores.create(str(tmp_path))
    with store.batch() as batch:
        store.put("chunks/ab/abcd", b"chunk")
        batch.commit("vms/manifest.json", b"manifest")

    assert flushed == [
        ("syncfs", tmp_path, {"abcd"}),
        ("fsync", tmp_path / "vms/manifest.json#", {"abcd", "manifest.json#"}),
        ("fsync", tmp_path / "vms", {"abcd", "manifest.json"}),
    ]


def test_without_durability_nothing_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(descriptor: int) -> None:
        raise AssertionError

    monkeypatch.setattr(directory, "_syncfs", never)
    monkeypatch.setattr(os, "fsync", never)
    store = stores.create(str(tmp_path), durability="none")
    with store.batch() as batch:
        store.put("chunks/ab/abcd", b"chunk")
        batch.flush()
        batch.commit("vms/manifest.json", b"manifest")
    assert store.get("vms/manifest.json", 8) == b"manifest"


def test_a_store_beside_another_is_removed(tmp_path: Path) -> None:
    with stores.beside(str(tmp_path / "r"), "full") as beside:
        beside.put("a/b", b"1")
        (path,) = tmp_path.iterdir()
        assert path.name.startswith(".r.scratch-")
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(errors.RepositoryError, match=r"No directory can be made beside .*/none/r"),
        stores.beside(str(tmp_path / "none/r"), "full"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    store = stores.create(str(tmp_path))
    store.put_new("a", b"first")
    with pytest.raises(errors.Conflict, match="there already"):
        store.put_new("a", b"second")
    assert store.get("a", 10) == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# The tests' own stores.


def test_power_takes_only_what_was_not_committed() -> None:
    for seed in range(20):
        store = MemoryStore()
        store.put("a", b"before")
        store.commit("m", b"manifest")
        store.put("b", b"after the commit")
        store.put("c", b"after the commit")
        store.delete("a")
        store.lose_power(random.Random(seed))
        assert store.objects["m"] == b"manifest"
        assert store.objects.get("a") in (None, b"before")
        store.lose_power(random.Random(seed))


def test_nothing_is_written_where_another_directory_is_mounted(tmp_path: Path) -> None:
    path = tmp_path / "repository"
    store = stores.create(str(path))
    with store.batch() as batch:
        store.put("chunks/aa/aa", b"chunk")
        path.rename(tmp_path / "away")
        for mount_point in (None, path):
            if mount_point is not None:
                mount_point.mkdir()
            with pytest.raises(errors.RepositoryError, match=r"went away.*Mount it again"):
                store.put("chunks/bb/bb", b"chunk")
            with pytest.raises(errors.RepositoryError, match=r"went away.*Mount it again"):
                batch.commit("vms/vm/point/manifest.json", b"manifest")
    assert [found for found in path.rglob("*") if found.is_file()] == []


def test_what_others_delete_meanwhile_does_not_stop_a_put(tmp_path: Path) -> None:
    """Whoever deletes the last object of a folder takes the folder away, too."""
    store = stores.create(str(tmp_path))
    ended = threading.Event()

    def put_and_delete() -> None:
        while not ended.is_set():
            store.put("folder/mine", b"")
            store.delete("folder/mine")

    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(put_and_delete)
        for number in range(300):
            store.put(f"folder/{number}", b"x")
            store.delete(f"folder/{number}")
        ended.set()
        other.result()
    assert list(tmp_path.iterdir()) == []


def test_a_listing_has_no_unfinished_objects(tmp_path: Path) -> None:
    store = stores.create(str(tmp_path))
    store.put("a/b", b"1")
    (tmp_path / "a" / "b#123").write_bytes(b"unfinished")
    assert [found.name for found in store.listing("a")] == ["a/b"]
    assert list(store.listing("nothing")) == []


def test_each_is_taken_right_before_it_is_deleted(tmp_path: Path) -> None:
    store = stores.create(str(tmp_path))
    for name in "abc":
        store.put(name, b"")

    def doomed() -> Iterator[str]:
        yield "a"
        yield "b"
        raise errors.Conflict("No longer.")

    with pytest.raises(errors.Conflict):
        store.delete_all(doomed())
    assert [store.holds(name) for name in "abc"] == [False, False, True]


def test_a_folder_that_goes_while_all_is_flushed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.create(str(tmp_path))
    flush, tries = directory._syncfs, 3

    def flush_long(descriptor: int) -> None:
        nonlocal tries
        flush(descriptor)
        if tries := tries - 1:
            (tmp_path / "a/b").rmdir()

    monkeypatch.setattr(directory, "_syncfs", flush_long)
    with store.batch() as batch:
        batch.commit("a/b/c", b"1")
    assert store.get("a/b/c", 1) == b"1"
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["c"]
