"""The agent is lost while a real backup reads a disk: the recovery point is the disk all the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_days.scene import PASSED, Scene
from tests.lab import witness
from tests.lab.lab import Lab
from tests.lab.witness import Copies

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


@pytest.fixture
def copies(scene: Scene, tmp_path: Path) -> Iterator[Copies]:
    """What nbdcopy sees of each disk, beside what the scene does with it."""
    directory = tmp_path / "witness"
    directory.mkdir()
    found = Copies(scene.lab, directory)
    see = scene.lab.host.before_ticket
    assert see is not None

    def copy_and_see(ticket: dict[str, Any]) -> None:
        found.copy(ticket)
        see(ticket)

    scene.lab.host.before_ticket = copy_and_see
    yield found
    scene.lab.host.before_ticket = see


@pytest.fixture
def running(scene: Scene) -> Iterator[None]:
    """The scene's VM runs, with something new on its disk."""
    scene.write()
    scene.lab.host.start_vm(scene.vm.id)
    yield
    scene.lab.host.destroy_vm(scene.vm.id)


@pytest.mark.usefixtures("agent", "running")
@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_killed_agent(scene: Scene, copies: Copies, mode: str) -> None:
    first, second = carried(scene, copies, lambda: kill(scene), "--mode", mode)
    assert (first["transport"], second["transport"]) == ("grpc", "imageio")


@pytest.mark.usefixtures("agent")
def test_killed_agent_of_a_full_backup(scene: Scene, copies: Copies) -> None:
    first, second = carried(scene, copies, lambda: kill(scene), "--full")
    assert (first["transport"], second["transport"]) == ("grpc", "imageio")


@pytest.mark.usefixtures("agent")
def test_agent_that_is_started_again(scene: Scene, copies: Copies) -> None:
    """As by an upgrade: the disk does not leave the agent, which is waited for."""

    def restart() -> None:
        kill(scene)
        scene.operator.do("agent", "deploy", scene.lab.host.name)

    first, second = carried(scene, copies, restart)
    assert (first["transport"], second["transport"]) == ("grpc", "grpc")


def kill(scene: Scene) -> None:
    os.kill(scene.agent_pid, signal.SIGKILL)


def carried(scene: Scene, copies: Copies, lose: Callable[[], Any], *options: str) -> list[dict[str, Any]]:
    """Lose the agent in the middle of the first disk, and let the backup go on; return what carried the disk."""
    with scene.held_backup("--json", *options) as held:
        lose()
        held.open()
        result = held.end()
    scene.assert_says(result, 0, r"goes on through (grpc|imageio)\. grpc broke at \d+\.\d MiB: The agent at")
    point = result.document
    assert_is_what_was_seen(scene, point["id"], copies)
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


def assert_is_what_was_seen(scene: Scene, point_id: str, copies: Copies) -> None:
    taken = copies.take(scene.vm)
    images = scene.operator.do("restore", scene.vm.name, point_id, "--to", str(scene.operator.directory), "--force")
    assert {image["disk_id"] for image in images} == set(taken)
    for image in images:
        assert witness.equal(Path(image["path"]), taken[image["disk_id"]])
