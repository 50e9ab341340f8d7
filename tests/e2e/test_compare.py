"""`blockferry compare` in the lab: it measures what is there, names what is not, and leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ovirtsdk4 import types

from tests.e2e.bad_days.scene import WRITTEN, Scene
from tests.lab import processes
from tests.lab.lab import Lab, MiB

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def module_scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(lab, tmp_path_factory.mktemp("operator"))
    first = processes.free_port()
    config = made.operator.config
    ports = f'[agent]\nnetcat_ports = "{first}-{min(first + 9, 65535)}"'
    config.write_text(config.read_text().replace("[agent]", ports))
    made.operator.do("agent", "deploy", lab.host.name)
    yield made
    made.close()


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    assert len(checkpoints(module_scene)) == 1
    yield module_scene
    assert module_scene.open_backups() == []
    assert module_scene.open_transfers() == []
    assert len(checkpoints(module_scene)) == 1


def checkpoints(scene: Scene) -> list[str]:
    service = scene.engine.vms_service().vm_service(scene.vm.id).checkpoints_service()
    found: list[types.Checkpoint] = service.list()
    return [checkpoint.id for checkpoint in found]


def compare(scene: Scene, *options: str) -> Any:
    return scene.operator.do("compare", scene.vm.name, *options)


def test_all_transports_are_measured(scene: Scene, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    found = compare(scene, "--rounds", "2", "--report", str(report))
    rows = {row["transport"]: row for row in found["figures"]}
    assert set(rows) == {"netcat", "grpc", "ssh", "imageio"}
    assert found["comparison"]["absent"] == []
    for row in rows.values():
        assert 0 < row["slowest"] <= row["rate"] <= row["fastest"]
        assert 0 < row["of_best"] <= 1
        assert row["wire"] >= WRITTEN
        assert row["controller_cpu"] > 0 and row["host_cpu"] > 0 and row["agent_resident"] > MiB
        assert row["first_block"] > 0
    time = found["comparison"]["engine"]
    assert time["start"] > 0 and time["finalize"] > 0 and len(time["transfers"]) >= 2
    for carried in found["comparison"]["carried"]:
        assert [(done["disk"], done["number"]) for done in carried["rounds"]] == [
            (f"{scene.vm.name}_Disk{disk}", number) for disk in (1, 2) for number in (1, 2)
        ]
    text = report.read_text()
    assert "round 2" in text and 'src="http' not in text


def test_a_transfer_that_image_io_has_read_is_not_used_again(scene: Scene) -> None:
    """The engine ends it soon, so that it would depend on the hosts' speed whether the next reading finds it."""
    found = compare(scene, "--transport", "imageio", "--transport", "grpc", "--rounds", "2")
    # Of each disk: imageio; grpc, grpc, imageio.
    assert len(found["comparison"]["engine"]["transfers"]) == 2 * 2


def test_text_for_people(scene: Scene) -> None:
    result = scene.operator.run(
        "compare", scene.vm.name, "--rounds", "1", "--transport", "grpc", "--transport", "imageio"
    )
    assert result.status == 0, result.errors
    assert "grpc" in result.output and "imageio" in result.output and "The engine took" in result.output
    assert "round 1 of 1 through grpc" in result.errors


def test_limit_reads_no_more(scene: Scene) -> None:
    found = compare(scene, "--rounds", "1", "--limit", "1MiB", "--transport", "grpc")
    (carried,) = found["comparison"]["carried"]
    assert carried["rounds"][0]["read"] == MiB
    assert carried["rounds"][1]["read"] <= MiB


def test_an_incremental_reads_what_changed_and_the_next_backup_still_does(scene: Scene) -> None:
    scene.write()
    base = checkpoints(scene)
    found = compare(scene, "--incremental", "--rounds", "1", "--transport", "grpc")
    assert checkpoints(scene) == base
    (carried,) = found["comparison"]["carried"]
    assert carried["rounds"][0]["read"] == WRITTEN
    point = scene.operator.do("backup", scene.vm.name)
    assert point["backup_mode"] == "incremental"
    assert point["disks"][0]["bytes"]["dirty"] == WRITTEN


def test_storing_leaves_nothing(scene: Scene) -> None:
    before = sorted(scene.operator.directory.rglob("*"))
    found = compare(scene, "--store", "--rounds", "1", "--transport", "grpc")
    assert found["comparison"]["stored"]
    after = [path for path in scene.operator.directory.rglob("*") if "state" not in path.parts]
    assert sorted(after) == [path for path in before if "state" not in path.parts]


def test_what_is_not_there_is_named(scene: Scene) -> None:
    scene.operator.do("agent", "remove", scene.lab.host.name)
    try:
        found = compare(scene, "--rounds", "1")
        assert [row["transport"] for row in found["figures"]] == ["imageio"]
        assert found["figures"][0]["host_cpu"] is None
        assert {absent["transport"] for absent in found["comparison"]["absent"]} == {"netcat", "grpc", "ssh"}
        assert "agent deploy" in found["comparison"]["absent"][0]["reason"]
        assert "host1" in found["comparison"]["host_figures"]
        result = scene.operator.run("compare", scene.vm.name, "--transport", "grpc", "--json", "--quiet")
        assert result.status == 7
        assert "No transport could read" in json.loads(result.output)["error"]["message"]
    finally:
        scene.operator.do("agent", "deploy", scene.lab.host.name)
