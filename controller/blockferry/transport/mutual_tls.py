"""
The controller's side of mutual TLS: what it shows, and which of the two sides does not take the other's certificate.

gRPC says of a handshake that failed only that it did. So it is tried once more here, with a TLS that tells why.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import NamedTuple

from blockferry import errors

# Seconds for each step of a handshake that is tried again to hear why it fails.
_TIMEOUT = 5.0

_DEPLOY = "Deploy the agent from here (`blockferry agent deploy`)."
_RENEW = "Run `blockferry agent rotate-certs` for this host."
_CLOCKS = "Compare the clocks of the host and of this machine."

# By OpenSSL's X509_V_ERR_…: what is wrong with the certificate that the agent shows, and the next step.
_SHOWN = {
    9: ("shows a certificate that is not valid yet", _CLOCKS),  # CERT_NOT_YET_VALID
    10: ("shows a certificate that has expired", _RENEW),  # CERT_HAS_EXPIRED
    62: ("shows another certificate than the one that was issued to it last", _RENEW),  # HOSTNAME_MISMATCH
    64: ("shows another certificate than the one that was issued to it last", _RENEW),  # IP_ADDRESS_MISMATCH
}
_SHOWN_FOREIGN = ("shows a certificate that this controller's authority did not issue for an agent", _DEPLOY)
_NOT_TAKEN = (
    "does not take this controller's certificate: it trusts another authority, or its clock is wrong",
    f"{_DEPLOY} If it was, compare the clocks of the host and of this machine.",
)


class Credentials(NamedTuple):
    """
    What the controller shows, and whom it believes, PEM.

    ca: certificates of the authorities that sign agents'.  certificate, key: its own.
    """

    ca: bytes
    certificate: bytes
    key: bytes

    def context(self) -> ssl.SSLContext:
        """Return what a socket speaks TLS 1.3 with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cadata=self.ca.decode())
        # Python takes its own certificate and key from a file only. This one is in memory, and gone when it is closed.
        descriptor = os.memfd_create("controller.pem")
        with open(descriptor, "wb") as file:
            file.write(self.key + b"\n" + self.certificate)
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        return context


def refusal(address: str, port: int, server_name: str, credentials: Credentials, where: str) -> errors.Error | None:
    """
    Return why the two sides do not come together, as an error to raise; None when that is not for their certificates.

    server_name: that must be in the agent's.  where: the agent, in the middle of a sentence.
    """
    try:
        if _is_served(address, port, server_name, credentials):
            return None
        what, hint = _NOT_TAKEN
    except ssl.SSLCertVerificationError as error:
        what, hint = _SHOWN.get(error.verify_code, _SHOWN_FOREIGN)
    except OSError:
        return None
    return errors.AgentUnreachable(f"{where[0].upper()}{where[1:]} {what}.", hint)


def _is_served(address: str, port: int, server_name: str, credentials: Credentials) -> bool:
    """
    Shake hands; return whether the agent goes on, which in TLS 1.3 is heard only after the handshake.

    Raises SSLCertVerificationError when it is the agent's certificate that is refused, OSError when nobody answers.
    """
    context = credentials.context()
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((address, port), timeout=_TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=server_name) as channel,
    ):
        try:
            return channel.recv(1) != b""  # gRPC's server speaks first
        except (ssl.SSLError, ConnectionError):
            return False
