"""What happens on a host with systemd when its agent is killed, or its deployment is cut off in between."""

from __future__ import annotations

import time

import pytest

from tests.e2e.fleet.conftest import Fleet
from tests.lab import processes
from tests.lab.machines.machine import Machine
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

# Of the program that the loader starts on the host; the pattern does not match itself.
INSTALLER = "[m]emfd_create"

# Seconds after the installer came up: while it unpacks, while it tries out, while it starts the service.
MOMENTS = (0.0, 0.6, 1.2, 2.0)


def state(operator: Operator, host: str) -> str:
    (status,) = operator.run("agent", "status", host, "--json").document
    return str(status["health"])


def has_installer(machine: Machine) -> bool:
    return bool(machine.run("sh", "-c", f"pgrep -f '{INSTALLER}' || true").strip())


@pytest.mark.parametrize("number", [0, 1], ids=["oldest", "newest"])
def test_agent_that_was_killed_comes_back(fleet: Fleet, operator: Operator, number: int) -> None:
    host, machine = fleet.hosts[number], fleet.machines[number]
    operator.do("agent", "deploy", host.name)
    machine.run("systemctl", "kill", "--signal=SIGKILL", "blockferry-agent")
    processes.wait_for("the agent's second life", lambda: state(operator, host.name) == "SERVING", 15)
    assert machine.run("systemctl", "is-enabled", "blockferry-agent").strip() == "enabled"
    assert "root:blockferry-agent 640" in machine.run(
        "sh", "-c", "stat -c '%U:%G %a' /opt/blockferry-agent/current/tls/agent.key"
    )


def test_deployment_that_is_killed_is_repaired_by_the_next(fleet: Fleet, operator: Operator) -> None:
    host, machine = fleet.hosts[1], fleet.machines[1]
    for moment in MOMENTS:
        deploying = operator.start("agent", "deploy", host.name)
        try:
            processes.wait_for("the installer", lambda: has_installer(machine), 30)
            time.sleep(moment)  # the moment is what is tried here
            machine.run("sh", "-c", f"pkill -KILL -f '{INSTALLER}' || true")
        finally:
            deploying.communicate(timeout=60)
    operator.do("agent", "deploy", host.name)
    assert state(operator, host.name) == "SERVING"
    releases = machine.run("ls", "/opt/blockferry-agent/releases").split()
    assert len(releases) <= 2, releases
    assert "blockferry-agent-trial" not in machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend")


def test_remove_clears_up_after_half_a_deployment(fleet: Fleet, operator: Operator) -> None:
    host, machine = fleet.hosts[0], fleet.machines[0]
    operator.do("agent", "deploy", host.name)
    machine.run("rm", "/etc/systemd/system/blockferry-agent.service", "/opt/blockferry-agent/current")
    operator.do("agent", "remove", host.name)
    left = "find /opt /run /etc/systemd -name 'blockferry-agent*'"
    assert machine.run("sh", "-c", left) == ""
    assert "blockferry-agent" not in machine.run("cat", "/etc/passwd", "/etc/group")
