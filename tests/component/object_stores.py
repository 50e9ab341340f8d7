"""
An S3 service on loopback, for the tests: moto's, in a thread of this process, with room for faults in front of it.

    with object_stores.serving() as s3:
        s3.make_bucket("bucket")
        s3.fail(object_stores.status(503, "SlowDown"), times=2)      the next two requests
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

Answer = Callable[[dict[str, Any], Any], Iterable[bytes]]
"""A WSGI application."""
Fault = Callable[[Answer], Answer]
"""What stands in for the service for one request; it is given the service."""


class Service:
    """
    The service.

    url: its endpoint.  requests: methods and paths of what it was asked, in order.  delay: seconds before each answer.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        # Each service of AWS has its own state; here only S3 is asked for.
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.server: BaseWSGIServer = make_server("127.0.0.1", 0, self, threaded=True, ssl_context=tls)
        self.url = f"{'https' if tls else 'http'}://localhost:{self.server.server_port}"
        self.requests: list[str] = []
        self.delay = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def new_bucket(self) -> str:
        """Make a bucket, return its name."""
        from urllib.request import Request, urlopen

        # moto keeps the buckets of a process, whichever service made them.
        name = f"bucket-{secrets.token_hex(4)}"
        with urlopen(Request(f"{self.url}/{name}", method="PUT"), timeout=30):
            return name

    def fail(self, *faults: Fault, times: int = 1) -> None:
        """Let the next requests meet these faults, all of them so many times over."""
        with self._lock:
            self._faults = list(faults) * times

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with self._lock:
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            answer: Answer = self._moto
            if self._faults:
                answer = self._faults.pop(0)(self._moto)
        if self.delay:
            time.sleep(self.delay)
        return answer(environ, start_response)


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    """Run a service. tls: with which it serves HTTPS."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    service = Service(tls)
    thread = threading.Thread(target=service.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        thread.join()
        service.server.server_close()


def status(number: int, code: str) -> Fault:
    """Return the fault that is answered with an S3 error."""

    def instead(service: Answer) -> Answer:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(f"{number} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>A test said so.</Message></Error>".encode()]

        return answer

    return instead


def passing(service: Answer) -> Answer:
    """No fault: so that a later request meets one."""
    return service


def refused_keys(code: str) -> Fault:
    """Return the fault of a request that deletes many: it succeeds, and says in its answer that none was deleted."""

    def instead(service: Answer) -> Answer:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            asked = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            refused = b"".join(
                b"<Error><Key>%s</Key><Code>%s</Code><Message>A test said so.</Message></Error>" % (key, code.encode())
                for key in re.findall(b"<Key>([^<]*)</Key>", asked)
            )
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [b"<DeleteResult>%s</DeleteResult>" % refused]

        return answer

    return instead


def truncated(service: Answer) -> Answer:
    """The connection breaks in the middle of the content."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(
            "200 OK", [("Content-Length", "100"), ("ETag", '"x"'), ("Last-Modified", formatdate(usegmt=True))]
        )
        yield b"x" * 50
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    return answer


def lost_request(service: Answer) -> Answer:
    """The connection breaks before the service has seen the request."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response("200 OK", [])
        return []

    return answer


def lost_answer(service: Answer) -> Answer:
    """The service does what it was asked, and the connection breaks before it says so."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for _ in service(environ, lambda *_: None):
            pass
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start_response("200 OK", [])
        return []

    return answer


def hanging(seconds: float) -> Fault:
    """Return the fault that answers late."""

    def instead(service: Answer) -> Answer:
        def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            time.sleep(seconds)
            return service(environ, start_response)

        return answer

    return instead
