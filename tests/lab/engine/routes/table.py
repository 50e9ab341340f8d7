"""
A module's routes: which view answers which method and path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

View = TypeVar("View", bound=Callable[..., Any])


class Route(NamedTuple):
    method: str
    path: str
    view: Callable[..., Any]


class Table(list[Route]):
    """
    Filled by decorators. A view returns an XML element, an element with a status, a JSON object with a status, a
    response, or None for an empty body.
    """

    def get(self, path: str) -> Callable[[View], View]:
        return self._route("GET", path)

    def post(self, path: str) -> Callable[[View], View]:
        return self._route("POST", path)

    def put(self, path: str) -> Callable[[View], View]:
        return self._route("PUT", path)

    def delete(self, path: str) -> Callable[[View], View]:
        return self._route("DELETE", path)

    def _route(self, method: str, path: str) -> Callable[[View], View]:
        def add(view: View) -> View:
            self.append(Route(method, path, view))
            return view

        return add
