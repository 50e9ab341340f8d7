"""
HTTPS for a WSGI application: threads, HTTP/1.1, one port that stays the same when the server is started again.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import Any

import flask
from werkzeug.serving import BaseWSGIServer, ThreadedWSGIServer, WSGIRequestHandler


class Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self) -> bool:
        """werkzeug answers `Expect: 100-continue` itself; the base class would do it a second time."""
        return True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not on the terminal of a test."""

    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            super().log(type, message, *args)

    def handle(self) -> None:
        # A client that goes away, or does not trust us, is its own business.
        with contextlib.suppress(OSError):
            super().handle()


class TlsServer(ThreadedWSGIServer):
    """The handshake belongs to the thread of its connection: a silent client must not keep others out."""

    daemon_threads = True

    def __init__(self, port: int, app: flask.Flask, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__("127.0.0.1", port, app, handler=Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(60)
        return (
            self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False),
            address,
        )


class Server:
    """
    port: chosen by the system at the first start, the same ever after.
    """

    def __init__(self, app: flask.Flask, context: ssl.SSLContext) -> None:
        self._app = app
        self._context = context
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        self._server = TlsServer(self.port, self._app, self._context)
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="engine", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening. Requests that were accepted are answered."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None
