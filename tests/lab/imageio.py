"""
The real ovirt-imageio daemon, and tickets on its control socket.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path

from tests.lab import errors, processes
from tests.lab.certificates import Certificate


class Daemon:
    """
    port: HTTPS on 127.0.0.1.  control_socket: tickets.  data_socket: images for clients on the host, plain HTTP.
    """

    def __init__(self, directory: Path, certificate: Certificate, ca: Path, lab: Path) -> None:
        self.port = processes.free_port()
        self.control_socket = directory / "control.sock"
        self.data_socket = directory / "data.sock"
        self._directory = directory
        self._lab = lab
        (directory / "conf.d").mkdir()
        (directory / "conf.d/60-vdsm.conf").write_text(self._configuration(certificate, ca))
        self.start()

    def start(self) -> None:
        """Returns at once; wait() waits."""
        self._process = processes.Daemon(
            [Path(sys.executable).with_name("ovirt-imageio"), "--conf-dir", self._directory],
            lab=self._lab,
            log=self._directory / "daemon.log",
        )

    def wait(self) -> None:
        """Wait until it answers."""
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        self._process.stop()

    def restart(self) -> None:
        """Same port and sockets; every ticket is forgotten."""
        self.stop()
        self.start()
        self.wait()

    def add_ticket(self, ticket: dict[str, object]) -> None:
        self._request("PUT", str(ticket["uuid"]), ticket)

    def get_ticket(self, ticket_id: str) -> dict[str, object] | None:
        status, body = self._send("GET", ticket_id)
        if status == http.HTTPStatus.NOT_FOUND:
            return None
        _check(status, body)
        ticket: dict[str, object] = json.loads(body)
        return ticket

    def extend_ticket(self, ticket_id: str, timeout: int) -> None:
        self._request("PATCH", ticket_id, {"timeout": timeout})

    def remove_ticket(self, ticket_id: str) -> None:
        self._request("DELETE", ticket_id)

    def _request(self, method: str, ticket_id: str, body: object = None) -> None:
        _check(*self._send(method, ticket_id, body))

    def _send(self, method: str, ticket_id: str, body: object = None) -> tuple[int, bytes]:
        connection = _UnixConnection(self.control_socket)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, f"/tickets/{ticket_id}", data)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError as error:
            raise errors.HostError(f"ovirt-imageio does not answer: {error}") from error
        finally:
            connection.close()

    def _answers(self) -> bool:
        """Its sockets are bound one after the other, the control socket last."""
        try:
            self.get_ticket("none")
        except errors.HostError:
            return False
        return True

    def _configuration(self, certificate: Certificate, ca: Path) -> str:
        return f"""
[daemon]
systemd_enable = false
drop_privileges = false
run_dir = {self._directory}
[tls]
enable = true
key_file = {certificate.key}
cert_file = {certificate.certificate}
ca_file = {ca}
[remote]
host = 127.0.0.1
port = {self.port}
[local]
enable = true
socket = {self.data_socket}
[control]
transport = unix
socket = {self.control_socket}
remove_timeout = 10
[profile]
filename = {self._directory}/profile
[handlers]
keys = stderr
[logger_root]
level = INFO
handlers = stderr
"""


def _check(status: int, body: bytes) -> None:
    if status >= http.HTTPStatus.BAD_REQUEST:
        raise errors.HostError(f"ovirt-imageio answered {status}: {body.decode()}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
