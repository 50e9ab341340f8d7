"""`blockferry compare` that is stopped in the middle leaves nothing in the engine."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.bad_days.scene import Scene
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


def test_stopped_comparison_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    scene = Scene(lab, tmp_path / "scene")
    try:
        before = checkpoints(scene)
        # So many rounds that it cannot be done before the signal comes.
        with scene.operator.start("compare", scene.vm.name, "--rounds", "100", "--transport", "imageio") as process:
            try:
                wait_for_round(process, 3)
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 130
        assert scene.open_backups() == []
        assert scene.open_transfers() == []
        assert checkpoints(scene) == before
        assert scene.operator.do("backup", scene.vm.name)["backup_mode"] == "incremental"
    finally:
        scene.close()


def wait_for_round(process: subprocess.Popen[str], number: int) -> None:
    assert process.stderr is not None
    assert any(f"round {number} of" in line for line in process.stderr), "it ended before that round"


def checkpoints(scene: Scene) -> list[str]:
    return [found.id for found in scene.engine.vms_service().vm_service(scene.vm.id).checkpoints_service().list()]
