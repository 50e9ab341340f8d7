"""The story of a deployment on a host, on real files; what runs the agent only notes here what it is told."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from blockferry.deploy import bundle
from blockferry.deploy.onhost import main
from blockferry.deploy.onhost.deployment import Deployment
from blockferry.deploy.onhost.directory import check_way
from blockferry.deploy.onhost.refusal import Refused
from blockferry.deploy.onhost.releases import BUNDLE, CREDENTIALS, Release


class Noted:
    """
    A supervisor that runs nothing.

    runs: name of the release that would run.  fails: error that a release's trial, or its start, raises, by name.
    """

    kind = "process"
    socket = "/run/agent.sock"

    def __init__(self) -> None:
        self.runs: str | None = None
        self.fails_on_trial: dict[str, Exception] = {}
        self.fails_at_start: dict[str, Exception] = {}

    def prepare(self) -> int | None:
        return None

    def try_out(self, release: Release) -> None:
        if release.name in self.fails_on_trial:
            raise self.fails_on_trial[release.name]

    def start(self, release: Release) -> None:
        if release.name in self.fails_at_start:
            raise self.fails_at_start[release.name]
        self.runs = release.name

    def stop(self, when_idle: bool) -> None:
        self.runs = None

    def pid(self) -> int | None:
        return None

    def state(self) -> str:
        return "serving" if self.runs else "stopped"

    def log(self, lines: int) -> str:
        return ""

    def remove(self) -> bool:
        ran, self.runs = self.runs, None
        return ran is not None


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
def deployment(tmp_path: Path, noted: Noted) -> Deployment:
    deployment = Deployment(str(tmp_path / "agent"))
    deployment.supervisor = noted
    return deployment


def files(name: str) -> dict[str, bytes]:
    """Of a release whose bundle is its own, too."""
    packed = bundle.pack({"__main__.py": name.encode()})
    about = {"bundle": hashlib.sha256(packed).hexdigest(), "python": "/usr/bin/python3"}
    return {
        "release.json": json.dumps(about).encode(),
        "settings.json": b"{}",
        "agent.json": b"{}",
        BUNDLE: packed,
        **{file: f"{file} of {name}".encode() for file in CREDENTIALS},
    }


def install(deployment: Deployment, name: str) -> None:
    deployment.install(name, files(name), when_idle=True)


def names(deployment: Deployment) -> list[str]:
    return sorted(path.name for path in (deployment.home / "releases").iterdir())


def test_current_and_previous_are_kept_and_nothing_older(deployment: Deployment, noted: Noted) -> None:
    for name in ("one", "two", "three"):
        install(deployment, name)
    assert names(deployment) == ["three", "two"]
    assert len(deployment.releases.bundles()) == 2
    assert noted.runs == "three"


@pytest.mark.parametrize("error", [Refused("No."), OSError(28, "No space left on device")])
def test_old_agent_runs_again_when_the_new_one_cannot_start(
    deployment: Deployment, noted: Noted, error: Exception
) -> None:
    install(deployment, "one")
    noted.fails_at_start["two"] = error
    with pytest.raises(Refused, match="The agent that ran before runs again"):
        install(deployment, "two")
    assert noted.runs == "one"
    assert names(deployment) == ["one"]
    assert len(deployment.releases.bundles()) == 1


def test_that_the_old_one_does_not_start_either_is_said(deployment: Deployment, noted: Noted) -> None:
    install(deployment, "one")
    noted.fails_at_start = dict.fromkeys(("one", "two"), OSError(28, "No space left on device"))
    with pytest.raises(Refused, match="does not start any more: No space left"):
        install(deployment, "two")
    noted.fails_at_start = {}
    install(deployment, "two")
    assert noted.runs == "two"


def test_failed_trial_takes_nothing_from_what_runs_after_a_kill(deployment: Deployment, noted: Noted) -> None:
    install(deployment, "one")
    # Here a deployment was killed: "two" runs, and no link says so.
    noted.start(deployment.releases.make("two", files("two"), None))
    noted.fails_on_trial["three"] = Refused("No.")
    with pytest.raises(Refused):
        install(deployment, "three")
    assert noted.runs == "two"
    assert names(deployment) == ["one", "two"]
    assert len(deployment.releases.bundles()) == 2
    install(deployment, "four")
    assert names(deployment) == ["four", "one"]
    assert len(deployment.releases.bundles()) == 2


def test_going_back_keeps_the_credentials_that_the_controller_expects(deployment: Deployment, noted: Noted) -> None:
    install(deployment, "one")
    install(deployment, "two")
    deployment.rollback(when_idle=True)
    assert noted.runs == "one"
    current = deployment.releases.current
    assert current is not None
    assert current.credentials()["agent.key"] == b"agent.key of two"


def test_nothing_is_left_after_the_removal(deployment: Deployment) -> None:
    install(deployment, "one")
    assert deployment.remove()
    assert not deployment.home.exists()
    assert not deployment.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused what others can change")
@pytest.mark.parametrize(("mode", "owner"), [(0o775, 0), (0o757, 0), (0o755, 65534)])
def test_directory_that_others_can_change_is_refused(tmp_path: Path, mode: int, owner: int) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    os.chown(parent, owner, owner)
    parent.chmod(mode)
    with pytest.raises(Refused, match=r"parent can be changed by others than root"):
        check_way(parent / "agent")


def test_link_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(Refused, match="link is no directory"):
        check_way(tmp_path / "link" / "agent")


def test_request_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    answer = main.answer({"do": "home", "directory": str(tmp_path / "agent")}, {})
    assert "Nobody knows" in answer["refused"]
