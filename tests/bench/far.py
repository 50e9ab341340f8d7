"""An object store that is far away and not busy: moto's, whose answers come late, and are not made twice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.component import object_stores
from tests.component.object_stores import Answer, Service


class _Kept(NamedTuple):
    """An answer of the service."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes


class Distance:
    """
    What stands between a service and its clients. Each answer comes `delay` seconds late.

    moto takes 4 ms of a processor to read an object, and one processor is all that it uses: no distance would matter
    beside that. So what was read once is answered from here, until the object is written again.
    """

    def __init__(self, service: Answer, delay: float) -> None:
        self._service = service
        self._delay = delay
        self._kept: dict[str, dict[tuple[str, str], _Kept]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        time.sleep(self._delay)
        path = environ["PATH_INFO"]
        part = (environ.get("HTTP_RANGE", ""), environ.get("QUERY_STRING", ""))
        if environ["REQUEST_METHOD"] != "GET" or path.count("/") < 2 or path.endswith("/"):
            with self._lock:
                self._kept.pop(path, None)
            return self._service(environ, start_response)
        with self._lock:
            kept = self._kept.get(path, {}).get(part)
        if kept is None:
            kept = self._ask(environ)
            with self._lock:
                self._kept.setdefault(path, {})[part] = kept
        start_response(kept.status, kept.headers)
        return [kept.body]

    def _ask(self, environ: dict[str, Any]) -> _Kept:
        told: list[Any] = []

        def note(status: str, headers: list[tuple[str, str]], *_: object) -> None:
            told.extend((status, headers))

        body = b"".join(self._service(environ, note))
        return _Kept(told[0], told[1], body)


@contextlib.contextmanager
def serving(delay: float) -> Iterator[Service]:
    """Run a service whose answers come `delay` seconds late."""
    with object_stores.serving() as service:
        service.server.app = Distance(service, delay)
        yield service
