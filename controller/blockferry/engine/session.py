"""
Requests to one engine, with the SDK.

    call    once
    ask     again and again while the engine is away, for requests that may be repeated

A request is a function of the SDK's system service:

    session.call("read the hosts", lambda api: api.hosts_service().list())

An SDK connection holds a lock while it waits for an answer, so each request takes one for itself from a pool; one
session serves any number of threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ovirtsdk4

from blockferry import errors
from blockferry.engine import faults, polling, sso

T = TypeVar("T")
Api = Any  # ovirtsdk4.services.SystemService: the SDK has no type hints


class Session:
    """
    One user at one engine. Close it.

    Raises ConfigError when the URL or the CA file cannot be used; sends nothing before the first request.
    """

    def __init__(self, place: faults.Place, password: str, deadlines: polling.Deadlines) -> None:
        if urllib.parse.urlsplit(place.url).scheme != "https":
            raise errors.ConfigError(
                f"The engine's URL is '{place.url}', which is not https.",
                "It usually is https://NAME/ovirt-engine/api.",
            )
        self.deadlines = deadlines
        self.place = place
        self._login = sso.Login(place, password)
        self._lock = threading.Lock()
        self._idle: list[_Client] = []
        self._away_since: float | None = None

    def close(self) -> None:
        """Log out and close all connections. No request may be under way."""
        for client in self._idle:
            client.close(logout=False)
        self._idle.clear()
        self._login.revoke()

    def call(self, task: str, request: Callable[[Api], T]) -> T:
        """
        Send one request, return what the SDK makes of the answer.

        task: what is asked for, to stand after "refused to" in an error: "read the hosts".
        Raises the errors of `faults`.
        """
        try:
            with self._client() as client:
                answer = request(client.system_service())
        except ovirtsdk4.Error as error:
            mapped = faults.from_sdk(error, task, self.place)
            self._note(mapped)
            raise mapped from error
        except errors.Error as error:  # from the login
            self._note(error)
            raise
        except Exception as error:
            # The SDK's XML reader raises what it stumbles over: a number that is none, an element that is missing.
            raise faults.nonsense(self.place, task, str(error)) from error
        self._note(None)
        return answer

    def ask(self, task: str, request: Callable[[Api], T], patience: polling.Patience | None = None) -> T:
        """
        Like call, but a request that may be repeated: rides out an engine that is away.

        Gives up with EngineUnreachable when the engine has been away for `deadlines.outage`, counted from the first
        request of any thread that it left unanswered: so a clean-up after an outage does not wait for another one.
        Raises Interrupted when the patience ends.
        """
        for _ in polling.ticks(self.deadlines.outage, patience):
            try:
                return self.call(task, request)
            except errors.EngineUnreachable as error:
                last = error
                if self._away() >= self.deadlines.outage:
                    break
        raise last

    @contextlib.contextmanager
    def _client(self) -> Iterator[_Client]:
        """Lend an idle connection, or a new one. After an error its state is unknown, so it is not used again."""
        with self._lock:
            client = self._idle.pop() if self._idle else _Client(self.place, self._login)
        try:
            yield client
        except BaseException:
            client.close(logout=False)
            raise
        with self._lock:
            self._idle.append(client)

    def _note(self, error: errors.Error | None) -> None:
        """Remember since when the engine has been away."""
        if not isinstance(error, errors.EngineUnreachable):
            self._away_since = None
        elif self._away_since is None:
            self._away_since = time.monotonic()

    def _away(self) -> float:
        """Seconds since the engine last answered somebody."""
        since = self._away_since
        return 0 if since is None else time.monotonic() - since


class _Client(ovirtsdk4.Connection):  # type: ignore[misc]  # the SDK has no type hints
    """The SDK's connection with the session's token, and with errors that keep the status of a web page."""

    def __init__(self, place: faults.Place, login: sso.Login) -> None:
        super().__init__(
            url=place.url, username=place.username, ca_file=str(place.ca_file), timeout=max(1, round(place.timeout))
        )
        self._login = login

    def _get_access_token(self) -> str:
        # The SDK calls this before the first request, and once when a request is answered with 401.
        return self._login.token(refused=self._sso_token)

    def check_xml_content_type(self, response: Any) -> None:
        try:
            super().check_xml_content_type(response)
        except ovirtsdk4.Error as error:
            raise faults.NotXml(str(error), code=response.code) from error
