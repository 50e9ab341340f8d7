"""Mutual TLS on sockets of our own, with the certificates of the agent's gRPC server."""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from blockferry_agent.config import ConfigError, Tls

CONTROLLER_ROLE = "blockferry:controller"
"""URI name in the only certificates that are served; hosts' own have another (`blockferry.deploy.pki`)."""


def server_context(tls: Tls) -> ssl.SSLContext:
    """Return the agent's side of mutual TLS. Raises ConfigError when the files cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # No session is resumed, and after the handshake nothing comes but what is asked for.
    context.num_tickets = 0
    try:
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise ConfigError(
            f"The certificate {tls.certificate}, its key {tls.key} or the authority {tls.ca} cannot be used: "
            f"{error.strerror or error}.",
            "Deploy the agent again.",
        ) from None
    return context


def is_controller(peer: ssl.SSLSocket) -> bool:
    """Return whether a peer, whose certificate the handshake has verified, is a controller."""
    certificate = peer.getpeercert()
    assert certificate is not None, "asked before the handshake"
    # typeshed has one type for every field; this one's items are pairs of kind and name.
    names: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())  # type: ignore[assignment]
    return [name for kind, name in names if kind == "URI"] == [CONTROLLER_ROLE]
