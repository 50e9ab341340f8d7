"""The certificate authority: proven by real TLS handshakes."""

import json
import socket
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from blockferry import errors
from blockferry.deploy import issuer, pki
from blockferry_agent import certificate

CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
HOST_ID = "aaaaaaaa-0000-4000-8000-0000000000A1"


@pytest.fixture
def authority(tmp_path: Path) -> pki.Authority:
    return pki.Authority.open(tmp_path / "state")


@pytest.fixture
def stranger(tmp_path: Path) -> pki.Authority:
    return pki.Authority.open(tmp_path / "stranger")


class Handshake:
    """Mutual TLS between two identities over a socket pair; the names in the certificates that each side got."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(
        self,
        server: pki.Identity,
        client: pki.Identity,
        authority: pki.Authority,
        name: str = "127.0.0.1",
        trusted: bytes = b"",
    ) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        left, right = socket.socketpair()
        left.settimeout(5)
        right.settimeout(5)
        serving = self._context(ssl.PROTOCOL_TLS_SERVER, server, trusted or authority.trusted)
        serving.verify_mode = ssl.CERT_REQUIRED
        calling = self._context(ssl.PROTOCOL_TLS_CLIENT, client, authority.trusted)
        with ThreadPoolExecutor(1) as pool, closing(left), closing(right):
            accepted = pool.submit(self._accept, serving, left)
            try:
                with calling.wrap_socket(right, server_hostname=name) as channel:
                    channel.sendall(b"x")  # in TLS 1.3 the client learns only now whether it was accepted
                    seen_by_client = channel.getpeercert()
                    assert channel.recv(1) == b"y"
            except ssl.SSLCertVerificationError:
                raise
            except OSError:
                accepted.result()  # the server knows why; here the connection may just have broken
                raise
            return self._names(accepted.result()), self._names(seen_by_client)

    def _context(self, side: int, identity: pki.Identity, trusted: bytes) -> ssl.SSLContext:
        pem = self._directory / "identity.pem"
        pem.write_bytes(identity.key + identity.certificate)
        context = ssl.SSLContext(side)
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=trusted.decode())
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    @staticmethod
    def _accept(context: ssl.SSLContext, side: socket.socket) -> dict[str, object] | None:
        with context.wrap_socket(side, server_side=True) as channel:
            assert channel.recv(1) == b"x"
            channel.sendall(b"y")
            return channel.getpeercert()

    @staticmethod
    def _names(certificate: object) -> set[tuple[str, str]]:
        assert isinstance(certificate, dict)
        return set(certificate["subjectAltName"])


@pytest.fixture
def handshake(tmp_path: Path) -> Handshake:
    return Handshake(tmp_path)


@pytest.mark.parametrize("name", ["127.0.0.1", pki.agent_name(HOST_ID)])
def test_controller_and_agent_know_each_other(authority: pki.Authority, handshake: Handshake, name: str) -> None:
    agent = authority.agent(HOST_ID, "127.0.0.1")
    client_names, server_names = handshake(agent, authority.controller(), authority, name)
    assert client_names == {("URI", pki.CONTROLLER_ROLE)}
    assert server_names == {
        ("URI", pki.AGENT_ROLE),
        ("IP Address", "127.0.0.1"),
        ("DNS", "aaaaaaaa-0000-4000-8000-0000000000a1.agent.blockferry.invalid"),
        ("DNS", pki.own_name(agent.certificate)),
    }


def test_other_address_is_refused(authority: pki.Authority, handshake: Handshake) -> None:
    agent = authority.agent(HOST_ID, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
        handshake(agent, authority.controller(), authority, "127.0.0.2")


def test_foreign_agent_is_refused(authority: pki.Authority, stranger: pki.Authority, handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(stranger.agent(HOST_ID, "127.0.0.1"), authority.controller(), authority)


def test_foreign_controller_is_refused(authority: pki.Authority, stranger: pki.Authority, handshake: Handshake) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(authority.agent(HOST_ID, "127.0.0.1"), stranger.controller(), authority)


def test_agent_may_not_be_a_client(authority: pki.Authority, handshake: Handshake) -> None:
    agent = authority.agent(HOST_ID, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(agent, agent, authority)


def test_controller_may_not_be_a_server(authority: pki.Authority, handshake: Handshake) -> None:
    controller = authority.controller()
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(controller, controller, authority)


def test_expired_certificate_is_refused(
    authority: pki.Authority, handshake: Handshake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "LEAF_LIFE", timedelta(seconds=-1))
    expired = authority.agent(HOST_ID, "127.0.0.1")
    monkeypatch.undo()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
        handshake(expired, authority.controller(), authority)


def test_controller_keeps_its_identity(authority: pki.Authority, tmp_path: Path) -> None:
    assert authority.controller() == pki.Authority.open(tmp_path / "state").controller()


def test_controller_is_renewed_when_a_third_of_its_life_is_left(
    authority: pki.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(issuer, "LEAF_LIFE", timedelta(days=90 / 3) - timedelta(hours=1))
        old = authority.controller()
    new = authority.controller()
    assert new.certificate != old.certificate
    assert pki.expiry(new.certificate) - datetime.now(UTC) > timedelta(days=89)
    assert authority.controller() == new


def test_damaged_controller_identity_is_replaced(authority: pki.Authority, tmp_path: Path) -> None:
    authority.controller()
    path = tmp_path / "state" / "pki" / "controller.pem"
    path.write_bytes(path.read_bytes()[:100])
    assert authority.controller() == authority.controller()


def test_agent_certificate_is_fresh_only_for_its_own_names(authority: pki.Authority, stranger: pki.Authority) -> None:
    agent = authority.agent(HOST_ID, "host1.example.com")
    assert authority.is_fresh(agent.certificate, HOST_ID, "host1.example.com")
    assert not authority.is_fresh(agent.certificate, HOST_ID, "192.0.2.1")
    assert not authority.is_fresh(agent.certificate, "other", "host1.example.com")
    assert not authority.is_fresh(b"nonsense", HOST_ID, "host1.example.com")
    assert not authority.is_fresh(authority.controller().certificate, HOST_ID, "host1.example.com")
    foreign = stranger.agent(HOST_ID, "host1.example.com")
    assert not authority.is_fresh(foreign.certificate, HOST_ID, "host1.example.com")


def test_serials_are_random(authority: pki.Authority) -> None:
    identities = [authority.agent(HOST_ID, "::1") for _ in range(3)]
    assert len({x509.load_pem_x509_certificate(identity.certificate).serial_number for identity in identities}) == 3


def test_keys_are_private(authority: pki.Authority, tmp_path: Path) -> None:
    authority.controller()
    directory = tmp_path / "state" / "pki"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [directory, *directory.iterdir()]}
    assert modes == {"pki": 0o700, "authority.pem": 0o600, "controller.pem": 0o600, "lock": 0o600}


def test_controllers_that_start_at_once_share_one_authority(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def start(_: int) -> bytes:
        barrier.wait()
        return pki.Authority.open(tmp_path / "state").trusted

    with ThreadPoolExecutor(8) as pool:
        certificates = set(pool.map(start, range(8)))
    assert len(certificates) == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["pki"]


def test_lost_key_is_an_error_not_a_new_authority(authority: pki.Authority, tmp_path: Path) -> None:
    (tmp_path / "state" / "pki" / "authority.pem").unlink()
    with pytest.raises(errors.DeployError, match=r"cannot be used"):
        pki.Authority.open(tmp_path / "state")


def test_state_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the way")
    with pytest.raises(errors.DeployError, match=r"state/pki cannot be written: .*file system is full"):
        pki.Authority.open(tmp_path / "state")


def test_renewed_identity_that_cannot_be_written(authority: pki.Authority, tmp_path: Path) -> None:
    (tmp_path / "state" / "pki" / "controller.pem").mkdir()
    with pytest.raises(errors.DeployError, match=r"controller\.pem cannot be written: .*file system is full"):
        authority.controller()


def test_key_of_another_authority_is_an_error(
    authority: pki.Authority, stranger: pki.Authority, tmp_path: Path
) -> None:
    own, other = ((tmp_path / name / "pki" / "authority.pem").read_bytes() for name in ("state", "stranger"))
    key, certificate = other[: other.index(CERTIFICATE)], own[own.index(CERTIFICATE) :]
    (tmp_path / "state" / "pki" / "authority.pem").write_bytes(key + certificate)
    with pytest.raises(errors.DeployError, match="do not belong together"):
        pki.Authority.open(tmp_path / "state")


def test_state_of_version_0_1_0(authority: pki.Authority, tmp_path: Path) -> None:
    directory = tmp_path / "state" / "pki"
    pem = (directory / "authority.pem").read_bytes()
    (directory / "authority.pem").unlink()
    (directory / "ca.key").write_bytes(pem[: pem.index(CERTIFICATE)])
    (directory / "ca.crt").write_bytes(pem[pem.index(CERTIFICATE) :])
    assert pki.Authority.open(tmp_path / "state").trusted == pem[pem.index(CERTIFICATE) :]


def test_a_new_identity_of_the_controller_takes_the_old_one_back(authority: pki.Authority, tmp_path: Path) -> None:
    old = authority.controller()
    assert json.loads(authority.revoked) == {"sha256": []}
    new = authority.rotate_controller()
    assert authority.controller() == new != old
    assert json.loads(authority.revoked) == {"sha256": [certificate.fingerprint(certificate.from_pem(old.certificate))]}
    assert stat.S_IMODE((tmp_path / "state" / "pki" / "revoked.json").stat().st_mode) == 0o600


def test_an_identity_that_was_taken_back_is_not_shown_any_more(authority: pki.Authority) -> None:
    """As after a crash in the middle of `rotate_controller`."""
    old = authority.controller()
    authority.revoke(old.certificate)
    assert authority.controller() != old


def test_what_has_ended_is_not_listed_any_more(authority: pki.Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(issuer, "LEAF_LIFE", timedelta(seconds=-1))
        ended = authority.rotate_controller()
    authority.revoke(ended.certificate)
    current = authority.rotate_controller()
    authority.revoke(current.certificate)
    listed = json.loads(authority.revoked)["sha256"]
    assert listed == [certificate.fingerprint(certificate.from_pem(current.certificate))]


def test_an_agents_certificate_has_a_name_that_no_other_has(authority: pki.Authority, handshake: Handshake) -> None:
    old = authority.agent(HOST_ID, "127.0.0.1")
    new = authority.agent(HOST_ID, "127.0.0.1", also=[pki.own_name(old.certificate)])
    for identity in (old, new):
        handshake(identity, authority.controller(), authority, pki.own_name(identity.certificate))
    # While the controller still asks for the old name.
    handshake(new, authority.controller(), authority, pki.own_name(old.certificate))
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(old, authority.controller(), authority, pki.own_name(new.certificate))
    assert authority.is_fresh(new.certificate, HOST_ID, "127.0.0.1")


def test_the_authority_is_replaced_while_all_agents_serve(authority: pki.Authority, handshake: Handshake) -> None:
    """As in pki's table: in every step, each agent and the controller take each other for what they are."""

    def meet(agent: tuple[pki.Identity, bytes]) -> None:
        identity, trusted = agent
        handshake(identity, authority.controller(), authority, pki.own_name(identity.certificate), trusted)

    def renewed() -> tuple[pki.Identity, bytes]:
        return authority.agent(HOST_ID, "127.0.0.1"), authority.trusted

    before, first = renewed(), authority.trusted
    authority.begin_rotation()
    authority.begin_rotation()  # by somebody who goes on with it
    assert authority.is_rotating
    assert not authority.is_fresh(before[0].certificate, HOST_ID, "127.0.0.1")
    meet(before)
    between = renewed()
    meet(between)
    authority.end_rotation()
    assert not authority.is_rotating
    meet(between)
    after = renewed()
    meet(after)
    assert authority.trusted not in first
    with pytest.raises(ssl.SSLError):
        meet(before)
    authority.end_rotation()
    meet(after)
