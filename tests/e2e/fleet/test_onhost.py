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


def test_groups_and_units_that_are_spoilt_are_repaired_by_the_same_command(fleet: Fleet, operator: Operator) -> None:
    host, machine = fleet.hosts[1], fleet.machines[1]
    operator.do("agent", "deploy", host.name)
    for spoil, mend in (
        ("groupmod --new-name away ovirtimg", "groupmod --new-name ovirtimg away"),
        ("sed -i 's/^ExecStart=.*/ExecStart=nowhere/' /etc/systemd/system/blockferry-agent.service", "true"),
        ("mv /opt/blockferry-agent/bundles /opt/blockferry-agent/gone", "true"),
    ):
        machine.run("sh", "-c", f"{spoil}; systemctl daemon-reload; systemctl restart blockferry-agent || true")
        processes.wait_for("an agent that does not serve", lambda: state(operator, host.name) != "SERVING", 15)
        machine.run("sh", "-c", mend)
        operator.do("agent", "deploy", host.name)
        assert state(operator, host.name) == "SERVING", spoil
    operator.do("agent", "remove", host.name)
    assert machine.run("sh", "-c", "find /opt /run /etc/systemd -name 'blockferry-agent*'") == ""


def test_two_deployments_at_once_end_with_one_agent(fleet: Fleet, operator: Operator) -> None:
    host, machine = fleet.hosts[0], fleet.machines[0]
    deploying = [operator.start("agent", "deploy", host.name) for _ in range(2)]
    ended = [(process.communicate(timeout=120), process.returncode) for process in deploying]
    codes = sorted(code for _, code in ended)
    # The one that comes second is told so, or finds the very agent that it was to bring.
    assert codes in ([0, 0], [0, 6]), ended
    assert state(operator, host.name) == "SERVING"
    agents = machine.run("sh", "-c", "pgrep -u blockferry-agent -f agent.json").split()
    assert len(agents) == 1


def test_power_lost_in_the_middle_of_an_upgrade(fleet: Fleet, operator: Operator) -> None:
    host, machine, vm = fleet.hosts[1], fleet.machines[1], fleet.vms[1]
    operator.do("agent", "deploy", host.name)
    with operator.config.open("a") as file:
        file.write("max_reads = 3\n")  # what makes it another release
    upgrading = operator.start("agent", "upgrade", host.name)
    try:
        processes.wait_for("the installer", lambda: has_installer(machine), 30)
        time.sleep(0.6)  # it tries the new one out by now
        machine.lose_power()
    finally:
        machine.start()
        upgrading.communicate(timeout=120)
    assert upgrading.returncode == 10
    machine.wait()
    host.wait()
    vm.start()
    # Whichever it is, one agent serves without anybody's help; the same command brings the new one.
    processes.wait_for("an agent", lambda: state(operator, host.name) == "SERVING", 30)
    operator.do("agent", "upgrade", host.name)
    assert '"max_reads": 3' in machine.run("cat", "/opt/blockferry-agent/current/agent.json")
