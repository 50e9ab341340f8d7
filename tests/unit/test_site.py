"""What a configuration gives the jobs: transports, and the ways to agents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from blockferry import config, deploy, errors
from blockferry.jobs import agent_status
from blockferry.jobs.site import Site
from blockferry.transport.disk import Target
from tests.lab import processes

TARGET = Target("host1", "192.0.2.1", "transfer", "ticket", "https://192.0.2.1:54322/images/ticket", None, 512)
RECORD = deploy.Record(
    host_id="a1",
    host_name="host1",
    address="192.0.2.1",
    port=0,
    server_name="a1.agent.blockferry.invalid",
    directory="/opt/blockferry-agent",
    python="3.9.18",
    version="0.1.0",
    bundle="0" * 64,
    deployed=datetime(2026, 1, 2, tzinfo=UTC),
    certificate_expires=datetime(2099, 1, 1, tzinfo=UTC),
)
WITH_SOCKET = msgspec.structs.replace(
    RECORD,
    socket="/opt/blockferry-agent/run/agent.sock",
    ssh_user="backup",
    host_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBQQGRNkeyfEa9eNaqB7/qlxwCfFJjqxhtNcNlSe7BQF",
)


def site(directory: Path, **agent: object) -> Site:
    return Site(
        config.Config(
            engine=config.Engine(url="https://engine.invalid", username="a@internal", ca_file=directory / "ca.pem"),
            repository=config.Repository(url=str(directory / "repository")),
            agent=config.Agent(**agent),
            state=directory / "state",
        )
    )


def names(made: Site, *asked: config.TransportName) -> list[str]:
    return [transport.name for transport in made.transports(asked or made.config.backup.ladder)]


def test_transports_that_have_their_means(tmp_path: Path) -> None:
    assert names(site(tmp_path)) == ["grpc", "ssh", "imageio"]
    assert names(site(tmp_path, netcat_ports=range(1, 2))) == ["netcat", "grpc", "ssh", "imageio"]
    assert names(site(tmp_path, port=0)) == ["ssh", "imageio"]


def test_order_is_kept(tmp_path: Path) -> None:
    assert names(site(tmp_path), "imageio", "netcat", "ssh") == ["imageio", "ssh"]


def test_nothing_left_says_what_to_configure(tmp_path: Path) -> None:
    with pytest.raises(
        errors.ConfigError, match=r"transport netcat or grpc\. Set agent\.netcat_ports.*Set agent\.port"
    ):
        site(tmp_path, port=0).transports(["netcat", "grpc"])


def test_agent_from_before_there_was_a_socket(tmp_path: Path) -> None:
    made = site(tmp_path)
    made.agents().registry.put(RECORD)
    [ssh] = made.transports(["ssh"])
    with pytest.raises(errors.AgentUnreachable, match=r"host1 was deployed before .* Deploy it again"):
        ssh.open(TARGET)


def test_agent_that_was_deployed_without_a_port(tmp_path: Path) -> None:
    made = site(tmp_path)
    made.agents().registry.put(RECORD)
    [grpc] = made.transports(["grpc"])
    with pytest.raises(errors.AgentUnreachable, match=r"host1 was deployed without a TCP port\. Deploy it again"):
        grpc.open(TARGET)


@pytest.mark.parametrize("name", ["grpc", "ssh"])
def test_host_without_an_agent(tmp_path: Path, name: config.TransportName) -> None:
    [transport] = site(tmp_path).transports([name])
    with pytest.raises(errors.NotFound, match=r"No agent was deployed on host 192\.0\.2\.1"):
        transport.open(TARGET)


def test_ssh_config_of_the_configuration_is_used(tmp_path: Path) -> None:
    made = site(tmp_path, ssh_config_file=tmp_path / "ssh_config")
    made.agents().registry.put(WITH_SOCKET)
    [ssh] = made.transports(["ssh"])
    with pytest.raises(errors.AgentUnreachable, match=f"with {tmp_path}/ssh_config: No such file"):
        ssh.open(TARGET)


def test_status_of_an_agent_without_a_port_says_what_ssh_says(tmp_path: Path) -> None:
    made = site(tmp_path, port=0)
    closed = processes.free_port()
    made.agents().registry.put(msgspec.structs.replace(WITH_SOCKET, address="127.0.0.1", ssh_port=closed))
    [state] = agent_status.status(made, ["host1"])
    assert state.where == "127.0.0.1 (SSH)"
    assert state.problem is not None
    assert "cannot be reached as backup@127.0.0.1: " in state.problem
    assert f"port {closed}: Connection refused" in state.problem
    assert "Check that sshd runs there" in state.problem
