"""What the controller knows about the agents that it deployed."""

import json
import logging
import stat
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from blockferry import errors
from blockferry.deploy import registry

RECORD = registry.Record(
    host_id="a1",
    host_name="host1",
    address="192.0.2.1",
    port=54330,
    server_name="a1.agent.blockferry.invalid",
    directory="/opt/blockferry-agent",
    python="3.9.18",
    version="0.1.0",
    bundle="0" * 64,
    deployed=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    certificate_expires=datetime(2027, 2, 3, tzinfo=UTC),
)
OTHER = msgspec.structs.replace(RECORD, host_id="a2", host_name="host2", address="192.0.2.2")


@pytest.fixture
def known(tmp_path: Path) -> registry.Registry:
    return registry.Registry(tmp_path)


@pytest.mark.parametrize("name", ["a1", "host1", "192.0.2.1"])
def test_found_by_id_name_and_address(known: registry.Registry, name: str) -> None:
    known.put(OTHER)
    known.put(RECORD)
    assert known.find(name) == RECORD


def test_unknown_host(known: registry.Registry) -> None:
    with pytest.raises(errors.NotFound, match="No agent was deployed on host host1"):
        known.find("host1")
    known.put(RECORD)
    known.forget("a1")
    known.forget("a1")
    assert known.records() == []


def test_ambiguous_name_is_settled_by_the_id(known: registry.Registry) -> None:
    known.put(RECORD)
    known.put(msgspec.structs.replace(OTHER, host_name="host1"))
    known.put(msgspec.structs.replace(OTHER, host_id="a3", host_name="a1", address="192.0.2.3"))
    with pytest.raises(errors.Ambiguous, match="called host1: a1, a2"):
        known.find("host1")
    assert known.find("a1") == RECORD


def test_host_that_was_added_anew_replaces_itself(known: registry.Registry) -> None:
    anew = msgspec.structs.replace(RECORD, host_id="b1")
    neighbour = msgspec.structs.replace(OTHER, address=RECORD.address, port=1)
    for record in (RECORD, neighbour, anew):
        known.put(record)
    assert known.records() == [anew, neighbour]
    assert known.find("host1") == anew


def test_hosts_without_a_port_are_told_apart_by_their_ways(known: registry.Registry) -> None:
    silent = msgspec.structs.replace(RECORD, port=0, socket="/opt/blockferry-agent/run/agent.sock")
    neighbour = msgspec.structs.replace(silent, host_id="a2", ssh_port=2222)
    anew = msgspec.structs.replace(silent, host_id="b1")
    for record in (silent, neighbour, anew):
        known.put(record)
    assert {record.host_id for record in known.records()} == {"a2", "b1"}


def test_record_from_before_there_was_a_socket(known: registry.Registry, tmp_path: Path) -> None:
    known.put(RECORD)
    [path] = (tmp_path / "agents").iterdir()
    later = ("socket", "ssh_port", "ssh_user", "host_key")
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in later}))
    assert known.find("host1") == RECORD


def test_newer_record_replaces_the_older(known: registry.Registry, tmp_path: Path) -> None:
    newer = msgspec.structs.replace(RECORD, port=1)
    known.put(RECORD)
    known.put(newer)
    assert known.records() == [newer]
    [path] = (tmp_path / "agents").iterdir()
    assert (path.name, stat.S_IMODE(path.stat().st_mode)) == ("a1.json", 0o600)


@pytest.mark.parametrize("host_id", ["", ".", "..", ".hidden", "a/b", "../a", "a\nb", "a" * 200])
def test_strange_ids_are_no_file_names(known: registry.Registry, tmp_path: Path, host_id: str) -> None:
    with pytest.raises(errors.DeployError, match="cannot be the id of a host"):
        known.put(msgspec.structs.replace(RECORD, host_id=host_id))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff"])
def test_damaged_record_is_named_and_hides_no_other(
    known: registry.Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    known.put(RECORD)
    known.put(OTHER)
    path = tmp_path / "agents" / "a1.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert known.find("host2") == OTHER
    [message] = caplog.messages
    assert message.startswith(f"{path} cannot be read: ")
    assert "deploy the agent on that host again" in message
    known.put(RECORD)
    assert known.find("host1") == RECORD


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "agents").write_text("a file in the way")
    with pytest.raises(
        errors.DeployError, match=r"agents/a1\.json cannot be written: .*whether its file system is full"
    ):
        registry.Registry(tmp_path).put(RECORD)


def test_record_that_cannot_be_removed(tmp_path: Path) -> None:
    (tmp_path / "agents" / "a1.json").mkdir(parents=True)
    with pytest.raises(errors.DeployError, match=r"agents/a1\.json cannot be written"):
        registry.Registry(tmp_path).forget("a1")
