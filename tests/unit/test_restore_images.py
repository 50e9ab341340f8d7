"""Restores to image files: what is there when one of several fails."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest
from blake3 import blake3

from blockferry import errors
from blockferry.jobs import restore
from blockferry.jobs.progress import Silent
from blockferry.repository import Manifest, Repository, layout
from blockferry.repository import settings as settings_module
from blockferry_agent.units import KiB
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
DISKS = {"first": str(uuid.uuid4()), "second": str(uuid.uuid4())}


class Told(Silent):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_images_that_are_there_are_named_when_the_next_one_fails(tmp_path: Path) -> None:
    store = MemoryStore()
    repository = Repository(store, settings_module.write(store, WINDOW, "none"))
    contents = {alias: os.urandom(2 * WINDOW) for alias in DISKS}
    point = back_up(repository, contents)
    lost = layout.chunk(blake3(contents["first"][WINDOW:]).digest())
    del store.objects[lost]
    # Which nobody can do without, whatever is skipped.
    del store.objects[layout.index(images.VM.id, point.id, DISKS["second"])]
    told = Told()
    with pytest.raises(errors.Damaged, match=DISKS["second"]):
        restore.run(repository, point, tmp_path, "raw", [], replace=False, skip_damaged=True, progress=told)
    assert (tmp_path / "first.raw").read_bytes() == contents["first"][:WINDOW] + bytes(WINDOW)
    complete, gap = told.warnings
    assert complete == f"{tmp_path / 'first.raw'} is complete."
    assert gap.startswith(f"Disk first: bytes {WINDOW} to {2 * WINDOW} are zeros. ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.raw"]


def back_up(repository: Repository, contents: dict[str, bytes]) -> Manifest:
    with repository.new_point(images.VM) as draft:
        for alias, content in contents.items():
            writer = draft.disk(DISKS[alias], len(content), "full")
            for block in images.read(content, [(0, len(content))], WINDOW):
                writer.write(block)
            images.finish(writer, alias, bootable=alias == "first")
        return draft.commit(mode="live", backup_id="", checkpoint_id=None, parent=None, seconds=1)
