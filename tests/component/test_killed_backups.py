"""A backup that is killed at any system call leaves the points that there were, or one more; a collection, all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def what_is_left(story: str, directory: Path) -> list[int]:
    """Let something be killed before each of its calls. Return what the repository had after each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.component.killed_backups", story, directory],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    assert isinstance(held, list)
    return held


def test_killed_anywhere_a_backup_leaves_the_old_points_or_one_more(tmp_path: Path) -> None:
    """After each kill every point there is comes back whole, and the next backup succeeds: the program checks that."""
    held = what_is_left("backup", tmp_path)
    # A chunk, a page, the root and the OVF, each made, written and renamed; then the manifest, and what makes it last.
    assert len(held) > 20
    assert held == sorted(held), "once the manifest has its name, the point is there"
    assert (held[0], held[-2:]) == (1, [2, 2]), "what flushes the new name, and takes the lock away, comes last"


def test_killed_anywhere_a_collection_leaves_all_points(tmp_path: Path) -> None:
    """After each kill the point comes back whole, and the next collection removes the rest: the program checks that."""
    held = what_is_left("collect", tmp_path)
    assert len(held) > 15
    assert held == sorted(held, reverse=True)
    # Of the deleted point a chunk and a page.
    assert (held[0], held[-1]) == (4, 2)
