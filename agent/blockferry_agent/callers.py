"""Who calls the agent, and who is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import grpc

from blockferry_agent import certificate
from blockferry_agent.tls import CONTROLLER_ROLE, Certificates

log = logging.getLogger(__name__)

LOCAL = "local"
"""The name of all who come over the unix socket: gRPC does not tell them apart."""

_REFUSAL = "The agent serves only Blockferry's controller."


class Callers:
    """
    Looks at who calls. May be used by any number of threads.

    certificates: say who is revoked; None when the agent listens at no TCP port.
    """

    def __init__(self, certificates: Certificates | None) -> None:
        self._certificates = certificates

    def check(self, context: grpc.ServicerContext) -> str:
        """
        Return a name for who calls, the same for the same controller; end the call if he is not to be served.

        That is a TLS peer which is no controller, such as another host's agent, and a controller whose certificate was
        taken back. Whoever comes over the unix socket was let in by its file mode.
        """
        # types-grpcio has the values as plain bytes; they are lists.
        secure: Mapping[str, Sequence[bytes]] = context.auth_context()  # type: ignore[assignment]
        if secure.get("transport_security_type") != [b"ssl"]:
            return LOCAL
        if secure.get("peer_uri") != [CONTROLLER_ROLE.encode()]:
            log.warning("refused %s, whose certificate is no controller's", context.peer())
            context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)
        assert self._certificates is not None, "TLS without certificates"
        shown = certificate.from_pem(secure["x509_pem_cert"][0])
        if self._certificates.is_revoked(shown):
            log.warning("refused %s, whose certificate is revoked", context.peer())
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "The controller's certificate is revoked.")
        return certificate.fingerprint(shown)
