"""
The engine's single sign-on: one token for all connections of a session.

We ask for it ourselves, not through the SDK: the SDK sets no time-out on these requests, and each of its connections
would log in for itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request

from blockferry import errors
from blockferry.engine import faults


class Login:
    """
    The token of one user at one engine; may be used from several threads.

    Nothing is sent until the first token() call.
    """

    def __init__(self, place: faults.Place, password: str) -> None:
        self._place = place
        self._password = password
        self._tls = _trust(place)
        self._lock = threading.Lock()
        self._token: str | None = None

    def token(self, refused: str | None = None) -> str:
        """
        Return the token in force.

        refused: the token that the engine does not accept any more; a new one is fetched unless another thread did.
        Raises EngineDenied for a wrong user or password, EngineUnreachable when no engine answers.
        """
        with self._lock:
            if self._token is None or self._token == refused:
                self._token = self._ask_for_token()
            return self._token

    def revoke(self) -> None:
        """End the session in the engine; one that cannot be ended now expires by itself."""
        with self._lock:
            token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(errors.EngineError):
                self._post("services/sso-logout", {"scope": "ovirt-app-api", "token": token})

    def _ask_for_token(self) -> str:
        answer = self._post(
            "sso/oauth/token",
            {
                "grant_type": "password",
                "scope": "ovirt-app-api",
                "username": self._place.username,
                "password": self._password,
            },
        )
        if isinstance(token := answer.get("access_token"), str):
            return token
        reason = answer.get("error_description") or answer.get("error") or "it gave no token"
        raise errors.EngineDenied(
            f"The engine at {self._place.url} does not let user '{self._place.username}' in: {reason}",
            "Check the user, which needs its profile (admin@internal), and the password.",
        )

    def _post(self, path: str, form: dict[str, str]) -> dict[str, object]:
        """Post a form to the SSO service, return its JSON object."""
        request = urllib.request.Request(  # noqa: S310 - the scheme is https, see session
            urllib.parse.urljoin(self._place.url, f"/ovirt-engine/{path}"),
            data=urllib.parse.urlencode(form).encode(),
            headers={"Accept": "application/json"},
        )
        try:
            body = self._send(request)
        except OSError as error:
            raise faults.from_network(error, self._place) from error
        except http.client.HTTPException as error:
            raise faults.not_an_engine(self._place, repr(error)) from error
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise faults.not_an_engine(self._place, "there is no single sign-on") from error
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(answer, dict):
            raise faults.not_an_engine(self._place, "there is no single sign-on")
        return answer

    def _send(self, request: urllib.request.Request) -> bytes:
        """Return the body of the answer, whatever its status: a wrong password has status 400 and JSON."""
        try:
            reply = urllib.request.urlopen(request, timeout=self._place.timeout, context=self._tls)  # noqa: S310
        except urllib.error.HTTPError as refusal:
            reply = refusal
        with reply:
            return bytes(reply.read())


def _trust(place: faults.Place) -> ssl.SSLContext:
    """Trust the configured CA and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(place.ca_file)
    except OSError as error:  # ssl.SSLError too
        raise errors.ConfigError(
            f"The CA certificate {place.ca_file} cannot be used: {error}.",
            "Fetch it from the engine: services/pki-resource?resource=ca-certificate&format=X509-PEM-CA.",
        ) from error
    return context
