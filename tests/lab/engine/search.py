"""
The engine's search language, as far as clients of backups use it.

    name=db01 and cluster=Default      fields with = != > < >= <=, joined by `and`, `or` or nothing (which means `or`)
    name="my vm"   name=db*            quoted values, wildcards
    b0b0b0b0-…                         a value alone: any field contains it
    … sortby name desc   … page 2      order, and pages of `max` rows
"""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from tests.lab.engine.rejections import BadParameters

Row = TypeVar("Row")
Value = str | int | datetime.datetime | None | Sequence[str]
PAGE_SIZE = 100

_TOKEN = re.compile(
    r"""\s*(?: (?P<term>(?P<field>[\w.]+) \s* (?P<operator>!=|>=|<=|=|>|<) \s* (?P<value>"[^"]*"|[^\s"]*))
          | (?P<word>"[^"]*"|\S+) )""",
    re.VERBOSE,
)
_ORDERS = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


class Term(NamedTuple):
    """field: None for a value alone.  value: without quotes."""

    field: str | None
    operator: str
    value: str


class Query(NamedTuple):
    """alternatives: terms that must all hold, of which one list is enough."""

    alternatives: list[list[Term]]
    sort_field: str | None = None
    descending: bool = False
    page: int | None = None


def select(
    rows: Sequence[Row],
    text: str | None,
    fields: Mapping[str, Callable[[Row], Value]],
    *,
    case_sensitive: bool = False,
    limit: int | None = None,
) -> list[Row]:
    """
    The rows that the text describes, in their own order unless it says `sortby`.

    fields: what the search calls a field, and how to get it.  limit: rows at most; None: all.
    Raises BadParameters for a field that does not exist.
    """
    query = parse(text or "")
    for term in (term for terms in query.alternatives for term in terms):
        if term.field is not None and term.field not in fields:
            raise BadParameters(f"Invalid field '{term.field}' in search text")

    def matches(row: Row) -> bool:
        return not query.alternatives or any(
            all(_holds(term, row, fields, case_sensitive) for term in terms) for terms in query.alternatives
        )

    found = [row for row in rows if matches(row)]
    if query.sort_field is not None:
        key = fields[query.sort_field]
        found.sort(key=lambda row: str(key(row)).lower(), reverse=query.descending)
    if query.page is not None:
        size = limit or PAGE_SIZE
        return found[(query.page - 1) * size : query.page * size]
    return found if limit is None else found[:limit]


def parse(text: str) -> Query:
    query = Query([])
    joined = False
    tokens = _TOKEN.finditer(text)
    for token in tokens:
        word = (token["word"] or "").lower()
        if word == "sortby":
            query = query._replace(sort_field=_next_word(tokens))
        elif word in ("asc", "desc") and query.sort_field:
            query = query._replace(descending=word == "desc")
        elif word == "page":
            query = query._replace(page=int(_next_word(tokens) or 1))
        elif word in ("and", "or"):
            joined = word == "and"
        else:
            term = (
                Term(token["field"].lower(), token["operator"], token["value"].strip('"'))
                if token["term"]
                else Term(None, "=", token["word"].strip('"'))
            )
            if joined and query.alternatives:
                query.alternatives[-1].append(term)
            else:
                query.alternatives.append([term])
            joined = False
    return query


def _next_word(tokens: Iterator[re.Match[str]]) -> str | None:
    token = next(tokens, None)
    return None if token is None else token["word"]


def _holds(term: Term, row: Row, fields: Mapping[str, Callable[[Row], Value]], case_sensitive: bool) -> bool:
    if term.field is None:
        return any(_contains(get(row), term.value) for get in fields.values())
    value = fields[term.field](row)
    if term.operator in _ORDERS:
        return _compare(value, term.operator, term.value)
    values = value if isinstance(value, list | tuple) else [value]
    equal = any(_equal(item, term.value, case_sensitive) for item in values)
    return equal if term.operator == "=" else not equal


def _contains(value: Value, wanted: str) -> bool:
    return value is not None and wanted.lower() in str(value).lower()


def _equal(value: object, wanted: str, case_sensitive: bool) -> bool:
    pattern = ".*".join(re.escape(part) for part in wanted.split("*"))
    flags = 0 if case_sensitive else re.IGNORECASE
    return value is not None and re.fullmatch(pattern, str(value), flags) is not None


def _compare(value: Value, sign: str, wanted: str) -> bool:
    order = _ORDERS[sign]
    if isinstance(value, datetime.datetime):
        limit = datetime.datetime.fromisoformat(wanted)
        return bool(order(value, limit if limit.tzinfo else limit.replace(tzinfo=datetime.UTC)))
    return isinstance(value, int) and wanted.isdigit() and bool(order(value, int(wanted)))
