"""Who takes whose certificate, as the operator is told of it; and certificates that change while the agent serves."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.deploy import issuer, pki
from blockferry.transport.grpc_agent import Agent, Endpoint
from blockferry.transport.mutual_tls import Credentials
from blockferry.transport.netcat import NetcatTransport
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.units import MiB
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.test_transport import target_of
from tests.lab import processes

HOST_ID = "host-1"
TLS = {"certificate": "tls-agent.crt", "key": "tls-agent.key", "ca": "tls-ca.crt", "revoked": "tls-revoked.json"}


class Site:
    """An agent that serves, and the controller that deployed it. Its files may be changed meanwhile."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pki = host.pki
        self.port = 0
        self.server_name = ""
        self.renew(self.pki.agent(HOST_ID, "127.0.0.1"))
        self.send_revoked()

    def renew(self, identity: issuer.Identity) -> None:
        """Put another certificate in the place of the agent's, as a deployment does: file by file."""
        self._put("tls-agent.key", identity.key)
        self._put("tls-agent.crt", identity.certificate)
        self.server_name = pki.own_name(identity.certificate)

    def send_revoked(self) -> None:
        self._put("tls-revoked.json", self.pki.revoked)

    def agent(self, own: issuer.Identity | None = None, trusted: bytes = b"") -> Agent:
        endpoint = Endpoint("127.0.0.1", self.port, self.server_name)
        return Agent(endpoint, self.credentials(own, trusted))

    def credentials(self, own: issuer.Identity | None = None, trusted: bytes = b"") -> Credentials:
        own = own or self.pki.controller()
        return Credentials(trusted or self.pki.trusted, own.certificate, own.key)

    def _put(self, name: str, content: bytes) -> None:
        new = self.host.directory / f"{name}.new"
        new.write_bytes(content)
        new.replace(self.host.directory / name)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture
def site(host: Host) -> Iterator[Site]:
    made = Site(host)
    ports = processes.free_port()
    with host.serving(tls=TLS, socket_ports=[ports, ports]) as address:
        made.port = int(address.rpartition(":")[2])
        yield made


def refusal(agent: Agent) -> errors.AgentUnreachable:
    with contextlib.closing(agent), pytest.raises(errors.AgentUnreachable) as caught:
        agent.describe()
    return caught.value


def describes(agent: Agent) -> int:
    """Ask the agent, and return when its certificate ends."""
    with contextlib.closing(agent):
        return agent.describe().certificate_expires


# Each refused, with the sentence that the operator sees.


