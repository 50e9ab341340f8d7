"""What it takes to reach a host."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blockferry.deploy.hostkey import Pin


class Login(NamedTuple):
    """
    How to reach a host and who we are there.

    address: IP address or DNS name.  pins: the keys that the host may show; none means: no connection.
    key_file: private key; without it the SSH agent's keys and `key_files` are offered.  password: tried last.
    timeout: seconds to connect, and for any one answer of the SSH server.
    proxy: a command whose input and output lead to the host's SSH; empty: TCP does.
    sudo: run commands as root.  sudo_password: for it; None when it asks for none.
    trust_new: without pins, believe whatever key the host shows.
    """

    address: str
    pins: tuple[Pin, ...]
    port: int = 22
    user: str = "root"
    key_file: Path | None = None
    password: str | None = None
    timeout: float = 20.0
    key_files: tuple[Path, ...] = ()
    proxy: tuple[str, ...] = ()
    sudo: bool = False
    sudo_password: str | None = None
    trust_new: bool = False

    def __repr__(self) -> str:
        """Without the password: values end up in logs and tracebacks."""
        return f"Login({self.user}@{self.address}:{self.port})"
