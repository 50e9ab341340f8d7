"""
The agent's side of mutual TLS, for its gRPC server and for sockets of its own.

Its files may be replaced while it serves: every new handshake uses those that are there then, so a certificate is
renewed without a restart, and what runs is not disturbed.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc

from blockferry_agent import certificate
from blockferry_agent.config import ConfigError, Tls
from blockferry_agent.watched import Watched

log = logging.getLogger(__name__)

CONTROLLER_ROLE = "blockferry:controller"
"""URI name in the only certificates that are served; hosts' own have another (`blockferry.deploy.pki`)."""


class _Identity(NamedTuple):
    """
    Files that belong together.

    key, certificate, ca: PEM.  context: made of them.  expires: of the certificate, seconds since 1970.
    """

    key: bytes
    certificate: bytes
    ca: bytes
    context: ssl.SSLContext
    expires: int


class Certificates:
    """
    What the agent shows, and whom it believes. May be used by any number of threads.

    files: may change.
    """

    def __init__(self, files: Tls) -> None:
        """Raises ConfigError when the files cannot be used."""
        self._identity = Watched([files.certificate, files.key, files.ca], lambda: _load(files))
        revoked = [] if files.revoked is None else [files.revoked]
        self._revoked = Watched(revoked, lambda: frozenset().union(*map(_load_revoked, revoked)))
        self._told_expired: _Identity | None = None

    def context(self) -> ssl.SSLContext:
        """Return what a socket of the agent's own, opened now, speaks TLS with."""
        return self._current().context

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return what a gRPC server speaks TLS with."""
        served = self._current()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Return what has changed since the last handshake; None when nothing has."""
            nonlocal served
            current = self._current()
            if current is served:
                return None
            served = current
            return _configuration(current)

        # types-grpcio does not know that None is an answer, too.
        return grpc.dynamic_ssl_server_credentials(
            _configuration(served),
            fetch,  # type: ignore[arg-type]
            require_client_authentication=True,
        )

    def is_revoked(self, der: bytes) -> bool:
        """Say whether a controller's certificate was taken back."""
        return certificate.fingerprint(der) in self._revoked.get()

    @property
    def expires(self) -> int:
        """When the agent's own certificate ends, in seconds since 1970."""
        return self._current().expires

    def _current(self) -> _Identity:
        identity = self._identity.get()
        if identity.expires < time.time() and self._told_expired is not identity:
            self._told_expired = identity
            log.error(
                "the agent's certificate has expired, and controllers refuse it: "
                "run `blockferry agent rotate-certs`, or deploy the agent again"
            )
        return identity


def is_controller(peer: ssl.SSLSocket) -> bool:
    """Return whether a peer, whose certificate the handshake has verified, is a controller."""
    shown = peer.getpeercert()
    assert shown is not None, "asked before the handshake"
    # typeshed has one type for every field; this one's items are pairs of kind and name.
    names: Sequence[tuple[str, str]] = shown.get("subjectAltName", ())  # type: ignore[assignment]
    return [name for kind, name in names if kind == "URI"] == [CONTROLLER_ROLE]


def _configuration(identity: _Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], identity.ca)


def _load(files: Tls) -> _Identity:
    """Raises ConfigError, also when the files do not belong together."""
    key, own, ca = (_read(path) for path in (files.key, files.certificate, files.ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # No session is resumed, and after the handshake nothing comes but what is asked for.
    context.num_tickets = 0
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
        # ssl takes them from a file only. This one has what was read above, which no file may hold any more.
        with open(os.memfd_create("agent.pem"), "wb") as file:
            file.write(key + b"\n" + own)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
        expires = certificate.expiry(certificate.from_pem(own))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"The certificate {files.certificate}, its key {files.key} or the authority {files.ca} cannot be used: "
            f"{reason}.",
            "See whether the certificate and key are PEM files that belong together; else deploy the agent again.",
        ) from None
    return _Identity(key, own, ca, context, expires)


def _load_revoked(path: Path) -> frozenset[str]:
    """Return the fingerprints of certificates that were taken back. Raises ConfigError."""
    try:
        document = json.loads(_read(path))
        return frozenset(str(fingerprint) for fingerprint in document["sha256"])
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"The list of revoked certificates {path} cannot be used: it is no JSON object with a list sha256.",
            "Deploy the agent again.",
        ) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", "Deploy the agent again.") from None
