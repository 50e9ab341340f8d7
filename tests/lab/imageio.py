"""
The real ovirt-imageio daemon, and tickets on its control socket.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sys
from pathlib import Path

from tests.lab import errors
from tests.lab.certificates import Certificate
from tests.lab.places import Place


class Daemon:
    """
    port: HTTPS at the place's address.  control_socket: tickets.  data_socket: images for clients on the host, plain
    HTTP; it may be an abstract one ("@…").
    """

    def __init__(self, place: Place, certificate: Certificate, ca: Path) -> None:
        self.port = place.imageio_port
        self.control_socket = place.control_socket
        self.data_socket = place.data_socket
        self._place = place
        directory = place.directory(place.imageio, "ovirtimg")
        for source, name in ((certificate.certificate, "cert.pem"), (certificate.key, "key.pem"), (ca, "ca.pem")):
            shutil.copy(source, directory / name)
            os.chown(directory / name, directory.stat().st_uid, directory.stat().st_gid)
        configuration = place.directory(place.imageio / "conf.d", "ovirtimg") / "60-vdsm.conf"
        configuration.write_text(self._configuration())
        self.start()

    def start(self) -> None:
        """Returns at once; wait() waits."""
        program = Path(sys.executable).with_name("ovirt-imageio")
        self._process = self._place.daemon(
            "ovirt-imageio", [program, "--conf-dir", self._place.imageio], "ovirtimg", {}
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
        connection = _UnixConnection(self._place.seen(self.control_socket))
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

    def _configuration(self) -> str:
        place = self._place
        data_socket = place.data_socket.replace("@", "\0", 1)
        return f"""
[daemon]
systemd_enable = false
drop_privileges = false
run_dir = {place.control_socket.parent}
[tls]
enable = true
key_file = {place.imageio}/key.pem
cert_file = {place.imageio}/cert.pem
ca_file = {place.imageio}/ca.pem
[remote]
host = {place.address}
port = {self.port}
[local]
enable = true
socket = {data_socket}
[control]
transport = unix
socket = {place.control_socket}
remove_timeout = 10
[profile]
filename = {place.control_socket.parent}/profile
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
