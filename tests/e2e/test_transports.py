"""Every transport carries a real backup, also from a host on which no port is open but that of sshd."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.e2e.bad_days.scene import Scene
from tests.e2e.points.conftest import engine as engine
from tests.e2e.points.history import History
from tests.lab import processes
from tests.lab.lab import Lab, Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab

WRITE = "for disk in /mnt/*; do dd if=/dev/urandom of=$disk/{name} bs=64k count=20 2>/dev/null; done; sync"


@pytest.fixture
def ports(operator: Operator) -> range:
    """The operator's agent may open these for netcat."""
    first = processes.free_port()
    ports = range(first, min(first + 9, 65535) + 1)
    configure(operator, "[agent]", f'[agent]\nnetcat_ports = "{ports[0]}-{ports[-1]}"')
    return ports


@pytest.fixture(autouse=True)
def no_tunnel_stays(lab: Lab) -> Iterator[None]:
    """No ssh that leads to the lab's agent is there after a test."""
    yield
    assert tunnels(lab) == []


def tunnels(lab: Lab) -> list[int]:
    """The processes of ssh that lead to the lab's agent."""
    socket = str(lab.host.directory / "agent" / "run" / "agent.sock").encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if command.startswith(b"ssh\0") and socket in command:
                found.append(int(path.parent.name))
    return found


def configure(operator: Operator, old: str, new: str) -> None:
    """Change the operator's configuration; `old` is a pattern that must be in it."""
    text, count = re.subn(old.replace("[", r"\["), new, operator.config.read_text())
    assert count == 1
    operator.config.write_text(text)


@pytest.mark.usefixtures("ports")
def test_every_transport(
    vm: Vm, operator: Operator, copies: Copies, engine: services.SystemService, lab: Lab, tmp_path: Path
) -> None:
    operator.do("agent", "deploy", lab.host.name)
    history = History(operator, vm, copies, engine)
    for name in ("ssh", "netcat", "imageio", "ssh", "grpc"):
        vm.guest.run(WRITE.format(name=name))
        point = history.backup("--mode", "live", "--transport", name, "--no-fallback")
        assert point.carriers == {name}
        assert point.told == ""
    history.assert_all_restored(tmp_path / "restored")


def test_host_without_an_open_port(
    vm: Vm, operator: Operator, copies: Copies, engine: services.SystemService, lab: Lab, tmp_path: Path
) -> None:
    configure(operator, r"port = \d+", "port = 0")
    [deployed] = operator.do("agent", "deploy", lab.host.name)
    assert (deployed["agent"]["port"], deployed["agent"]["problem"]) == (0, None)
    given = json.loads((lab.host.directory / "agent" / "current" / "agent.json").read_text())
    assert [address.split(":")[0] for address in given["listen"]] == ["unix"]
    status = operator.run("agent", "status")
    assert status.status == 0
    assert "127.0.0.1 (SSH)" in status.output

    history = History(operator, vm, copies, engine)
    point = history.backup("--mode", "live")
    assert point.carriers == {"ssh"}, "it is the best that is configured"
    assert point.told == ""
    history.assert_all_restored(tmp_path / "restored")


def test_socket_that_is_asked_for_through_ssh(
    vm: Vm, operator: Operator, copies: Copies, engine: services.SystemService, lab: Lab, ports: range, tmp_path: Path
) -> None:
    """SSH and netcat: the agent is asked through a tunnel, the blocks come over a port that is open for them alone."""
    configure(operator, r"port = \d+", "port = 0")
    operator.do("agent", "deploy", lab.host.name)
    history = History(operator, vm, copies, engine)
    assert history.backup("--mode", "live").carriers == {"netcat"}
    history.assert_all_restored(tmp_path / "restored")


def test_agent_that_is_gone_is_told_with_what_ssh_says(operator: Operator, lab: Lab, stopped_vm: Vm) -> None:
    operator.do("agent", "deploy", lab.host.name)
    pid = int((lab.host.directory / "agent" / "run" / "agent.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    result = operator.run("backup", stopped_vm.name, "--transport", "ssh", "--no-fallback")
    assert result.status == 7
    assert "The agent on host1 (through SSH) cannot be reached as root@127.0.0.1" in result.errors
    assert "Deploy the agent again" in result.errors


@pytest.fixture
def scene(lab: Lab, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(lab, tmp_path / "scene")
    yield made
    made.close()


def test_tunnel_is_cut_in_the_middle(scene: Scene, tmp_path: Path) -> None:
    """A new one takes its place, and what came through the old one is not moved again."""
    with scene.held_backup("--json", "--transport", "ssh", "--no-fallback") as held:
        for ssh in tunnels(scene.lab):
            os.kill(ssh, signal.SIGKILL)
        held.open()
        result = held.end()
    scene.assert_says(result, 0, r"goes on through ssh\. ssh broke at \d+\.\d MiB: The agent on host1 \(through SSH\)")
    disk = scene.vm.disks[0]
    (carried,) = (found for found in result.document["disks"] if found["id"] == disk.id)
    first, second = carried["carriers"]
    assert (first["transport"], second["transport"]) == ("ssh", "ssh")
    assert second["start"] >= first["moved"] > 0
    (image,) = scene.operator.do(
        "restore", scene.vm.name, result.document["id"], "--to", str(tmp_path / "restored"), "--disk", disk.id
    )
    processes.run("qemu-img", "compare", "-f", "raw", "-F", disk.format, image["path"], disk.path)
    scene.assert_went_on(result)


def test_controller_that_is_killed_leaves_no_tunnel(scene: Scene) -> None:
    with scene.held_backup("--transport", "ssh", "--no-fallback") as held:
        found = tunnels(scene.lab)
        assert found
        directories = [Path(Path(f"/proc/{ssh}/cmdline").read_text().split("\0")[2]).parent for ssh in found]
        held.process.kill()
        processes.wait_for("end of the tunnels", lambda: not tunnels(scene.lab))
    for directory in directories:
        # Nobody is left to remove these.
        shutil.rmtree(directory)
