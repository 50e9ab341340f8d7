"""
The border: every failure of the SDK, of curl, of TLS and of the SSO service becomes one of ours here.

    no name, nobody listens, no answer in time, broken off      EngineUnreachable
    certificate of another CA                                   EngineUnreachable
    a web page where XML should be: no engine, or one starting  EngineUnreachable
    wrong password, session refused, 403                        EngineDenied
    404 with an empty body                                      NotFound
    409                                                         Occupied (a Conflict)
    any other fault                                             Refused (an EngineError)
"""

from __future__ import annotations

import dataclasses
import re
import socket
import ssl
import urllib.error
from pathlib import Path

import ovirtsdk4

from blockferry import errors


@dataclasses.dataclass(frozen=True)
class Place:
    """
    An engine and how it is reached; the sentences about failures name it.

    url: "https://NAME/ovirt-engine/api".  ca_file: PEM; no other CA is trusted.  timeout: seconds per request.
    """

    url: str
    username: str
    ca_file: Path
    timeout: float


class Refused(errors.EngineError):
    """The engine said no. status: HTTP status.  detail: its own words, without the brackets around them."""

    def __init__(self, task: str, status: int, detail: str) -> None:
        super().__init__(f"The engine refused to {task}: {detail or f'HTTP status {status}, without a reason'}.")
        self.status = status
        self.detail = detail


class Occupied(errors.Conflict):
    """The engine said: not now (409). detail: its own words."""

    def __init__(self, task: str, detail: str) -> None:
        super().__init__(
            f"The engine cannot {task} now: {detail or 'it is busy'}.",
            "Try again when what is under way has ended.",
        )
        self.detail = detail


class NotXml(ovirtsdk4.Error):  # type: ignore[misc]  # the SDK has no type hints
    """An answer that is not of the API, most often a web page. code: HTTP status."""


# What curl calls its failures (libcurl-errors(3)).
CURL_NO_HOST = (5, 6)
CURL_NOT_CONNECTED = 7
CURL_TOO_LATE = 28
CURL_BAD_CERTIFICATE = (51, 60)

# The SDK keeps curl's number only in the text: "(60, '...')" or "[(<pycurl.Curl object at 0x…>, 60, '...')]".
_CURL_ERROR = re.compile(r"\((?:<[^>]*>, )?(\d+), ['\"](.*?)['\"]\)")


def from_sdk(error: ovirtsdk4.Error, task: str, place: Place) -> errors.Error:
    """
    Return our error for one of the SDK's.

    task: what was asked for, to stand after "refused to": "read VM 'db01'".
    """
    status = error.code
    if status is None:
        return _from_curl(str(error), task, place)
    if status in (502, 503, 504) or (isinstance(error, NotXml) and status == 404):
        return not_an_engine(place, f"HTTP status {status}")
    detail = _detail(error.fault)
    if status in (401, 403):
        return _denied(status, detail, task, place)
    if status == 404:
        return errors.NotFound(f"The engine cannot {task}: it knows no such thing (any more).")
    return Occupied(task, detail) if status == 409 else Refused(task, status, detail)


def from_network(error: OSError, place: Place) -> errors.EngineUnreachable:
    """Return our error for what went wrong between us and the SSO service."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return wrong_certificate(place, reason.verify_message)
    if isinstance(reason, socket.gaierror):
        return no_such_name(place)
    if isinstance(reason, TimeoutError):
        return too_late(place)
    if isinstance(reason, ConnectionRefusedError):
        return not_listening(place)
    return broken(place, str(reason))


def wrong_certificate(place: Place, reason: str) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"The certificate of the engine at {place.url} is not one that {place.ca_file} vouches for: {reason}.",
        "Use the engine's own CA certificate (services/pki-resource?resource=ca-certificate&format=X509-PEM-CA) and"
        " the name that is in its certificate.",
    )


def no_such_name(place: Place) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"The name of the engine in {place.url} has no address.", "Check the URL and the name service."
    )


def not_listening(place: Place) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"Nothing listens at {place.url}.", "Check the address and the port, and that ovirt-engine and httpd run."
    )


def too_late(place: Place) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"The engine at {place.url} did not answer within {place.timeout:g} s.",
        "Check the network and the engine's load, or allow more time.",
    )


def broken(place: Place, reason: str) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"The connection to the engine at {place.url} broke: {reason}.", "Check the network and the port in the URL."
    )


def not_an_engine(place: Place, reason: str) -> errors.EngineUnreachable:
    return errors.EngineUnreachable(
        f"What answers at {place.url} is not an oVirt engine, or one that is still starting: {reason}.",
        "Check the URL, usually https://NAME/ovirt-engine/api, and that ovirt-engine runs.",
    )


def _denied(status: int, detail: str, task: str, place: Place) -> errors.EngineDenied:
    if status == 401:
        return errors.EngineDenied(
            f"The engine at {place.url} does not accept the session of user '{place.username}'.",
            "See whether the user is still enabled.",
        )
    return errors.EngineDenied(
        f"User '{place.username}' may not {task}: {detail or 'not authorized'}.",
        "Give the user a role that allows it, for example UserVmManager on the VM and DiskOperator on its disks.",
    )


def nonsense(place: Place, task: str, reason: str) -> errors.EngineError:
    return errors.EngineError(
        f"The engine at {place.url} was asked to {task}, and its answer makes no sense: {reason}",
        "See the engine's log, /var/log/ovirt-engine/engine.log.",
    )


def _from_curl(text: str, task: str, place: Place) -> errors.Error:
    found = _CURL_ERROR.search(text)
    if not found:
        return nonsense(place, task, text)
    code, reason = int(found[1]), found[2]
    if code in CURL_NO_HOST:
        return no_such_name(place)
    if code == CURL_NOT_CONNECTED:
        return not_listening(place)
    if code == CURL_TOO_LATE:
        return too_late(place)
    if code in CURL_BAD_CERTIFICATE:
        return wrong_certificate(place, reason)
    return broken(place, reason)


def _detail(fault: ovirtsdk4.types.Fault | None) -> str:
    """The engine's sentences. It prints a Java list, "[a., b.]"; an empty one is what a failed redefinition gives."""
    if fault is None:
        return ""
    return (fault.detail or fault.reason or "").strip().removeprefix("[").removesuffix("]").rstrip(". ")
