"""Agents and controllers of different versions: neighbours work together, others are refused with the next step."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import blockferry_agent
from blockferry import errors
from blockferry.transport import versions
from blockferry.transport.disk import Target
from blockferry.transport.grpc_agent import Agent, Endpoint, GrpcTransport
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry_agent import errors as agent_errors
from blockferry_agent import versions as agent_versions
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.units import MiB
from blockferry_proto import PROTOCOL, PROTOCOL_KEY, agent_pb2
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.test_transport import target_of
from tests.lab import processes

FROZEN = Path(__file__).parents[1] / "data" / "agent-0.1.0.zip"
"""The agent of protocol 1, as commit 52f5f0b had it."""

SIZE = 6 * MiB
BITMAP = "c0ffee00-0000-4000-8000-000000000002"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def old(host: Host) -> Iterator[Endpoint]:
    """An agent of version 0.1.0, as a process."""
    with zipfile.ZipFile(FROZEN) as frozen:
        frozen.extractall(host.directory / "frozen")
    port = processes.free_port()
    configuration = host.configuration(pid_file="agent.pid", socket_ports=[port, port])
    path = f"{host.directory}/frozen/agent:{host.directory}/frozen/proto"
    command = [sys.executable, "-m", "blockferry_agent", "--config", str(configuration)]
    with (host.directory / "old.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=log)
    try:
        processes.wait_for("the old agent", (host.directory / "agent.pid").exists, timeout=20)
        listen = configuration.read_text().partition('"127.0.0.1:')[2]
        yield Endpoint("127.0.0.1", int(listen.partition('"')[0]), "127.0.0.1")
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def content() -> bytes:
    return b"A" * MiB + b"B" * MiB + bytes(4 * MiB)


@pytest.fixture(scope="module")
def target(host: Host, content: bytes) -> Iterator[Target]:
    """A disk of which the second MiB changed since its bitmap was made."""
    image = nbd_servers.qcow2(host.directory / "disk.qcow2", SIZE)
    nbd_servers.write(image, "write -P 0x41 0 1M")
    nbd_servers.add_bitmap(image, BITMAP)
    nbd_servers.write(image, "write -P 0x42 1M 1M")
    with nbd_servers.qemu_nbd(image, host.directory, f"--bitmap={BITMAP}") as served:
        yield target_of(host, served, SIZE)


def credentials(host: Host) -> Credentials:
    return Credentials(host.pki.trusted, *host.pki.controller())


@pytest.mark.parametrize("netcat", [False, True], ids=["grpc", "netcat"])
def test_this_controller_reads_through_an_agent_of_version_0_1_0(
    host: Host, old: Endpoint, target: Target, content: bytes, netcat: bool
) -> None:
    own = credentials(host)
    through: GrpcTransport | NetcatTransport = GrpcTransport(own, lambda _: old)
    if netcat:
        through = NetcatTransport(lambda _: Agent(old, own), lambda _: old, own)
    with contextlib.closing(through.open(target)) as disk:
        for incremental in (False, True):
            image = bytearray(b"A" * MiB if incremental else b"") + bytearray(SIZE)
            reading = disk.read(ReadRequest(0, SIZE, incremental, MiB))
            for block in reading:
                image[block.start : block.end] = block.data or bytes(block.length)
            assert image[:SIZE] == content
            assert reading.summary.moved == (1 if incremental else 2) * MiB


def test_extents_and_description_of_version_0_1_0(host: Host, old: Endpoint, target: Target) -> None:
    with contextlib.closing(Agent(old, credentials(host))) as agent:
        said = agent.describe()
        assert (said.version, said.protocol, said.certificate_expires) == ("0.1.0", 1, 0)
        assert agent.describe_disk(target).dirty_bitmap
        assert not agent.describe_disk(target).writable, "it does not know the question"
    with host.client(f"{old.address}:{old.port}") as stub:
        ticket = agent_pb2.Ticket(ticket_id=target.ticket_id, transfer_id=target.transfer_id)
        request = agent_pb2.ListExtentsRequest(ticket=ticket, length=SIZE, incremental=True)
        dirty = [extent for page in stub.ListExtents(request, timeout=10) for extent in page.extents if extent.dirty]
    assert [(extent.start, extent.length) for extent in dirty] == [(MiB, MiB)]


def test_what_version_0_1_0_does_not_have_is_left_to_another_way(host: Host, old: Endpoint, target: Target) -> None:
    with contextlib.closing(Agent(old, credentials(host))) as agent:
        with pytest.raises(errors.TransportError, match="UNIMPLEMENTED"):
            list(agent.compare(agent_pb2.CompareBlocksRequest()))
        with pytest.raises(errors.TransportError, match="UNIMPLEMENTED"):
            agent.health()


# Too far from each other.


@pytest.mark.parametrize(("protocol", "command"), [(PROTOCOL + 2, "Upgrade Blockferry here"), (0, "Run `blockferry")])
def test_an_agent_too_far_from_this_controller(protocol: int, command: str) -> None:
    reply = agent_pb2.DescribeReply(version="9.9.9", protocol=protocol)
    with pytest.raises(errors.AgentUnreachable) as caught:
        versions.check(reply, "the agent at 192.0.2.1:54330")
    assert f"is version 9.9.9 and speaks protocol {protocol}" in caught.value.message
    assert f"this controller is version {blockferry_agent.__version__} and speaks protocol {PROTOCOL}" in str(
        caught.value
    )
    assert caught.value.hint.startswith(command)
    assert "blockferry agent deploy" in caught.value.hint


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL, PROTOCOL + 1])
def test_neighbours(protocol: int) -> None:
    versions.check(agent_pb2.DescribeReply(protocol=protocol), "the agent")
    agent_versions.check([(PROTOCOL_KEY, str(protocol))])


def test_a_controller_that_says_nothing_is_of_protocol_1() -> None:
    agent_versions.check([])


@pytest.mark.parametrize("said", [str(PROTOCOL + 2), "nonsense", ""])
def test_a_controller_too_far_from_this_agent(host: Host, said: str) -> None:
    with host.serving() as address, host.client(address) as stub:
        metadata = [(PROTOCOL_KEY, said)]
        with pytest.raises(grpc.RpcError) as caught:
            stub.DescribeDisk(agent_pb2.DescribeDiskRequest(), timeout=5, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"speaks protocol {PROTOCOL}, the controller protocol" in caught.value.details()
        # But who is too far away may ask what is here, to say so.
        assert stub.Describe(agent_pb2.DescribeRequest(), timeout=5, metadata=metadata).protocol == PROTOCOL


def test_every_call_says_the_controllers_protocol(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not said, the agent of the next version but one could not refuse what it does not understand."""
    heard: list[object] = []
    check = agent_versions.check
    monkeypatch.setattr(
        agent_versions, "check", lambda metadata: (heard.append(dict(metadata).get(PROTOCOL_KEY)), check(metadata))
    )
    with host.serving() as address:
        endpoint = Endpoint("127.0.0.1", int(address.rpartition(":")[2]), "127.0.0.1")
        nowhere = Target("host1", "127.0.0.1", "transfer", "ticket", "https://127.0.0.1/", None, SIZE)
        with contextlib.closing(Agent(endpoint, credentials(host))) as agent:
            for call in (
                lambda: agent.describe_disk(nowhere),
                lambda: agent.open_socket(nowhere, clear_text=False),
                lambda: list(agent.read(nowhere, ReadRequest(0, SIZE, False, MiB))),
                lambda: list(agent.compare(agent_pb2.CompareBlocksRequest())),
                lambda: list(agent.write(iter([b""]))),
            ):
                with pytest.raises(agent_errors.Error):
                    call()
    assert heard == [str(PROTOCOL)] * 5
