"""The certificates of an NBD server, in a directory as QEMU and libnbd lay it out."""

from __future__ import annotations

import ssl
from pathlib import Path

from blockferry import errors

_AUTHORITY = "ca-cert.pem"
_CERTIFICATE = "server-cert.pem"
_KEY = "server-key.pem"


def server_context(directory: Path) -> ssl.SSLContext:
    """Return the TLS of a server whose clients need a certificate of the same authority. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(directory / _AUTHORITY)
        context.load_cert_chain(directory / _CERTIFICATE, directory / _KEY)
    except OSError as error:  # ssl.SSLError is one
        raise errors.ConfigError(
            f"The certificates in {directory} cannot be used: {error.strerror or error}.",
            f"Put {_AUTHORITY}, {_CERTIFICATE} and {_KEY} there, in PEM, the key without a passphrase.",
        ) from None
    return context
