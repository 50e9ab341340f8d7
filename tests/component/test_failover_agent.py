"""A real agent that is killed while it sends blocks: the disk goes on through the next agent, or through Image I/O."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from blockferry.jobs import copying
from blockferry.jobs.copying import Copied, Stop
from blockferry.jobs.progress import Silent
from blockferry.repository import Manifest, Repository
from blockferry.repository import settings as settings_module
from blockferry.transport import grpc_agent, ladder
from blockferry.transport.disk import Target, Transport
from blockferry.transport.grpc_agent import Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport
from blockferry.transport.ladder import Ladder
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry_agent.nbd import Address
from blockferry_agent.units import KiB, MiB
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.lab import processes
from tests.unit import repository_images as images
from tests.unit.repository_stores import MemoryStore

WINDOW = 256 * KiB
GRAIN = 64 * KiB
# More than is under way between the agent and us when the agent dies.
SIZE = 20 * MiB + 512
HOLE = 1 * MiB
BITMAP = "c0ffee00-0000-4000-8000-000000000001"


class Agent:
    """An agent in a process of its own. Close it."""

    def __init__(self, host: Host) -> None:
        self._pid_file = host.directory / "agent.pid"
        port = processes.free_port()
        self._configuration = host.configuration(pid_file=self._pid_file.name, socket_ports=[port, port])
        name, _, port = json.loads(self._configuration.read_text())["listen"][0].rpartition(":")
        self.endpoint = Endpoint(name, int(port), name)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "blockferry_agent", "--config", str(self._configuration)]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        processes.wait_for("the agent", self._pid_file.exists, timeout=20)

    def restart(self) -> None:
        """Stop it and start it again, as an upgrade does."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()
        self.start()

    def close(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._pid_file.unlink(missing_ok=True)


class Served(NamedTuple):
    """A disk behind an NBD server. old, new: its content before and after its bitmap was made."""

    address: Address
    old: bytes
    new: bytes


class AtBlock(Silent):
    """A progress that does something when so many blocks have arrived."""

    def __init__(self, blocks: int, act: Callable[[], None]) -> None:
        self._left = blocks
        self._act = act

    def advance(self, key: str, position: int, moved: int) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def served(host: Host) -> Iterator[Served]:
    """Random data behind a hole, of which every other grain changed; the first of them reads as zeros now."""
    old = bytes(HOLE) + random.Random(1).randbytes(SIZE - HOLE)
    new = bytearray(old)
    content = host.directory / "content"
    content.write_bytes(old[HOLE:])
    image = nbd_servers.qcow2(host.directory / "disk.qcow2", SIZE)
    nbd_servers.write(image, f"write -q -s {content} {HOLE} {SIZE - HOLE}")
    nbd_servers.add_bitmap(image, BITMAP)
    writes = []
    for number, start in enumerate(range(HOLE, SIZE, 2 * GRAIN)):
        length = min(GRAIN, SIZE - start)
        new[start : start + length] = bytes([number % 256]) * length
        writes.append(f"write -q -P {number % 256} {start} {length}")
    nbd_servers.write(image, *writes)
    with nbd_servers.qemu_nbd(image, host.directory, f"--bitmap={BITMAP}") as address:
        yield Served(address, bytes(old), bytes(new))


@pytest.fixture
def agent(host: Host) -> Iterator[Agent]:
    with contextlib.closing(Agent(host)) as running:
        yield running


@pytest.fixture
def repository() -> Repository:
    store = MemoryStore()
    return Repository(store, settings_module.write(store, WINDOW, "none"))


def grpc_transport(host: Host, agent: Agent) -> Transport:
    return GrpcTransport(credentials(host), lambda target: agent.endpoint)


def netcat_transport(host: Host, agent: Agent) -> Transport:
    own = credentials(host)
    return NetcatTransport(lambda target: grpc_agent.Agent(agent.endpoint, own), lambda target: agent.endpoint, own)


def credentials(host: Host) -> Credentials:
    own = host.pki.controller()
    return Credentials(host.pki.trusted, own.certificate, own.key)


BY_AGENT = {"grpc": grpc_transport, "netcat": netcat_transport}


def back_up(
    host: Host, first: Transport, address: Address, repository: Repository, base: Manifest | None, progress: Silent
) -> tuple[Manifest, Copied]:
    ticket = host.ticket(address, SIZE, dirty=True)
    url = f"https://127.0.0.1:{host.imageio.port}/images/{ticket.ticket_id}"
    target = Target("host1", "127.0.0.1", ticket.transfer_id, ticket.ticket_id, url, None, SIZE)
    transports = (first, ImageioTransport(str(host.directory / "ca.pem")))
    stop = Stop()
    incremental = base is not None
    with repository.new_point(images.VM) as draft:
        writer = draft.disk(images.DISK, SIZE, "incremental" if incremental else "full", base)
        terms = copying.Terms(SIZE, incremental, WINDOW)
        copied = copying.copy(Ladder(transports, target, stop.pause), writer, terms, "system", stop, progress)
        images.finish(writer)
        point = draft.commit(mode="live", backup_id="b", checkpoint_id="c", parent=base, seconds=1.0)
    return point, copied


@pytest.mark.parametrize(("name", "incremental"), [("grpc", False), ("grpc", True), ("netcat", True)])
def test_killed_agent(
    host: Host,
    agent: Agent,
    served: Served,
    repository: Repository,
    name: str,
    incremental: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ladder, "COMEBACK", 0.2)
    blocks = random.randrange(1, 20)
    base = images.full(repository, served.old) if incremental else None
    by_agent = BY_AGENT[name](host, agent)
    point, copied = back_up(host, by_agent, served.address, repository, base, AtBlock(blocks, agent.close))
    assert images.restore(repository, point) == served.new
    first, second = copied.carriers
    assert (first.transport, first.start, first.reason) == (name, 0, None)
    assert (second.transport, first.moved + second.moved) == ("imageio", copied.moved)
    assert second.start >= blocks * GRAIN
    assert second.reason is not None
    assert second.reason.startswith(f"{name} broke at {second.start / MiB:.1f} MiB: The ")
    assert_moved_once(copied, served, incremental)


@pytest.mark.parametrize(("name", "incremental"), [("grpc", True), ("netcat", False)])
def test_agent_that_is_started_again(
    host: Host, agent: Agent, served: Served, repository: Repository, name: str, incremental: bool
) -> None:
    base = images.full(repository, served.old) if incremental else None
    by_agent = BY_AGENT[name](host, agent)
    point, copied = back_up(host, by_agent, served.address, repository, base, AtBlock(9, agent.restart))
    assert images.restore(repository, point) == served.new
    assert [carrier.transport for carrier in copied.carriers] == [name, name]
    assert copied.carriers[1].start > 0
    assert_moved_once(copied, served, incremental)


def assert_moved_once(copied: Copied, served: Served, incremental: bool) -> None:
    if incremental:
        changed = sum(end - start for start, end in images.dirty_ranges(served.old, served.new))
        assert (copied.dirty, copied.moved) == (changed, changed - GRAIN)
    else:
        assert (copied.dirty, copied.moved) == (SIZE, SIZE - HOLE)
