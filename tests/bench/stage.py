"""One disk behind one NBD server, and all that reads it: our agent, the real Image I/O, a real sshd."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from blockferry.transport.disk import Target, Transport
from blockferry.transport.grpc_agent import Agent, Endpoint, GrpcTransport
from blockferry.transport.imageio import ImageioTransport
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry.transport.ssh import SshTransport
from blockferry_agent.nbd import Address
from blockferry_agent.units import KiB, MiB
from tests.bench.changing import WORDS
from tests.bench.race import Unavailable
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.sshd import Sshd
from tests.lab import processes


def random_data(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for _ in range(size // MiB):
            file.write(os.urandom(MiB))


def compressible_data(path: Path, size: int) -> None:
    """Text of a few hundred words in random order: zstd makes about a third of it."""
    chance = random.Random(1)
    with path.open("wb") as file:
        for _ in range(size // MiB):
            text = b" ".join(chance.choices(WORDS, k=MiB // 6))
            file.write((text * 2)[:MiB])


def sparse_data(path: Path, size: int) -> None:
    """One 64 KiB grain of random data in each MiB, the rest holes."""
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, MiB):
            file.seek(start)
            file.write(os.urandom(64 * KiB))


DATA: dict[str, Callable[[Path, int], None]] = {
    "random": random_data,
    "compressible": compressible_data,
    "sparse": sparse_data,
}


class Stage:
    """
    directory: of everything but the image.  image: of the disk.  address: of the NBD server.  size: of the disk, bytes.
    target: as the engine would describe the disk's transfer.  agent_pid: of our agent's process.
    """

    def __init__(self, directory: Path, image: Path, size: int, address: Address, host: Host, sshd: Sshd) -> None:
        self.directory = directory
        self.image = image
        self.address = address
        self.size = size
        self.host = host
        self.sshd = sshd
        # "dirty": may be asked what has changed; only an export with a bitmap can answer.
        ticket = host.ticket(address, self.size, dirty=True)
        self.imageio_url = f"https://127.0.0.1:{host.imageio.port}/images/{ticket.ticket_id}"
        self.ca_file = str(host.directory / "ca.pem")
        self.target = Target(
            host_name="host",
            host_address="127.0.0.1",
            transfer_id=ticket.transfer_id,
            ticket_id=ticket.ticket_id,
            transfer_url=self.imageio_url,
            proxy_url=None,
            size=self.size,
        )
        own = host.pki.controller()
        self._credentials = Credentials(host.pki.trusted, own.certificate, own.key)
        self._socket = host.directory / "agent.sock"
        self._port = processes.free_port()
        first = processes.free_port()
        configuration = host.configuration(
            listen=[f"127.0.0.1:{self._port}", f"unix:{self._socket}"],
            socket_ports=[first, min(first + 20, 65535)],
            clear_text=True,
        )
        self.agent = processes.Daemon(
            [sys.executable, "-m", "blockferry_agent", "--config", configuration],
            lab=directory,
            log=directory / "agent.log",
        )
        self.agent.wait_until(self._agent_answers)

    @property
    def agent_pid(self) -> int:
        return self.agent.pid

    def transport(self, name: str) -> Transport:
        """Return one of ours by the name in the table."""
        endpoint = Endpoint("127.0.0.1", self._port, "127.0.0.1")

        def connect(target: Target) -> Agent:
            return Agent(endpoint, self._credentials)

        match name:
            case "grpc":
                return GrpcTransport(self._credentials, lambda target: endpoint)
            case "ssh":
                return SshTransport(lambda target: self.sshd.way(self._socket))
            case "netcat":
                return NetcatTransport(connect, lambda target: endpoint, self._credentials)
            case "netcat, clear text":
                return NetcatTransport(connect, lambda target: endpoint, self._credentials, clear_text=True)
            case _:
                return ImageioTransport(self.ca_file)

    def _agent_answers(self) -> bool:
        with (
            contextlib.suppress(Exception),
            contextlib.closing(Agent(Endpoint("127.0.0.1", self._port, "127.0.0.1"), self._credentials)) as agent,
        ):
            agent.describe()
            return True
        return False


@contextlib.contextmanager
def up(kind: str, size: int) -> Iterator[Stage]:
    """Have a stage with a disk of `size` bytes, in memory, so that no storage is measured. Raises Unavailable."""
    memory = Path("/dev/shm")
    if shutil.disk_usage(memory).free < 2 * size:
        raise Unavailable(f"/dev/shm has no room for two images of {size / MiB:.0f} MiB")
    with (
        tempfile.TemporaryDirectory(prefix="bfb", dir=memory) as images,
        tempfile.TemporaryDirectory(prefix="bfb") as place,
    ):
        image = Path(images) / "disk.raw"
        DATA[kind](image, size)
        with serving(Path(place), image) as address, around(Path(place), image, size, address) as stage:
            yield stage


@contextlib.contextmanager
def around(directory: Path, image: Path, size: int, address: Address) -> Iterator[Stage]:
    """Have all that reads the disk that is served at `address`."""
    with host(directory) as running, Sshd(directory / "sshd", ("ed25519",)) as sshd:
        stage = Stage(directory, image, size, address, running, sshd)
        try:
            yield stage
        finally:
            stage.agent.stop()


@contextlib.contextmanager
def host(directory: Path) -> Iterator[Host]:
    """Have a hypervisor's Image I/O and certificates."""
    running = Host(directory)
    try:
        yield running
    finally:
        running.close()


def serving(
    directory: Path, image: Path, *options: str, format: str = "raw"
) -> contextlib.AbstractContextManager[Address]:
    return nbd_servers.qemu_nbd(image, directory, *options, format=format)


def version(*command: str) -> str:
    """Return the first line that a program says of itself."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "?"


def resident_peak(pid: int) -> int:
    """Return the most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * KiB for line in lines if line.startswith("VmHWM:"))


def resident_peak_of_self() -> int:
    return resident_peak(os.getpid())
