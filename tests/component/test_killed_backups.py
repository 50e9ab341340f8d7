"""A backup that is killed at any system call leaves the points that there were, or one more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_killed_anywhere_a_backup_leaves_the_old_points_or_one_more(tmp_path: Path) -> None:
    """After each kill every point there is comes back whole, and the next backup succeeds: the program checks that."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.component.killed_backups", tmp_path],
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    # A chunk, a page, the root and the OVF, each made, written and renamed; then the manifest, and what makes it last.
    assert len(held) > 20
    assert held == sorted(held), "once the manifest has its name, the point is there"
    assert (held[0], held[-2:]) == (1, [2, 2]), "what flushes the new name comes last"
