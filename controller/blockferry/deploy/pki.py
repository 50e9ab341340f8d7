"""
The controller's own certificate authority: who may talk to an agent, and who is one.

    <state>/pki/ca.crt            what agents and the controller trust
    <state>/pki/ca.key
    <state>/pki/controller.pem    the controller's key and certificate, in one file so that they always belong together

    certificate    role in its URI name       may be used as    other names
    controller     blockferry:controller      TLS client        none
    agent          blockferry:agent           TLS server        the host's address; agent_name(host id)

An agent accepts the controller's role only, so a stolen host certificate opens no other host. A host's key is made for
each deployment and not kept here.
"""

import ipaddress
import os
import re
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blockferry import errors, files
from blockferry.deploy import faults

CONTROLLER_ROLE = "blockferry:controller"
AGENT_ROLE = "blockferry:agent"

_CA_LIFE = timedelta(days=20 * 365)
_LEAF_LIFE = timedelta(days=397)
_RENEW_WHEN_LEFT = _LEAF_LIFE / 3
# A host's clock may run behind the controller's.
_CLOCK_SKEW = timedelta(days=1)


class Identity(NamedTuple):
    """
    What a peer shows in a TLS handshake.

    certificate, key: PEM.
    """

    certificate: bytes
    key: bytes


def agent_name(host_id: str) -> str:
    """
    Return the DNS name that the certificate of a host's agent always has, whatever the host's address.

    A client that reaches the agent by another way (a tunnel, a second address) asks for this name instead. `.invalid`
    is never resolved (RFC 6761).
    """
    label = re.sub("[^a-z0-9-]", "-", host_id.lower())
    return f"{label[:63]}.agent.blockferry.invalid"


def expiry(certificate: bytes) -> datetime:
    """Return when a certificate (PEM) ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


class Authority:
    """
    A certificate authority and its key.

    certificate: PEM, what both sides trust.
    """

    def __init__(self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._directory = directory
        self._certificate = certificate
        self._key = key

    @classmethod
    def open(cls, state: Path) -> Self:
        """
        Return the authority of the controller whose state directory is `state`; make it if there is none.

        Controllers that start at the same time get the same one. Raises DeployError when its files cannot be used.
        """
        directory = state / "pki"
        try:
            if not directory.is_dir():
                with faults.writing(directory):
                    _create(directory)
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
            key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise errors.DeployError(
                f"The certificate authority in {directory} cannot be used: {error}.",
                "See whether this user may read it. If it is damaged, restore that directory from a backup, or move it "
                "away and deploy every agent again.",
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise errors.DeployError(
                f"The key and the certificate in {directory} do not belong together.",
                "Restore that directory from a backup, or move it away and deploy every agent again.",
            )
        return cls(directory, certificate, key)

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def controller(self) -> Identity:
        """Return the controller's identity, made or renewed when it is time. Raises DeployError."""
        path = self._directory / "controller.pem"
        stored = self._read_controller(path)
        if stored is not None:
            return stored
        identity = self._issue(CONTROLLER_ROLE, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        with faults.writing(path):
            files.replace(path, identity.key + identity.certificate)
        return identity

    def _read_controller(self, path: Path) -> Identity | None:
        try:
            pem = path.read_bytes()
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(pem, password=None)
        except (OSError, ValueError):
            return None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            return None
        return _identity(certificate, key) if self._is_fresh(certificate) else None

    def agent(self, host_id: str, address: str) -> Identity:
        """Issue a new identity for the agent of a host. address: IP address or DNS name that clients connect to."""
        return self._issue(AGENT_ROLE, ExtendedKeyUsageOID.SERVER_AUTH, _agent_names(host_id, address))

    def is_fresh(self, certificate: bytes, host_id: str, address: str) -> bool:
        """Say whether the certificate (PEM) of an agent is ours, has its names, and need not be renewed yet."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return False
        wanted = [x509.UniformResourceIdentifier(AGENT_ROLE), *_agent_names(host_id, address)]
        return list(names) == wanted and self._is_fresh(parsed)

    def _is_fresh(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return certificate.not_valid_after_utc - datetime.now(UTC) > _RENEW_WHEN_LEFT

    def _issue(self, role: str, usage: x509.ObjectIdentifier, names: list[x509.GeneralName]) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_subject(role.replace(":", "-")))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + _LEAF_LIFE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(role), *names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _identity(certificate, key)


def _agent_names(host_id: str, address: str) -> list[x509.GeneralName]:
    try:
        reached_at: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        reached_at = x509.DNSName(address.encode("idna").decode())
    return [reached_at, x509.DNSName(agent_name(host_id))]


def _create(directory: Path) -> None:
    """Make a new authority in `directory`, unless somebody else is faster."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".pki.", dir=directory.parent))
    try:
        key = ec.generate_private_key(ec.SECP256R1())
        files.replace(new / "ca.key", _key_pem(key))
        files.replace(new / "ca.crt", _self_signed(key).public_bytes(serialization.Encoding.PEM), mode=0o644)
        # Fails when there is one already: a directory does not replace one that has files in it.
        os.rename(new, directory)  # noqa: PTH104 - Path.rename hides which of the two system calls this is
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A name of its own for each authority: a stranger's is told from ours by its name, not only by its signature.
    name = _subject(f"blockferry authority {x509.random_serial_number():x}"[:64])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _identity(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Identity:
    return Identity(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))
