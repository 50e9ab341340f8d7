"""
The controller's own certificate authority: who may talk to an agent, and who is one.

    <state>/pki/authority.pem     key and certificate of the authority that agents and the controller trust
    <state>/pki/next.pem          those of the one that is to follow it, while it is being replaced
    <state>/pki/controller.pem    the controller's key and certificate
    <state>/pki/revoked.json      controllers' certificates that were taken back and have not ended yet
    <state>/pki/lock              held by whoever changes one of them

A key and its certificate are in one file, so that they always belong together.

    certificate    role in its URI name       may be used as    other names
    controller     blockferry:controller      TLS client        none
    agent          blockferry:agent           TLS server        the host's address; agent_name(host id); its own_name

An agent accepts the controller's role only, so a stolen host certificate opens no other host. A host's key is made for
each deployment and not kept here. Every agent certificate has a name that no other has, and the controller asks for the
one that it issued last: so a new certificate puts the old one out of force on the controller's side. On the agents'
side a new certificate of the controller's does so by the list of revoked ones, which travels with it.

Replacing the authority takes three steps, between which all agents must be reached, and stops no transfer:

                        agents trust    agents show    controller trusts    controller shows
    before              old             old            old                  old
    begin_rotation      old             old            old, next            old
    all agents renewed  old, next       next           old, next            old
    end_rotation        old, next       next           next                 next
    all agents renewed  next            next           next                 next
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from blockferry import errors, files
from blockferry.deploy import faults, issuer
from blockferry.deploy.issuer import Identity, Issuer

CONTROLLER_ROLE = "blockferry:controller"
AGENT_ROLE = "blockferry:agent"

RENEW_WHEN_LEFT = issuer.LEAF_LIFE / 3

_DOMAIN = "agent.blockferry.invalid"
"""`.invalid` is never resolved (RFC 6761)."""


def agent_name(host_id: str) -> str:
    """
    Return the DNS name that the certificates of a host's agent always have, whatever the host's address.

    A client that reaches the agent by another way (a tunnel, a second address) asks for this name instead.
    """
    label = re.sub("[^a-z0-9-]", "-", host_id.lower())
    return f"{label[:63]}.{_DOMAIN}"


def own_name(certificate: bytes) -> str:
    """Return the DNS name that an agent's certificate (PEM) has, and no other."""
    return _own_name(x509.load_pem_x509_certificate(certificate).serial_number)


