"""Certificates: a key and a self-signed certificate that issue others, and what is issued."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

AUTHORITY_LIFE = timedelta(days=20 * 365)
LEAF_LIFE = timedelta(days=90)
# A host's clock may run behind the controller's.
_CLOCK_SKEW = timedelta(days=1)


class Identity(NamedTuple):
    """
    What a peer shows in a TLS handshake.

    certificate, key: PEM.
    """

    certificate: bytes
    key: bytes

    @classmethod
    def of(cls, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Self:
        return cls(_pem(certificate), _key_pem(key))

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Return what a file with key and certificate holds. Raises ValueError when they do not belong together."""
        return cls.of(*_load(pem))


class Issuer:
    """A certificate that issues others, and its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def new(cls) -> Self:
        key = ec.generate_private_key(ec.SECP256R1())
        # A name of its own for each: a stranger's is told from ours by its name, not only by its signature.
        name = _subject(f"blockferry authority {x509.random_serial_number():x}"[:64])
        certificate = (
            _builder(key, name, name, AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, pem: bytes) -> Self:
        """Return the issuer whose `pem` this is. Raises ValueError when key and certificate do not belong together."""
        return cls(*_load(pem))

    @property
    def pem(self) -> bytes:
        """Key and certificate, as `load` takes them. A secret."""
        return _key_pem(self._key) + _pem(self._certificate)

    @property
    def certificate(self) -> bytes:
        """PEM."""
        return _pem(self._certificate)

    def issue(
        self, role: str, usage: x509.ObjectIdentifier, names: Sequence[x509.GeneralName], serial: int | None = None
    ) -> Identity:
        """
        Issue a certificate for a new key.

        role: its URI name.  usage: of the key in TLS.  names: besides.  serial: its number; None for any.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(role.replace(":", "-"))
        certificate = (
            _builder(key, subject, self._certificate.subject, LEAF_LIFE, serial)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(role), *names]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Identity.of(certificate, key)

    def has_issued(self, certificate: bytes) -> bool:
        """Say whether a certificate (PEM) is this issuer's."""
        try:
            x509.load_pem_x509_certificate(certificate).verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


def _load(pem: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key and the certificate do not belong together")
    return certificate, key


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, life: timedelta, serial: int | None = None
) -> x509.CertificateBuilder:
    """Begin a certificate: what every one of ours has."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
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


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
