"""A hypervisor as the agent sees it: the real Image I/O daemon, certificates, and a configuration that points to them."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from blockferry.deploy import pki
from blockferry_agent import config, server
from blockferry_agent.nbd import Address
from blockferry_proto import agent_pb2, agent_pb2_grpc
from tests.lab import certificates, imageio, places, processes


class Host:
    """
    directory: everything is below it, also the NBD sockets that the agent may open.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pki = pki.Authority.open(directory / "state")
        self._write("agent", self.pki.agent("host-1", "127.0.0.1"))
        (directory / "tls-ca.crt").write_bytes(self.pki.trusted)
        authority = certificates.Authority(directory)
        place = places.Here(directory, lab=directory)
        self.imageio = imageio.Daemon(place, authority.issue("imageio", place.address), authority.pem)
        self.imageio.wait()

    def close(self) -> None:
        self.imageio.stop()

    def configuration(self, **changes: object) -> Path:
        """Write a configuration of the agent; return its file."""
        path = self.directory / "agent.json"
        document = {
            "listen": [f"127.0.0.1:{processes.free_port()}"],
            "tls": {"certificate": "tls-agent.crt", "key": "tls-agent.key", "ca": "tls-ca.crt"},
            "control_socket": str(self.imageio.control_socket),
            "data_socket": str(self.imageio.data_socket),
            "nbd_directories": [str(self.directory)],
            **changes,
        }
        path.write_text(json.dumps(document))
        return path

    def ticket(self, address: Address, size: int, **changes: object) -> agent_pb2.Ticket:
        """Give Image I/O a ticket, as the engine does."""
        ticket_id, transfer_id = str(uuid.uuid4()), str(uuid.uuid4())
        url = f"nbd:unix:{address.path}" + (f":exportname={address.export}" if address.export else "")
        ticket: dict[str, object] = {
            "uuid": ticket_id,
            "transfer_id": transfer_id,
            "timeout": 300,
            "inactivity_timeout": 60,
            "size": size,
            "url": url,
            "ops": ["read"],
            **changes,
        }
        self.imageio.add_ticket(ticket)
        return agent_pb2.Ticket(ticket_id=ticket_id, transfer_id=transfer_id)

    @contextmanager
    def serving(self, **changes: object) -> Iterator[str]:
        """Run the agent in this process; its (first) address."""
        loaded = config.load(self.configuration(**changes))
        started, stop = threading.Event(), threading.Event()

        def wait(_: object) -> None:
            started.set()
            stop.wait()

        thread = threading.Thread(target=server.run, args=(loaded, wait))
        thread.start()
        try:
            assert started.wait(10), "the agent did not start"
            yield loaded.listen[0]
        finally:
            stop.set()
            thread.join()

    @contextmanager
    def client(self, address: str, identity: pki.Identity | None = None) -> Iterator[agent_pb2_grpc.AgentStub]:
        """Connect as the controller, or as somebody else."""
        identity = identity or self.pki.controller()
        credentials = grpc.ssl_channel_credentials(self.pki.trusted, identity.key, identity.certificate)
        with grpc.secure_channel(
            address, credentials, options=[("grpc.max_receive_message_length", 9 * 1024 * 1024)]
        ) as channel:
            yield agent_pb2_grpc.AgentStub(channel)

    def _write(self, name: str, identity: pki.Identity) -> None:
        (self.directory / f"tls-{name}.crt").write_bytes(identity.certificate)
        (self.directory / f"tls-{name}.key").write_bytes(identity.key)