def expiry(certificate: bytes) -> datetime:
    """Return when a certificate (PEM) ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


class Authority:
    """
    The certificate authority of one controller's state. Several processes may use it at the same time.
    """

    def __init__(self, directory: Path) -> None:
        """Use `open`."""
        self._directory = directory

    @classmethod
    def open(cls, state: Path) -> Self:
        """
        Return the authority of the controller whose state directory is `state`; make it if there is none.

        Controllers that start at the same time get the same one. Raises DeployError when its files cannot be used.
        """
        directory = state / "pki"
        if not directory.is_dir():
            with faults.writing(directory):
                _create(directory)
        authority = cls(directory)
        authority._issuers()
        return authority

    @property
    def trusted(self) -> bytes:
        """The certificates, PEM, of the authorities that agents and the controller trust: two while one is replaced."""
        return b"".join(found.certificate for found in self._issuers())

    @property
    def revoked(self) -> bytes:
        """The controllers' certificates that were taken back, as agents read them (`blockferry_agent.config.Tls`)."""
        return json.dumps({"sha256": sorted(self._revocations())}).encode()

    @property
    def is_rotating(self) -> bool:
        """The authority is being replaced."""
        return self._next_file.exists()

    def controller(self) -> Identity:
        """Return the controller's identity, made or renewed when it is time. Raises DeployError."""
        good = self._good_controller()
        if good is not None:
            return good
        with self._locked():
            # Another process may have been faster.
            return self._good_controller() or self._new_controller()

    def rotate_controller(self) -> Identity:
        """Give the controller a new identity, and take the old one back. Raises DeployError."""
        with self._locked():
            return self._new_controller()

    def agent(self, host_id: str, address: str, also: Sequence[str] = ()) -> Identity:
        """
        Issue a new identity for the agent of a host.

        address: IP address or DNS name that clients connect to.  also: DNS names that it has for a while, besides.
        """
        serial = x509.random_serial_number()
        names = [*_agent_names(host_id, address, serial), *map(x509.DNSName, also)]
        return self._issuers()[-1].issue(AGENT_ROLE, ExtendedKeyUsageOID.SERVER_AUTH, names, serial)

    def is_fresh(self, certificate: bytes, host_id: str, address: str) -> bool:
        """Say whether the certificate (PEM) of an agent is ours, has its names, and need not be renewed yet."""
        try:
            parsed = x509.load_pem_x509_certificate(certificate)
            names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, x509.ExtensionNotFound):
            return False
        role = x509.UniformResourceIdentifier(AGENT_ROLE)
        wanted = [role, *_agent_names(host_id, address, parsed.serial_number)]
        return set(wanted) <= set(names) and self._is_good(certificate, self._issuers()[-1])

    def revoke(self, certificate: bytes) -> None:
        """Take back a controller's certificate (PEM): agents refuse it once they have the list. Raises DeployError."""
        with self._locked():
            self._revoke(certificate)

    def begin_rotation(self) -> None:
        """Begin to replace the authority, or go on with it. Raises DeployError."""
        with self._locked():
            if not self.is_rotating:
                with faults.writing(self._next_file):
                    files.replace(self._next_file, Issuer.new().pem)

    def end_rotation(self) -> None:
        """
        Trust the new authority alone, once every agent does so, too; nothing when none is being replaced.

        Raises DeployError.
        """
        with self._locked():
            if not self.is_rotating:
                return
            with faults.writing(self._authority_file):
                self._next_file.replace(self._authority_file)
                files.make_durable(self._directory)
            self._new_controller()

    @property
    def _authority_file(self) -> Path:
        return self._directory / "authority.pem"

    @property
    def _next_file(self) -> Path:
        return self._directory / "next.pem"

    @property
    def _controller_file(self) -> Path:
        return self._directory / "controller.pem"

    def _issuers(self) -> list[Issuer]:
        """Return the authority, and behind it the one that is to follow, if there is one. Raises DeployError."""
        try:
            pems = [_authority(self._directory)]
            with contextlib.suppress(FileNotFoundError):
                pems.append(self._next_file.read_bytes())
            return [Issuer.load(pem) for pem in pems]
        except (OSError, ValueError) as error:
            raise errors.DeployError(
                f"The certificate authority in {self._directory} cannot be used: {error}.",
                "See whether this user may read it. If it is damaged, restore that directory from a backup, or move it "
                "away and deploy every agent again.",
            ) from error

    def _issue(self, role: str, usage: x509.ObjectIdentifier, names: Sequence[x509.GeneralName]) -> Identity:
        """Issue what the agents must accept now: by the authority that all of them trust."""
        return self._issuers()[0].issue(role, usage, names)

    def _stored_controller(self) -> Identity | None:
        try:
            return Identity.load(self._controller_file.read_bytes())
        except (OSError, ValueError):
            return None

    def _good_controller(self) -> Identity | None:
        """Return the stored identity if it may still be shown."""
        stored = self._stored_controller()
        if stored is None or not self._is_good(stored.certificate, self._issuers()[0]):
            return None
        parsed = x509.load_pem_x509_certificate(stored.certificate)
        return None if _fingerprint(parsed) in self._revocations() else stored

    def _new_controller(self) -> Identity:
        # First, so that the old identity is not left in force by a crash in between: then `controller` makes a new one.
        old = self._stored_controller()
        if old is not None:
            self._revoke(old.certificate)
        identity = self._issue(CONTROLLER_ROLE, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        with faults.writing(self._controller_file):
            files.replace(self._controller_file, identity.key + identity.certificate)
        return identity

    def _is_good(self, certificate: bytes, by: Issuer) -> bool:
        return by.has_issued(certificate) and expiry(certificate) - datetime.now(UTC) > RENEW_WHEN_LEFT

    def _revocations(self) -> dict[str, int]:
        """Return the fingerprints of certificates that were taken back, with when they end, seconds since 1970."""
        path = self._directory / "revoked.json"
        try:
            document = json.loads(path.read_bytes())
            return {str(fingerprint): int(ends) for fingerprint, ends in document.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise errors.DeployError(
                f"The list of revoked certificates {path} cannot be used: {error}.", "Restore it from a backup."
            ) from error

    def _revoke(self, certificate: bytes) -> None:
        parsed = x509.load_pem_x509_certificate(certificate)
        now = datetime.now(UTC).timestamp()
        # One that has ended is refused anyway.
        kept = {fingerprint: ends for fingerprint, ends in self._revocations().items() if ends > now}
        kept[_fingerprint(parsed)] = int(parsed.not_valid_after_utc.timestamp())
        path = self._directory / "revoked.json"
        with faults.writing(path):
            files.replace(path, json.dumps(kept).encode())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Change the files alone."""
        path = self._directory / "lock"
        with faults.writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _authority(directory: Path) -> bytes:
    """Return key and certificate of the authority. Version 0.1.0 had them in two files. Raises OSError."""
    try:
        return (directory / "authority.pem").read_bytes()
    except FileNotFoundError:
        return (directory / "ca.key").read_bytes() + (directory / "ca.crt").read_bytes()


def _agent_names(host_id: str, address: str, serial: int) -> list[x509.GeneralName]:
    try:
        reached_at: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        reached_at = x509.DNSName(address.encode("idna").decode())
    return [reached_at, x509.DNSName(agent_name(host_id)), x509.DNSName(_own_name(serial))]


def _own_name(serial: int) -> str:
    return f"{serial:x}.{_DOMAIN}"


def _fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate's DER in hex, as agents make it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _create(directory: Path) -> None:
    """Make a new authority in `directory`, unless somebody else is faster."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".pki.", dir=directory.parent))
    try:
        files.replace(new / "authority.pem", Issuer.new().pem)
        # Fails when there is one already: a directory does not replace one that has files in it.
        os.rename(new, directory)  # noqa: PTH104 - Path.rename hides which of the two system calls this is
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
