"""What operators do with agents on two hosts, besides deploying as root: look first, sudo, firewalls, logs, by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.fleet.conftest import Fleet
from tests.lab import processes
from tests.lab.machines import roots
from tests.lab.machines.machine import Machine
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

FIREWALL = ("firewall-cmd", "--list-services")


def configured(operator: Operator, *lines: str) -> None:
    """Add lines to the configuration's last table, [agent]."""
    with operator.config.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def states(operator: Operator) -> dict[str, str]:
    return {state["host_name"]: state["health"] for state in operator.do("agent", "status")}


def test_check_before_and_after(fleet: Fleet, operator: Operator) -> None:
    found = operator.do("agent", "check", "--all")
    assert [host["host_name"] for host in found] == [host.name for host in fleet.hosts]
    for host in found:
        by_name = {finding["name"]: finding for finding in host["findings"]}
        bad = [finding for finding in host["findings"] if finding["state"] == "failure"]
        assert not bad, bad
        assert {"engine", "SSH", "Python", "Image I/O's control socket", "clock", "space"} <= set(by_name)
        assert by_name["service manager"]["state"] == "ok"

    operator.do("agent", "deploy", "--cluster", "Default")
    assert states(operator) == {host.name: "SERVING" for host in fleet.hosts}
    after = operator.do("agent", "check", fleet.hosts[0].name)
    assert "agent from here" in {finding["name"] for finding in after[0]["findings"]}

    # Image I/O is down: a backup would not work, and the table says what to do.
    imageio = fleet.machines[0].root / "run/ovirt-imageio/sock"
    moved = imageio.with_name("away")
    fleet.machines[0].run("mv", "/run/ovirt-imageio/sock", "/run/ovirt-imageio/away")
    try:
        result = operator.run("agent", "check", fleet.hosts[0].name)
    finally:
        fleet.machines[0].run("mv", "/run/ovirt-imageio/away", "/run/ovirt-imageio/sock")
    assert not moved.exists()
    assert result.status == 10
    assert "ovirt-imageio" in result.output


@pytest.mark.parametrize("user", [roots.OPERATOR, roots.CLERK])
def test_deployed_by_sudo(fleet: Fleet, operator: Operator, user: str) -> None:
    host, machine = fleet.hosts[0], fleet.machines[0]
    configured(operator, f'ssh_user = "{user}"')
    if user == roots.CLERK:
        refused = operator.run("agent", "deploy", host.name)
        assert refused.status == 10
        assert "sudo refuses clerk" in refused.errors
        assert "sudo_password_file" in refused.errors
        operator.environment["BLOCKFERRY_SUDO_PASSWORD"] = "wrong"
        assert "sudo refuses clerk" in operator.run("agent", "deploy", host.name).errors
        operator.environment["BLOCKFERRY_SUDO_PASSWORD"] = roots.CLERK_PASSWORD
    operator.do("agent", "deploy", host.name)
    assert states(operator) == {host.name: "SERVING"}
    assert machine.run("stat", "--format=%U:%a", "/opt/blockferry-agent").strip() == "root:755"
    # The socket is his, for transport ssh; and he may do no more with it than connect.
    assert f":{user}" in machine.run("stat", "--format=%U:%G", "/run/blockferry-agent/agent.sock")
    operator.do("agent", "remove", host.name)
    assert operator.do("agent", "status") == []


def test_logs(fleet: Fleet, operator: Operator) -> None:
    host = fleet.hosts[1]
    operator.do("agent", "deploy", host.name)
    assert "serving at" in operator.run("agent", "logs", host.name, "--lines", "20").output


@pytest.fixture
def firewalled(fleet: Fleet) -> Iterator[Machine]:
    """The newer machine, with firewalld running."""
    machine = fleet.machines[1]
    machine.run("systemctl", "start", "firewalld")
    try:
        yield machine
    finally:
        machine.run("systemctl", "stop", "firewalld")


def test_firewalld_lets_the_agent_through(fleet: Fleet, operator: Operator, firewalled: Machine) -> None:
    host = fleet.hosts[1]
    before = firewalled.run(*FIREWALL)
    operator.do("agent", "deploy", host.name)
    assert "blockferry-agent" in firewalled.run(*FIREWALL).split()
    assert states(operator) == {host.name: "SERVING"}
    operator.do("agent", "remove", host.name)
    assert firewalled.run(*FIREWALL) == before
    assert not (firewalled.root / "etc/firewalld/services/blockferry-agent.xml").exists()


def test_carried_there_by_hand(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    host, machine = fleet.hosts[0], fleet.machines[0]
    kind = f"cp{machine.python.replace('.', '')}-x86_64-glibc2.31"
    archive = tmp_path / "host.tar.gz"
    operator.do("agent", "export", host.name, "--kind", kind, "--to", str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600, "it holds a private key"
    place = machine.root / "root/carried"
    place.mkdir()
    processes.run("tar", "-xzf", archive, "-C", place)
    try:
        assert "serves" in machine.run("/usr/bin/python3", "/root/carried/deploy.py")
    finally:
        machine.run("rm", "-r", "/root/carried")
    assert states(operator) == {host.name: "SERVING"}
    operator.do("agent", "remove", host.name)
