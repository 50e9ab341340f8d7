"""Many controllers at one agent: its limits hold, everybody gets his disk, and monitoring is answered meanwhile."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from blockferry import errors
from blockferry.deploy import issuer
from blockferry.transport import patience
from blockferry.transport.agent_upload import AgentUploads
from blockferry.transport.disk import Disk, Target
from blockferry.transport.grpc_agent import Agent, Endpoint, GrpcTransport
from blockferry.transport.ladder import Ladder
from blockferry.transport.mutual_tls import Credentials
from blockferry_agent import digest
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Kind, ReadRequest
from blockferry_agent.health import SERVICE
from blockferry_agent.nbd import Address
from blockferry_agent.units import GiB, KiB, MiB
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.test_transport import target_of
from tests.lab import processes

SIZE = 16 * MiB
CLIENTS = 10
DISKS = 3
MAX_READS = 4
LARGE = 2 * GiB


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def agent(host: Host) -> Iterator[tuple[Endpoint, subprocess.Popen[bytes]]]:
    """The agent as a process of its own, whose memory can be seen."""
    configuration = host.configuration(max_reads=MAX_READS, pid_file="agent.pid")
    with (host.directory / "agent.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "blockferry_agent", "--config", configuration], stderr=log)
    try:
        processes.wait_for("the agent", (host.directory / "agent.pid").exists, timeout=20)
        port = int(configuration.read_text().partition('"127.0.0.1:')[2].partition('"')[0])
        yield Endpoint("127.0.0.1", port, "127.0.0.1"), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def disks(host: Host) -> Iterator[list[Address]]:
    """As many disks as are read by one client, each on a server of its own."""
    with contextlib.ExitStack() as servers:
        served = []
        for number in range(DISKS):
            raw = host.directory / f"disk{number}.raw"
            raw.write_bytes(random.Random(number).randbytes(SIZE))
            # Each client has a ticket of its own for them, so the agent does not see that they are the same disks.
            served.append(servers.enter_context(nbd_servers.qemu_nbd(raw, host.directory, "--shared=64", format="raw")))
        yield served


def credentials(host: Host, own: issuer.Identity | None = None) -> Credentials:
    return Credentials(host.pki.trusted, *(own or host.pki.controller()))


def test_ten_controllers_with_three_disks_each(
    host: Host,
    agent: tuple[Endpoint, subprocess.Popen[bytes]],
    disks: list[Address],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No more readings than allowed, memory below its bound, Busy is waited for, and all get their disks."""
    endpoint, _ = agent
    monkeypatch.setattr(patience, "_MAX_PAUSE", 0.5)
    done, most = threading.Event(), [0, 0]

    def watch() -> None:
        with contextlib.closing(Agent(endpoint, credentials(host))) as watcher:
            while not done.wait(0.02):
                said = watcher.describe()
                most[:] = max(most[0], said.active_reads), max(most[1], said.resident_bytes)

    def read(own: issuer.Identity, address: Address) -> int:
        ladder: Ladder[Disk] = Ladder(
            [GrpcTransport(credentials(host, own), lambda _: endpoint)], target_of(host, address, SIZE), time.sleep
        )
        while True:
            opened = ladder.open()
            with contextlib.closing(opened.disk) as disk:
                reading = disk.read(ReadRequest(0, SIZE, False, MiB))
                try:
                    return sum(len(block.data) for block in reading)
                except agent_errors.Busy as busy:
                    refused.append(busy)
                    ladder.broke(opened, busy, 0, carried=False)

    refused: list[agent_errors.Busy] = []
    identities = [host.pki.rotate_controller() for _ in range(CLIENTS)]
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(CLIENTS * DISKS) as clients:
            copies = [clients.submit(read, own, address) for own in identities for address in disks]
            assert [copy.result(60) for copy in copies] == [SIZE] * CLIENTS * DISKS
    finally:
        done.set()
        watching.join(20)
    assert 1 < most[0] <= MAX_READS
    assert most[1] < 150 * MiB
    assert refused, "nobody was refused, so the line was endless"
    assert all("Wait for other backups." in busy.hint and busy.retry_after for busy in refused)


def test_memory_does_not_grow_with_what_is_written(host: Host, agent: tuple[Endpoint, subprocess.Popen[bytes]]) -> None:
    """Onto storage that takes a while for each block, so that the controller is always ahead."""
    endpoint, process = agent
    address = Address(str(host.directory / "null.sock"), "")
    null = json.dumps({"driver": "null-co", "size": LARGE, "latency-ns": 1_000_000})
    command = ["qemu-nbd", f"--socket={address.path}", "--persistent", "--shared=8", f"json:{null}"]
    content = random.Random(0).randbytes(8 * MiB)
    block = Block(0, len(content), Kind.DATA, digest.xxh3(content), content)
    uploads = AgentUploads("grpc", lambda target: Agent(endpoint, credentials(host)))
    ticket = host.ticket(address, LARGE, ops=["write"])
    target = Target("host1", "127.0.0.1", ticket.transfer_id, ticket.ticket_id, "", None, LARGE)
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    with nbd_servers.served(command, address), contextlib.closing(uploads.open(target)) as upload:
        blocks = (block._replace(start=start) for start in range(0, LARGE, len(content)))
        assert max(upload.write(blocks, len(content))) == LARGE
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert int(peak) * KiB < 150 * MiB


def test_connections_without_end_are_in_nobodys_way(
    host: Host, agent: tuple[Endpoint, subprocess.Popen[bytes]]
) -> None:
    """More of them than the agent takes: it stays below its bound, and serves again when they are gone."""
    endpoint, process = agent
    with contextlib.ExitStack() as strangers:
        for _ in range(700):
            strangers.enter_context(socket.create_connection((endpoint.address, endpoint.port), timeout=5))
        assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 1024
    deadline = time.monotonic() + 20
    while True:
        with contextlib.closing(Agent(endpoint, credentials(host))) as client:
            try:
                assert client.describe().resident_bytes < 150 * MiB
                return
            except errors.AgentUnreachable:
                assert time.monotonic() < deadline


# The standard health service.


def test_health_is_told_to_controllers(host: Host, agent: tuple[Endpoint, subprocess.Popen[bytes]]) -> None:
    endpoint, _ = agent
    with contextlib.closing(Agent(endpoint, credentials(host))) as client:
        assert client.health() == "SERVING"
    foreign = Agent(endpoint, credentials(host, host.pki.agent("host-2", "127.0.0.2")))
    with contextlib.closing(foreign), pytest.raises(errors.AgentUnreachable):
        foreign.health()


def test_health_over_the_unix_socket_until_it_stops(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with grpc.insecure_channel(f"unix:{path}") as channel:
        with host.serving(listen=[f"unix:{path}"]):
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watch)
