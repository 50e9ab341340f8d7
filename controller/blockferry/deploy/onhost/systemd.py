"""The agent as a service of systemd, under a user of its own and in a sandbox (`unit`)."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from blockferry.deploy.onhost import commands, directory, firewall, unit, user
from blockferry.deploy.onhost.refusal import Reading, Refused
from blockferry.deploy.onhost.releases import Release

UNITS = Path("/etc/systemd/system")
TRIAL_UNITS = Path("/run/systemd/system")

IDLE_TIMEOUT = 2
"""Seconds within which an agent that reads nothing ends when it is asked to."""

LOG_LINES = 12


class Systemd:
    """See `supervisor.Supervisor`."""

    kind = "systemd"
    socket = unit.socket(unit.SERVICE)

    def __init__(self, home: Path) -> None:
        self._home = home
        self._file = UNITS / f"{unit.SERVICE}.service"

    def prepare(self) -> int | None:
        self._refuse_other()
        return user.make()

    def try_out(self, release: Release) -> None:
        config = release.path / "trial.json"
        listen = {"listen": [f"unix:{unit.socket(unit.TRIAL)}"]}
        kept = {name: value for name, value in release.config.items() if name not in ("socket_ports", "socket_address")}
        directory.replace(config, json.dumps({**kept, **listen}).encode(), 0o640, release.path.stat().st_gid)
        file = TRIAL_UNITS / f"{unit.TRIAL}.service"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            directory.replace(file, unit.trial(release, self._version(), config).encode(), 0o644)
            commands.run("systemctl", "daemon-reload")
            self._start(unit.TRIAL)
        finally:
            commands.call("systemctl", "stop", unit.TRIAL)
            commands.call("systemctl", "reset-failed", unit.TRIAL)
            directory.unlink(file)
            directory.unlink(config)
            commands.call("systemctl", "daemon-reload")

    def start(self, release: Release) -> None:
        directory.replace(self._file, unit.service(release, self._version()).encode(), 0o644)
        commands.run("systemctl", "daemon-reload")
        commands.run("systemctl", "enable", "--quiet", unit.SERVICE)
        self._start(unit.SERVICE)
        if release.settings["firewall"]:
            firewall.open_ports(unit.tcp_ports(release.config))
        else:
            firewall.close_ports()

    def stop(self, when_idle: bool) -> None:
        pid = self.pid()
        if when_idle and pid is not None:
            # It ends in order, so that systemd does not start it again.
            commands.run("systemctl", "kill", "--kill-who=main", "--signal=SIGUSR1", unit.SERVICE)
            deadline = time.monotonic() + IDLE_TIMEOUT
            while self.pid() == pid:
                if time.monotonic() > deadline:
                    raise Reading("The agent reads a disk.", "It is left alone until it has read it.")
                time.sleep(0.02)
        if self._file.exists():
            commands.run("systemctl", "stop", unit.SERVICE)

    def pid(self) -> int | None:
        shown = self._show(unit.SERVICE)
        # "reloading" does not come: there is no ExecReload.
        return int(shown["MainPID"]) if shown.get("ActiveState") == "active" and shown["MainPID"] != "0" else None

    def state(self) -> str:
        if not self._file.exists():
            return "absent"
        active = self._show(unit.SERVICE).get("ActiveState")
        if active == "active":
            return "serving"
        return "failed" if active in ("failed", "activating") else "stopped"

    def log(self, lines: int) -> str:
        return self._journal(unit.SERVICE, lines, "short-iso")

    def remove(self) -> bool:
        self._refuse_other()
        found = self._file.exists()
        if found:
            commands.run("systemctl", "disable", "--now", "--quiet", unit.SERVICE)
        for name in (unit.SERVICE, unit.TRIAL):
            # One may run without its file: that was deleted by hand, or a deployment was killed.
            commands.call("systemctl", "stop", name)
        enabled = UNITS / "multi-user.target.wants" / self._file.name
        drop_ins = [place / f"{unit.SERVICE}.service.d" for place in (UNITS, TRIAL_UNITS)]
        for path in (self._file, enabled, TRIAL_UNITS / f"{unit.TRIAL}.service", *drop_ins):
            directory.delete(path)
        commands.run("systemctl", "daemon-reload")
        for name in (unit.SERVICE, unit.TRIAL):
            commands.call("systemctl", "reset-failed", name)
            shutil.rmtree(unit.runtime_directory(name), ignore_errors=True)
        removed = firewall.close_ports()
        return user.remove() or removed or found

    def _start(self, name: str) -> None:
        """Start a unit, and wait until it says that it serves."""
        with _explained(name, self._journal):
            commands.run("systemctl", "restart", name)

    def _refuse_other(self) -> None:
        """Refuse a unit of our name that is not of this directory."""
        with contextlib.suppress(FileNotFoundError):
            if not unit.is_of(self._file.read_text(errors="replace"), self._home):
                raise Refused(
                    f"{self._file} is not of the agent in {self._home}.",
                    "Another agent is deployed on this host, in another directory: remove that one first.",
                )

    @staticmethod
    def _show(name: str) -> dict[str, str]:
        shown = commands.call("systemctl", "show", "--property=ActiveState,MainPID", name)
        return dict(line.partition("=")[::2] for line in shown.stdout.splitlines())

    @staticmethod
    def _journal(name: str, lines: int, form: str = "cat") -> str:
        output = commands.call(
            *("journalctl", "--quiet", "--no-pager", f"--output={form}", f"--lines={lines}", f"--unit={name}")
        )
        return output.stdout

    @staticmethod
    def _version() -> int:
        found = re.search(r"\d+", commands.run("systemctl", "--version"))
        return int(found.group()) if found else 0


@contextlib.contextmanager
def _explained(name: str, journal: object) -> Iterator[None]:
    """Add the last words of a unit's process to a refusal to start it."""
    try:
        yield
    except Refused:
        assert callable(journal)
        said = [f"    {line[:500]}" for line in str(journal(name, LOG_LINES)).splitlines()] or ["    (nothing)"]
        raise Refused("The agent does not come to serve; its journal says:\n" + "\n".join(said) + "\n") from None
