"""
Requests that the engine turns down: the status code and the `<fault>` of the answer.
"""

from __future__ import annotations


class Rejection(Exception):
    """A request was refused. reason and detail become the fault; both None: the body is empty."""

    status = 400
    reason: str | None = "Operation Failed"

    def __init__(self, *messages: str) -> None:
        super().__init__("; ".join(messages))
        self.detail = "[" + ", ".join(messages) + "]"


class BadParameters(Rejection):
    """A value of the request is wrong."""


class Conflict(Rejection):
    """The state of something forbids it now."""

    status = 409


class Incomplete(Rejection):
    """A mandatory element of the body is missing."""

    reason = "Incomplete parameters"

    def __init__(self, entity: str, fields: str, method: str) -> None:
        super().__init__()
        self.detail = f"{entity} [{fields}] required for {method}"


class Malformed(Rejection):
    """The body is not XML, or not the element that belongs here."""

    reason = "Request syntactically incorrect."

    def __init__(self, detail: str) -> None:
        super().__init__()
        self.detail = detail


class NotFound(Rejection):
    """The entity of the path does not exist: 404 without a body."""

    status = 404
    reason = None
