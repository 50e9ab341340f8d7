"""Bad days with the agents: hosts that are not there, not who they were, or do not let us in."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.e2e.bad_days.scene import Scene
from tests.lab import processes

pytestmark = pytest.mark.lab


def test_unknown_host(scene: Scene) -> None:
    for command in ("deploy", "remove"):
        result = scene.operator.run("agent", command, "host2")
        scene.assert_says(result, 5, "no host 'host2'", "Its hosts are: host1")
    scene.assert_says(scene.operator.run("agent", "status", "host2"), 5, "No agent was deployed on host host2")
    scene.assert_survived(result, 5)


def test_host_is_not_who_it_was(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has seen another host key than the host shows now."""
    host = scene.lab.host
    monkeypatch.setattr(type(host), "ssh_public_key", new_key(tmp_path / "other"))
    result = scene.operator.run("agent", "deploy", host.name)
    says = f"{host.address}:{host.ssh_port} shows ssh-ed25519 {host.ssh_fingerprint}.* is pinned"
    scene.assert_survived(result, 10, says.replace("+", r"\+"), "Somebody may stand between")


def test_host_does_not_let_us_in(scene: Scene, tmp_path: Path) -> None:
    new_key(tmp_path / "stranger")
    config = scene.config(agent={"ssh_key_file": str(tmp_path / "stranger")})
    result = scene.operator.run(*config, "agent", "deploy", scene.lab.host.name)
    scene.assert_says(result, 10, f"does not let root in with the key {tmp_path}/stranger", "authorized_keys")
    config = scene.config(agent={"ssh_key_file": str(tmp_path / "none")})
    result = scene.operator.run(*config, "agent", "deploy", scene.lab.host.name)
    scene.assert_survived(result, 10, f"{tmp_path}/none")


def test_agent_that_cannot_start(scene: Scene) -> None:
    """The one before serves again."""
    before = scene.agent_pid
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = scene.config(agent={"port": taken.getsockname()[1]})
        result = scene.operator.run(*config, "agent", "deploy", scene.lab.host.name)
    assert scene.agent_pid != before
    scene.operator.do("agent", "status")
    scene.assert_survived(result, 10, "cannot listen at 127.0.0.1:", "")
    config = scene.config(agent={"python": "/usr/bin/python2.7"})
    result = scene.operator.run(*config, "agent", "deploy", scene.lab.host.name)
    scene.assert_says(result, 10, "/usr/bin/python2.7")


def test_agent_is_removed(scene: Scene) -> None:
    directory, pid = scene.lab.host.directory / "agent", scene.agent_pid
    scene.operator.do("agent", "remove", scene.lab.host.name)
    assert not directory.exists()
    assert not runs(pid)
    assert scene.operator.do("agent", "status") == []
    scene.operator.do("agent", "deploy", scene.lab.host.name)
    (state,) = scene.operator.do("agent", "status")
    assert state["problem"] is None


def runs(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to take notice does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def new_key(path: Path) -> str:
    """Make an SSH key pair at `path` and return its public half."""
    processes.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path)
    return path.with_suffix(".pub").read_text().strip()
