"""
The agent's configuration: one JSON file, written by `blockferry agent deploy`.

    {
        "listen": ["192.0.2.10:54330", "unix:/opt/blockferry-agent/run/agent.sock"],
        "tls": {"certificate": "tls/agent.crt", "key": "tls/agent.key", "ca": "tls/ca.crt",
                "revoked": "tls/revoked.json"},
        "control_socket": "/run/ovirt-imageio/sock",
        "data_socket": "@/org/ovirt/imageio",
        "nbd_directories": ["/run/vdsm/backup", "/run/vdsm/nbd"],
        "socket_mode": "0600",
        "pid_file": "run/agent.pid",
        "workers": 4,
        "max_reads": 16,
        "keepalive_seconds": 20,
        "socket_ports": [54331, 54340],
        "socket_address": "192.0.2.10",
        "clear_text": false,
        "bytes_per_second": 0
    }

Only `listen` is required, and `tls` as soon as a TCP port is in it. Relative paths are taken from the file's directory.
All files of `tls` may be replaced while the agent runs.
The agent opens no port but those in `listen` and from the first to the last of `socket_ports`. The latter open for one
client of the `netcat` transport each, at `socket_address`; without it, at the addresses of `listen` that are TCP.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NoReturn

from blockferry_agent import errors

# Above this, reads of one disk could take the last of the 8 connections that a qemu-nbd of vdsm serves (`gate`).
MAX_WORKERS = 5
UNIX_PREFIX = "unix:"

_TCP_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):(\d{1,5})")


class ConfigError(errors.Error):
    """The configuration cannot be used: mend it. Stops the agent at its start, so it never crosses the wire."""


@dataclasses.dataclass(frozen=True)
class Tls:
    """
    Files of the agent's side of mutual TLS, PEM.

    certificate, key: the agent's own.  ca: the only authority whose controllers are served; for a while it may be two.
    revoked: JSON, {"sha256": ["…"]}, the certificates of that authority's controllers that were taken back, each by the
    digest of its DER in hex; None when there is no such list.
    """

    certificate: Path
    key: Path
    ca: Path
    revoked: Path | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """
    The whole file.

    listen: "host:port" (mutual TLS), or "unix:path" (no TLS: whom the socket's mode lets in is served).
    socket_mode: of such a socket, like chmod's; never for all users.
    control_socket, data_socket: Image I/O's local sockets; a leading @ means an abstract socket.
    nbd_directories: the only directories in which NBD sockets are opened.
    pid_file: where the process's id stands while it serves.
    workers: connections that read one disk, 1 to 5.  max_reads: disks that are read at once.
    keepalive_seconds: pause between two signs of life for a ticket that is being read.
    socket_ports: which may be opened for clients of `netcat`; empty for none.  socket_addresses: at which they are.
    clear_text: such a client may do without TLS.
    bytes_per_second: limit for all readings together, 0 for none.
    """

    listen: tuple[str, ...]
    tls: Tls | None = None
    control_socket: str = "/run/ovirt-imageio/sock"
    data_socket: str = "@/org/ovirt/imageio"
    nbd_directories: tuple[str, ...] = ("/run/vdsm/backup", "/run/vdsm/nbd")
    socket_mode: int = 0o600
    pid_file: Path | None = None
    workers: int = 4
    max_reads: int = 16
    keepalive_seconds: float = 20.0
    socket_ports: range = range(0)
    socket_addresses: tuple[str, ...] = ()
    clear_text: bool = False
    bytes_per_second: int = 0


def load(path: Path) -> Config:
    """Read the configuration. Raises ConfigError with a sentence that names the file and the key."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration at {path}.", "Deploy the agent again.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"The configuration {path} cannot be read: {error}.") from None
    section = _Section(path, "", document)
    config = _config(section)
    section.finish()
    return config


def _config(section: _Section) -> Config:
    defaults = Config(listen=())
    tls = section.table("tls")
    config = Config(
        listen=section.get("listen", _texts, None),
        tls=None if tls is None else _tls(tls),
        control_socket=section.get("control_socket", _text, defaults.control_socket),
        data_socket=section.get("data_socket", _text, defaults.data_socket),
        nbd_directories=section.get("nbd_directories", _texts, defaults.nbd_directories),
        socket_mode=section.get("socket_mode", _socket_mode, defaults.socket_mode),
        pid_file=section.path("pid_file") if "pid_file" in section else None,
        workers=section.get("workers", _whole_number(1, MAX_WORKERS), defaults.workers),
        max_reads=section.get("max_reads", _whole_number(1, 256), defaults.max_reads),
        keepalive_seconds=section.get("keepalive_seconds", _seconds, defaults.keepalive_seconds),
        socket_ports=section.get("socket_ports", _ports, defaults.socket_ports),
        socket_addresses=_socket_addresses(section),
        clear_text=section.get("clear_text", _yes_or_no, defaults.clear_text),
        bytes_per_second=section.get("bytes_per_second", _whole_number(0, 2**63 - 1), defaults.bytes_per_second),
    )
    for address in config.listen:
        _check_address(section, address, config.tls)
    if config.socket_ports:
        _check_sockets(section, config)
    for directory in config.nbd_directories:
        if not directory.startswith("/"):
            section.refuse("nbd_directories", "a list of absolute paths")
    return config


def _tls(section: _Section) -> Tls:
    tls = Tls(
        section.path("certificate"),
        section.path("key"),
        section.path("ca"),
        section.path("revoked") if "revoked" in section else None,
    )
    section.finish()
    return tls


def _socket_addresses(section: _Section) -> tuple[str, ...]:
    """Return the hosts at which sockets are opened: the one that is named, or those of `listen`."""
    if "socket_address" in section:
        return (section.get("socket_address", _text, None),)
    matches = [_TCP_ADDRESS.fullmatch(address) for address in section.get("listen", _texts, None)]
    return tuple(match[1].strip("[]") for match in matches if match is not None)


def _check_sockets(section: _Section, config: Config) -> None:
    if not config.socket_addresses:
        section.refuse(
            "socket_address", "there, because of socket_ports: the agent listens at no TCP address otherwise"
        )
    if config.tls is None and not config.clear_text:
        section.refuse("tls", "there, because of socket_ports: sockets without TLS need clear_text")


def _check_address(section: _Section, address: str, tls: Tls | None) -> None:
    if address.startswith(UNIX_PREFIX + "/"):
        return
    match = _TCP_ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        section.refuse("listen", f'a list of "host:port" or "unix:/path", which {address!r} is not')
    if tls is None:
        section.refuse("tls", f"there, because {address} is a TCP port and the agent speaks only mutual TLS on those")


class _Section:
    """A JSON object of the file, from which keys are taken until none may be left."""

    def __init__(self, file: Path, name: str, document: object) -> None:
        if not isinstance(document, dict):
            raise ConfigError(f"The configuration {file} cannot be used: {name or 'it'} must be a JSON object.")
        self._file = file
        self._prefix = f"{name}." if name else ""
        self._document: Mapping[str, object] = document
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._document

    def get(self, key: str, parse: Callable[[object], Any], default: Any) -> Any:
        """Return the value of a key. `parse` raises ValueError with what it must be. Without default it is required."""
        self._known.add(key)
        if key not in self._document:
            if default is None:
                self.refuse(key, "there")
            return default
        try:
            return parse(self._document[key])
        except ValueError as error:
            self.refuse(key, str(error))

    def path(self, key: str) -> Path:
        return self._file.parent / str(self.get(key, _text, None))

    def table(self, key: str) -> _Section | None:
        self._known.add(key)
        if key not in self._document:
            return None
        return _Section(self._file, self._prefix + key, self._document[key])

    def finish(self) -> None:
        """Raise ConfigError when there are keys that nobody asked for."""
        unknown = sorted(set(self._document) - self._known)
        if unknown:
            raise ConfigError(
                f"The configuration {self._file} cannot be used: {self._prefix}{unknown[0]} is not a known key.",
                "The known ones are in blockferry_agent/config.py.",
            )

    def refuse(self, key: str, must_be: str) -> NoReturn:
        raise ConfigError(f"The configuration {self._file} cannot be used: {self._prefix}{key} must be {must_be}.")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a text that is not empty")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of texts that is not empty")
    return tuple(_text(item) for item in value)


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _ports(value: object) -> range:
    """Parse the first and the last port."""
    port = _whole_number(1, 65535)
    if not isinstance(value, list) or len(value) != 2 or port(value[0]) > port(value[1]):
        raise ValueError("a list of the first port and the last")
    return range(value[0], value[1] + 1)


def _socket_mode(value: object) -> int:
    """Parse a mode that gives the owner, and at most his group, the right to connect."""
    if value not in ("0600", "0660"):
        raise ValueError('"0600" or "0660"')
    return int(value, 8)


def _whole_number(least: int, most: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return parse


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 3600:
        raise ValueError("a number of seconds above 0, at most 3600")
    return float(value)
