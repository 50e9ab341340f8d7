"""The agent is lost while a real backup reads a disk: the recovery point is the disk all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_days.scene import PASSED, Scene
from tests.lab import processes
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(lab, tmp_path_factory.mktemp("operator"))
    yield made
    made.close()


@pytest.fixture
def agent(scene: Scene) -> Iterator[None]:
    """The scene's agent, deployed again after the test."""
    yield
    scene.operator.do("agent", "deploy", scene.lab.host.name)


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_killed_agent(scene: Scene, mode: str, tmp_path: Path) -> None:
    first, second = carried(scene, lambda: kill(scene), tmp_path, "--mode", mode)
    assert (first["transport"], second["transport"]) == ("grpc", "imageio")


@pytest.mark.usefixtures("agent")
def test_killed_agent_of_a_full_backup(scene: Scene, tmp_path: Path) -> None:
    first, second = carried(scene, lambda: kill(scene), tmp_path, "--full")
    assert (first["transport"], second["transport"]) == ("grpc", "imageio")


@pytest.mark.usefixtures("agent")
def test_agent_that_is_started_again(scene: Scene, tmp_path: Path) -> None:
    """As by an upgrade: the disk does not leave the agent, which is waited for."""

    def restart() -> None:
        kill(scene)
        scene.operator.do("agent", "deploy", scene.lab.host.name)

    first, second = carried(scene, restart, tmp_path)
    assert (first["transport"], second["transport"]) == ("grpc", "grpc")


def kill(scene: Scene) -> None:
    os.kill(scene.agent_pid, signal.SIGKILL)


def carried(scene: Scene, lose: Callable[[], Any], directory: Path, *options: str) -> list[dict[str, Any]]:
    """
    Lose the agent in the middle of the first disk, and let the backup go on; return what carried the disk.

    Its point must be the disk, which nobody writes to: the VM is down.
    """
    with scene.held_backup("--json", *options) as held:
        lose()
        held.open()
        result = held.end()
    scene.assert_says(result, 0, r"goes on through (grpc|imageio)\. grpc broke at \d+\.\d MiB: The agent at")
    point = result.document
    assert_is_the_disk(scene, point["id"], directory)
    (disk,) = (disk for disk in point["disks"] if disk["id"] == scene.vm.disks[0].id)
    carriers: list[dict[str, Any]] = disk["carriers"]
    assert carriers[0]["start"] == 0
    assert carriers[0]["reason"] is None
    assert 0 < carriers[0]["moved"] <= PASSED
    assert carriers[1]["start"] >= carriers[0]["moved"]
    assert carriers[1]["reason"].startswith("grpc broke at")
    assert sum(carrier["moved"] for carrier in carriers) == disk["bytes"]["moved"]
    scene.assert_went_on(result)
    return carriers


def assert_is_the_disk(scene: Scene, point_id: str, directory: Path) -> None:
    (image, *_) = scene.operator.do(
        "restore", scene.vm.name, point_id, "--to", str(directory), "--disk", scene.vm.disks[0].id
    )
    disk = scene.vm.disks[0]
    processes.run("qemu-img", "compare", "-f", "raw", "-F", disk.format, image["path"], disk.path)
