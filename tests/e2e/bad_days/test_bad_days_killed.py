"""Bad days of the controller: killed, interrupted, started twice; its configuration and its state."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_days.scene import SOON, Held, Scene
from tests.lab import processes
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

# The phase of a cold backup that comes before "ready".
BEFORE_READY = "initializing"


# Killed and interrupted.


@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_killed_in_mid_disk(scene: Scene, mode: str) -> None:
    with scene.held_backup("--mode", mode) as held:
        held.process.kill()
        assert held.end().status == -signal.SIGKILL
    assert scene.open_transfers(), "nothing was left open, so nothing is tested"
    scene.assert_next_succeeds()
    scene.assert_engine_is_clean()


def test_killed_before_the_backup_is_ready(scene: Scene) -> None:
    with scene.stuck_backup("ready", before=BEFORE_READY) as held:
        held.process.kill()
    result = scene.backup("--json")
    scene.assert_says(result, 0, "An earlier backup of this VM did not end well")
    scene.assert_went_on(result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_mid_disk(scene: Scene, number: signal.Signals) -> None:
    with scene.held_backup() as held:
        held.process.send_signal(number)
        result = held.end()
    scene.assert_survived(result, 130, "Stopped by a signal")


def test_interrupted_in_mid_disk_without_agent(scene: Scene) -> None:
    """The controller does not wait for an answer of Image I/O, which itself waits for the disk."""
    with scene.held_backup("--transport", "imageio") as held:
        held.process.terminate()
        processes.wait_for("cancelling", lambda: scene.open_transfers()[0].phase.value == "finalizing_cleanup", 20)
        held.open()
        result = held.end()
    scene.assert_survived(result, 130, "Stopped by a signal")


def test_interrupted_before_the_backup_is_ready(scene: Scene) -> None:
    with scene.stuck_backup("ready", before=BEFORE_READY) as held:
        held.process.terminate()
        result = held.end()
    scene.assert_survived(result, 130, "Stopped by a signal")
    scene.assert_starts_and_stops()


def test_interrupted_while_a_transfer_does_not_come(scene: Scene) -> None:
    """Nobody waits for what is not wanted any more."""
    scene.lab.engine.faults.stick("transferring")
    with Held(scene.operator.start("backup", scene.vm.name, "--mode", "live")) as held:
        held.wait_until(lambda: [transfer.phase.value for transfer in scene.open_transfers()] == ["initializing"] * 2)
        held.process.terminate()
        result = held.end(30)
    scene.lab.engine.faults.reset()
    scene.assert_survived(result, 130, "Stopped by a signal")


def test_interrupted_twice(scene: Scene) -> None:
    """Who does not wait for the cleaning up, leaves it to the next backup."""
    with scene.held_backup() as held:
        scene.lab.engine.faults.stick("finished_cleanup")
        scene.lab.engine.faults.stick("finished_failure")
        held.process.terminate()
        processes.wait_for("cancelling", lambda: scene.open_transfers()[0].phase.value == "finalizing_cleanup", 20)
        held.process.terminate()
        result = held.end(10)
    scene.assert_says(result, 130, "Stopped by a signal")
    scene.lab.engine.faults.reset()
    scene.assert_next_succeeds()
    scene.assert_engine_is_clean()


def test_interrupted_after_the_commit(scene: Scene) -> None:
    with scene.stuck_backup("succeeded", before="finalizing") as held:
        held.process.terminate()
        result = held.end()
        newest = scene.operator.do("list", scene.vm.name)[0]["id"]
        assert newest not in scene.points
        scene.points.insert(0, newest)
    scene.assert_says(result, 130, f"Recovery point {newest} is complete", "next backup")
    scene.assert_next_succeeds()
    scene.assert_engine_is_clean()


# Started twice.


def test_second_backup_beside_one(scene: Scene) -> None:
    with scene.held_backup("--json") as held:
        second = scene.backup(timeout=10)
        held.open()
        first = held.end()
    scene.assert_says(second, 6, f"Another backup of VM {scene.vm.id} runs on this machine", "Wait")
    scene.assert_went_on(first)


def test_second_controller_beside_one(scene: Scene, tmp_path: Path) -> None:
    other = Operator(scene.lab, tmp_path / "other")
    other.do("repository", "init")
    with scene.held_backup("--json") as held:
        second = other.run("backup", scene.vm.name, "--mode", "live", timeout=SOON)
        held.open()
        first = held.end()
    scene.assert_says(second, 6, f"VM '{scene.vm.name}' is in another backup: .*blockferry", "Wait for it to end")
    scene.assert_went_on(first)
    assert other.do("list") == []
    assert {disk["backup_mode"] for disk in other.do("backup", scene.vm.name, "--mode", "live")["disks"]} == {"full"}


# Its configuration and its state.


def test_configuration_that_cannot_be_used(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory\n")
    (tmp_path / "empty").touch()
    below_a_file = str(tmp_path / "file" / "below")
    days: tuple[tuple[dict[str, Any], str], ...] = (
        ({"engine": {"password_file": below_a_file}}, f"file {below_a_file} .engine.password_file. cannot be read"),
        ({"engine": {"password_file": str(tmp_path / "empty")}}, "file .* .engine.password_file. is empty"),
        ({"engine": {"password_file": None}}, "no password.*Set engine.password_file"),
        ({"engine": {"ca_file": str(tmp_path / "file")}}, f"CA certificate {tmp_path}/file cannot be used.*Fetch it"),
        ({"engine": {"url": "http://localhost/ovirt-engine/api"}}, "not https"),
        ({"engine": {"user": "admin"}}, "unknown field `user`"),
    )
    for tables, says in days:
        result = scene.backup(config=scene.config(**tables), timeout=10)
        scene.assert_says(result, 3, says)
    (tmp_path / "config.toml").write_text("engine = ")
    for name, says in (("config.toml", "not valid TOML"), ("none.toml", "no configuration at .*Write one")):
        result = scene.backup(config=("--config", str(tmp_path / name)), timeout=10)
        scene.assert_says(result, 3, str(tmp_path / name), says)
    scene.assert_survived(result, 3)


def test_state_that_cannot_be_used(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory\n")
    document = scene.operator.config.read_text().replace(
        str(scene.operator.directory / "state"), str(tmp_path / "file")
    )
    (tmp_path / "config.toml").write_text(document)
    result = scene.backup(config=("--config", str(tmp_path / "config.toml")), timeout=10)
    scene.assert_survived(result, 3, f"state directory {tmp_path}/file cannot be made", "Set state")
