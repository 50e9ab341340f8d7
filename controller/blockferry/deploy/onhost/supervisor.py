"""What keeps the agent running on this host, and how it is chosen."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from blockferry.deploy.onhost.processes import Processes
from blockferry.deploy.onhost.releases import Release
from blockferry.deploy.onhost.systemd import Systemd


class Supervisor(Protocol):
    """
    Runs the agent of one directory. All raise Refused.

    kind: "systemd" or "process".  socket: path of the agent's Unix socket.
    """

    kind: str
    socket: str

    def prepare(self) -> int | None:
        """Make what the agent runs in; return the group that must read its files, None for the caller's own."""

    def try_out(self, release: Release) -> None:
        """Start a release beside the agent that runs, where nobody else reaches it, and stop it. Refused: it failed."""

    def start(self, release: Release) -> None:
        """Start a release, and return when it serves. Refused, with its last words, when it does not come to serve."""

    def stop(self, when_idle: bool) -> None:
        """Stop the agent that runs, if any. when_idle: raise Reading, and leave it alone, while it reads a disk."""

    def pid(self) -> int | None:
        """Return the process of the agent that serves; None when none does."""

    def state(self) -> str:
        """Return "serving", "stopped", "failed", or "absent" when there is nothing that could run."""

    def log(self, lines: int) -> str:
        """Return the last lines of what the agent said."""

    def remove(self) -> bool:
        """Stop the agent and take away all that is outside its directory; False when there was nothing."""


def choose(home: Path) -> Supervisor:
    """Return the service manager when it runs and we may talk to it, else one that needs none."""
    if os.geteuid() == 0 and Path("/run/systemd/system").is_dir():
        return Systemd(home)
    return Processes(home)