def test_an_expired_certificate(site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(issuer, "LEAF_LIFE", timedelta(seconds=-60))
        site.renew(site.pki.agent(HOST_ID, "127.0.0.1"))
    with caplog.at_level(logging.ERROR):
        error = refusal(site.agent())
    assert error.message == f"The agent at 127.0.0.1:{site.port} shows a certificate that has expired."
    assert "agent rotate-certs" in error.hint
    assert "the agent's certificate has expired" in caplog.text, "its own log says so, too"


def test_an_agent_of_another_authority(site: Site, tmp_path: Path) -> None:
    foreign = pki.Authority.open(tmp_path / "state")
    error = refusal(site.agent(foreign.controller(), foreign.trusted))
    assert "shows a certificate that this controller's authority did not issue" in error.message
    assert "agent deploy" in error.hint


def test_a_controller_of_another_authority(site: Site, tmp_path: Path) -> None:
    error = refusal(site.agent(pki.Authority.open(tmp_path / "state").controller()))
    assert "does not take this controller's certificate" in error.message
    assert "agent deploy" in error.hint


def test_a_host_that_passes_for_a_controller(site: Site) -> None:
    error = refusal(site.agent(site.pki.agent("host-2", "127.0.0.2")))
    assert "does not take this controller's certificate" in error.message


def test_a_host_that_passes_for_another(site: Site) -> None:
    site.renew(site.pki.agent("host-2", "127.0.0.1"))
    site.server_name = pki.own_name(site.pki.agent(HOST_ID, "127.0.0.1").certificate)
    assert "shows another certificate than the one that was issued to it last" in refusal(site.agent()).message


def test_a_certificate_of_the_agents_that_was_replaced(site: Site) -> None:
    """A copy that was stolen from the host does not pass any more once there is a new one."""
    issued_last = site.pki.agent(HOST_ID, "127.0.0.1")
    site.server_name = pki.own_name(issued_last.certificate)
    error = refusal(site.agent())
    assert "shows another certificate than the one that was issued to it last" in error.message
    assert "agent rotate-certs" in error.hint


def test_a_controllers_certificate_that_was_taken_back(site: Site) -> None:
    old = site.pki.controller()
    agent = site.agent(old)
    with contextlib.closing(agent):
        agent.describe()
        new = site.pki.rotate_controller()
        agent.describe()  # until the list is there
        site.send_revoked()
        # On the connection that was there before, too, and at once.
        with pytest.raises(errors.AgentUnreachable, match=r"does not serve this controller \(.* is revoked"):
            agent.describe()
    assert "is revoked" in refusal(site.agent(old)).message
    assert describes(site.agent(new))


# Certificates change, and nothing that runs is disturbed.


def test_a_new_certificate_is_shown_at_once_and_what_ran_goes_on(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 4096 * 8
    raw = tmp_path / "disk.raw"
    raw.write_bytes(content)
    with nbd_servers.qemu_nbd(raw, site.host.directory, format="raw") as address:
        target = target_of(site.host, address, len(content))
        with contextlib.closing(site.agent()) as agent:
            before = agent.describe().certificate_expires
            reading = agent.read(target, ReadRequest(0, len(content), False, MiB))
            blocks = iter(reading)
            got = [bytes(next(blocks).data)]
            with monkeypatch.context() as patch:
                patch.setattr(issuer, "LEAF_LIFE", timedelta(days=91))
                site.renew(site.pki.agent(HOST_ID, "127.0.0.1"))
            assert describes(site.agent()) > before
            transport = NetcatTransport(
                lambda _: site.agent(), lambda _: Endpoint("127.0.0.1", 0, site.server_name), site.credentials()
            )
            with contextlib.closing(transport.open(target_of(site.host, address, len(content)))) as disk:
                assert b"".join(bytes(block.data) for block in disk.read(ReadRequest(0, MiB, False, MiB))) == got[0]
            got += [bytes(block.data) for block in blocks]
            assert b"".join(got) == content
            assert agent.describe().version, "its connection holds"


def test_files_that_do_not_belong_together_change_nothing(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    before = describes(site.agent())
    other = site.pki.agent(HOST_ID, "127.0.0.1")
    with caplog.at_level(logging.WARNING):
        site._put("tls-agent.key", other.key)  # and not its certificate yet
        assert describes(site.agent()) == before
    assert "goes on with what it had" in caplog.text
    site.renew(other)
    assert describes(site.agent())
    site._put("tls-revoked.json", b"[")
    assert describes(site.agent())


def test_the_authority_is_replaced(site: Site) -> None:
    """As in pki's table, over the agent's own TLS."""
    held = site.agent()
    with contextlib.closing(held):
        held.describe()
        site.pki.begin_rotation()
        assert describes(site.agent())
        renew_all(site)
        assert describes(site.agent())
        site.pki.end_rotation()
        assert describes(site.agent())
        renew_all(site)
        assert describes(site.agent())
        # It shows what was taken back when the old authority ended.
        with pytest.raises(errors.AgentUnreachable, match="is revoked"):
            held.describe()


def renew_all(site: Site) -> None:
    """What `rotate-certs` does on a host."""
    site._put("tls-ca.crt", site.pki.trusted)
    site.renew(site.pki.agent(HOST_ID, "127.0.0.1"))
    site.send_revoked()
