"""
Single sign-on: tokens for passwords, and their end.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping

Reply = tuple[dict[str, str], int]


class Sessions:
    """
    The tokens that are in force. Replies are JSON objects with their status, as the SSO service answers.
    """

    def __init__(self, username: str, password: str) -> None:
        self.username = username
        self._password = password
        self._tokens: set[str] = set()

    def grant(self, form: Mapping[str, str]) -> Reply:
        """POST sso/oauth/token. Errors have status 400; the SDK only looks for the key `error`."""
        grant_type = form.get("grant_type")
        if not grant_type:
            return _error("invalid_request", "Missing parameter: 'grant_type'")
        if grant_type != "password":
            return _error("unsupported_grant_type", f"Unsupported parameter value: 'grant_type': '{grant_type}'")
        if form.get("scope") != "ovirt-app-api":
            return _error("invalid_scope", f"Invalid scope '{form.get('scope')}'")
        username = form.get("username", "")
        if not self._accepts(username, form.get("password", "")):
            return _error(
                "access_denied",
                f"Cannot authenticate user '{username}': The username or password is incorrect..",
            )
        token = secrets.token_urlsafe(64)
        self._tokens.add(token)
        return {
            "access_token": token,
            "scope": "ovirt-app-api",
            "exp": "9223372036854775807",
            "token_type": "bearer",
        }, 200

    def revoke(self, form: Mapping[str, str]) -> Reply:
        """POST services/sso-logout."""
        self._tokens.discard(form.get("token", ""))
        return {}, 200

    def admit(self, authorization: str) -> bool:
        """May a request with this Authorization header go on? Bearer tokens and Basic are known."""
        scheme, _, credentials = authorization.partition(" ")
        if scheme == "Bearer":
            return credentials in self._tokens
        if scheme == "Basic":
            return self._admit_basic(credentials)
        return False

    def expire(self) -> None:
        """Forget every token."""
        self._tokens.clear()

    def _admit_basic(self, credentials: str) -> bool:
        try:
            username, _, password = base64.b64decode(credentials).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return self._accepts(username, password)

    def _accepts(self, username: str, password: str) -> bool:
        return username == self.username and hmac.compare_digest(password.encode(), self._password.encode())


def _error(code: str, text: str) -> Reply:
    return {"error_code": code, "error": text}, 400
