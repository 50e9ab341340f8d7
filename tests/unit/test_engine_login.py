"""Wrong password, wrong CA, nobody there, somebody else there: each its own sentence, none with the password."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from blockferry import engine, errors

PASSWORD = "p&w 'secret'"


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every POST with the server's `answer`: status, content type, body."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, content_type, body = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@contextlib.contextmanager
def server(authority: trustme.CA, status: int, content_type: str, body: bytes) -> Iterator[str]:
    """Run a server with TLS, return its URL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        running.answer = (status, content_type, body)  # type: ignore[attr-defined]
        running.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that do not trust us
        running.socket = tls.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://localhost:{running.server_port}/ovirt-engine/api"
        finally:
            running.shutdown()
            thread.join()


def refused(url: str, ca_file: Path, expected: type[errors.Error], timeout: float = 5) -> str:
    """Connect, expect an error of this class, return its text."""
    with (
        pytest.raises(expected) as caught,
        engine.connect(url, "admin@internal", PASSWORD, ca_file, timeout=timeout),
    ):
        pass
    assert type(caught.value) is expected
    assert caught.value.hint
    assert PASSWORD not in str(caught.value)
    return caught.value.message


def test_wrong_password(authority: trustme.CA, ca_file: Path) -> None:
    answer = b'{"error_code":"access_denied","error":"Cannot authenticate user: The password is incorrect.."}'
    with server(authority, 400, "application/json", answer) as url:
        message = refused(url, ca_file, errors.EngineDenied)
    assert "does not let user 'admin@internal' in: Cannot authenticate user" in message


def test_certificate_of_another_ca(ca_file: Path) -> None:
    with server(trustme.CA(), 200, "application/json", b"{}") as url:
        assert f"is not one that {ca_file} vouches for" in refused(url, ca_file, errors.EngineUnreachable)


def test_certificate_of_another_name(authority: trustme.CA, ca_file: Path) -> None:
    with server(authority, 200, "application/json", b"{}") as url:
        message = refused(url.replace("localhost", "127.0.0.1"), ca_file, errors.EngineUnreachable)
    assert "IP address mismatch" in message


@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_stops_in_the_middle(
    authority: trustme.CA, ca_file: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(answer: Answer) -> None:
        answer.send_response(status)
        answer.send_header("Content-Length", "10")
        answer.end_headers()
        answer.rfile.read()  # until the client gives up

    monkeypatch.setattr(Answer, "do_POST", stall)
    with server(authority, status, "application/json", b"") as url:
        assert "did not answer within 0.2 s" in refused(url, ca_file, errors.EngineUnreachable, timeout=0.2)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b'"hello"', b"[]"])
def test_not_an_engine(authority: trustme.CA, ca_file: Path, body: bytes) -> None:
    with server(authority, 200, "text/html", body) as url:
        assert f"What answers at {url} is not an oVirt engine" in refused(url, ca_file, errors.EngineUnreachable)


def test_nobody_listens(ca_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"https://localhost:{closed.getsockname()[1]}/ovirt-engine/api"
    assert refused(url, ca_file, errors.EngineUnreachable) == f"Nothing listens at {url}."


def test_nobody_answers(ca_file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/ovirt-engine/api"
        message = refused(url, ca_file, errors.EngineUnreachable, timeout=0.2)
    assert "did not answer within 0.2 s" in message


def test_unknown_name(ca_file: Path) -> None:
    message = refused("https://engine.invalid/ovirt-engine/api", ca_file, errors.EngineUnreachable)
    assert message == "The name of the engine in https://engine.invalid/ovirt-engine/api has no address."


def test_a_url_that_is_not_https(ca_file: Path) -> None:
    assert "which is not https" in refused("http://engine/ovirt-engine/api", ca_file, errors.ConfigError)


def test_a_ca_file_that_is_missing_or_none(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    assert str(ca_file) in refused("https://engine/ovirt-engine/api", ca_file, errors.ConfigError)
    ca_file.write_text("no certificate\n")
    assert str(ca_file) in refused("https://engine/ovirt-engine/api", ca_file, errors.ConfigError)
