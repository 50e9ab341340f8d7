"""
What the agent's unit may do on a host, shown from inside: a probe takes the agent's place in its very unit.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator

import pytest

from tests.e2e.fleet import probe
from tests.e2e.fleet.conftest import Fleet
from tests.lab.machines.machine import Machine
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

PROBE = "usr/local/lib/probe.py"
DROP_IN = "run/systemd/system/blockferry-agent.service.d/probe.conf"
INSTEAD = f"""\
[Service]
Type=oneshot
Restart=no
ExecStart=
ExecStart=/usr/bin/python3 -I /{PROBE}
ExecStartPost=
StandardOutput=journal
"""

# Of others, and each readable by everybody as far as modes go, or by its owner alone.
SECRETS = {"root/secret": 0o600, "home/clerk/open": 0o644, "var/lib/other/secret": 0o600}


@pytest.fixture(scope="module", params=[0, 1], ids=["oldest", "newest"])
def outcome(
    request: pytest.FixtureRequest, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[probe.Outcome]:
    """What the probe met on one host."""
    host, machine = fleet.hosts[request.param], fleet.machines[request.param]
    operator = Operator(fleet.lab, tmp_path_factory.mktemp("privilege") / "operator")
    operator.do("agent", "deploy", host.name)
    try:
        yield probed(machine)
    finally:
        operator.run("agent", "remove", host.name)
        for path in (PROBE, DROP_IN, *SECRETS):
            (machine.root / path).unlink(missing_ok=True)


def probed(machine: Machine) -> probe.Outcome:
    for path, mode in SECRETS.items():
        secret = machine.root / path
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("nobody's business")
        secret.chmod(mode)
    (machine.root / PROBE).write_text(inspect.getsource(probe))
    (machine.root / DROP_IN).parent.mkdir(parents=True)
    (machine.root / DROP_IN).write_text(INSTEAD)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "blockferry-agent")
    journal = machine.run("journalctl", "--quiet", "--output=cat", "--unit=blockferry-agent", "--no-pager")
    (line,) = [line for line in journal.splitlines() if line.startswith("{")]
    return probe.Outcome(**json.loads(line))


def test_what_the_agent_needs_is_there(outcome: probe.Outcome) -> None:
    assert outcome.needed == dict.fromkeys(outcome.needed, "yes")


def test_what_it_does_not_need_is_not(outcome: probe.Outcome) -> None:
    assert [what for what, result in outcome.needless.items() if result == "yes"] == []


def test_no_other_port_is_open_to_it(outcome: probe.Outcome, request: pytest.FixtureRequest) -> None:
    if "oldest" in request.node.name:
        pytest.skip("its systemd, 247, cannot keep a unit to its ports; 249 is the first that can")
    assert outcome.ports == dict.fromkeys(outcome.ports, "EPERM")


def test_it_has_no_privileges_and_cannot_gain_any(outcome: probe.Outcome) -> None:
    status = outcome.status
    assert status["Uid"].split()[0] != "0"
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["Seccomp"] == "2", "no filter of system calls"
    assert outcome.groups == ["blockferry-agent", "kvm", "ovirtimg", "qemu"]
