"""
The query parameters that the engine knows everywhere.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import flask

from tests.lab.engine import search, xml

Row = TypeVar("Row")


def selected(rows: Sequence[Row], fields: Mapping[str, Callable[[Row], search.Value]]) -> list[Row]:
    """The rows that `search`, `case_sensitive` and `max` of the request leave."""
    limit = flask.request.args.get("max", type=int)
    return search.select(
        rows,
        flask.request.args.get("search"),
        fields,
        case_sensitive=flag("case_sensitive"),
        limit=None if limit is None or limit < 0 else limit,
    )


def flag(name: str) -> bool:
    return xml.boolean(flask.request.args.get(name))


def correlation_id() -> str:
    """The client's, or one that the engine makes up."""
    return flask.request.args.get("correlation_id") or str(uuid.uuid4())


def all_content() -> bool:
    """The one parameter that may also be a header."""
    return flag("all_content") or xml.boolean(flask.request.headers.get("All-Content"))


def complete() -> xml.Element:
    """The answer to an action that was accepted."""
    return xml.plain("action", {"status": "complete"})
