"""
The agent as a process of the user who logs in, in a session of its own: where there is no systemd to run it.

    run/agent.pid    written by the agent as soon as it serves
    run/agent.sock   its Unix socket
    log/agent.log    of the running agent, which bounds it; agent.log.1 what was said before

It does not come back by itself when it fails, or when the host restarts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from blockferry.deploy.onhost import directory
from blockferry.deploy.onhost.refusal import Reading, Refused
from blockferry.deploy.onhost.releases import Release

# Seconds.
START_TIMEOUT = 30
STOP_TIMEOUT = 10
KILL_TIMEOUT = 5
IDLE_TIMEOUT = 2

LOG_LINES = 12


class Processes:
    """See `supervisor.Supervisor`."""

    kind = "process"

    def __init__(self, home: Path) -> None:
        self._home = home
        self._run = home / "run"
        self._log = home / "log" / "agent.log"
        self.socket = str(self._run / "agent.sock")

    def prepare(self) -> int | None:
        self._run.mkdir(mode=0o700, exist_ok=True)
        self._log.parent.mkdir(mode=0o755, exist_ok=True)
        return None

    def try_out(self, release: Release) -> None:
        config = release.path / "trial.json"
        own = {"listen": [f"unix:{self._run}/trial.sock"], "pid_file": str(self._run / "trial.pid")}
        kept = {name: value for name, value in release.config.items() if name not in ("socket_ports", "socket_address")}
        directory.replace(config, json.dumps({**kept, **own}).encode(), 0o600)
        log = self._log.with_name("trial.log")
        self._end_trials()
        try:
            self._launch(release, config, self._run / "trial.pid", log)
        finally:
            self._end_trials()
            directory.unlink(config)
            directory.unlink(log)

    def _end_trials(self) -> None:
        """End what is on trial, also what a request that was killed has left."""
        self._end({pid for pid, config in self._running().items() if Path(config).name == "trial.json"})
        for name in ("trial.pid", "trial.sock"):
            directory.unlink(self._run / name)

    def start(self, release: Release) -> None:
        if self._log.exists():
            self._log.replace(self._log.with_name("agent.log.1"))
        self._launch(release, release.config_file, self._run / "agent.pid", self._log)

    def stop(self, when_idle: bool) -> None:
        pid = self.pid()
        if when_idle and pid is not None:
            _signal(pid, signal.SIGUSR1)
            if not self._have_ended({pid}, IDLE_TIMEOUT):
                raise Reading("The agent reads a disk.", "It is left alone until it has read it.")
        self._end(set(self._running()))

    def pid(self) -> int | None:
        """As the interface says: of the release in force."""
        pid = _read_pid(self._run / "agent.pid")
        config = self._running().get(pid) if pid is not None else None
        current = directory_of_current(self._home)
        return pid if config is not None and current is not None and config == str(current / "agent.json") else None

    def state(self) -> str:
        if self.pid() is not None:
            return "serving"
        return "stopped" if directory_of_current(self._home) is not None else "absent"

    def log(self, lines: int) -> str:
        said: list[str] = []
        for path in (self._log.with_name("agent.log.1"), self._log):
            if path.exists():
                said += path.read_text(errors="replace").splitlines()
        return "".join(f"{line}\n" for line in said[-lines:])

    def remove(self) -> bool:
        running = set(self._running())
        self._end(running)
        return bool(running)

    def _launch(self, release: Release, config: Path, pid_file: Path, log: Path) -> None:
        """Start an agent, away from this login; return once it serves."""
        directory.unlink(pid_file)
        # Else gRPC prints a line for each handshake that fails: strangers could fill the disk.
        environment = {**os.environ, "GRPC_VERBOSITY": "NONE", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [*release.command(config), "--log", str(log)],
                    cwd=self._home,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise Refused(f"{release.about['python']} cannot be started: {error.strerror}.") from error
        deadline = time.monotonic() + START_TIMEOUT
        while _read_pid(pid_file) != process.pid:
            status = process.poll()
            if status is not None:
                raise Refused(f"The agent ended at its start ({status}); its log says:\n{_tail(log)}\n")
            if time.monotonic() > deadline:
                raise Refused(f"The agent does not serve after {START_TIMEOUT} seconds; its log says:\n{_tail(log)}\n")
            time.sleep(0.02)

    def _end(self, pids: set[int]) -> None:
        """End agents, also those that never came to serve."""
        for number, timeout in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, KILL_TIMEOUT)):
            for pid in pids:
                _signal(pid, number)
            if self._have_ended(pids, timeout):
                return
        raise Refused(f"The agent that runs (process {min(pids)}) does not stop.", "See what it hangs on, on the host.")

    def _have_ended(self, pids: set[int], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while pids & set(self._running()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _running(self) -> dict[int, str]:
        """
        Return this directory's agents: each with its process id and its configuration.

        They are known by their command lines, so a stale pid file misleads nobody.
        """
        prefix = f"{self._home}/releases/"
        found = {}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it ended just now
            if "--config" in words[:-1] and words[words.index("--config") + 1].startswith(prefix):
                found[int(path.parent.name)] = words[words.index("--config") + 1]
        return found


def directory_of_current(home: Path) -> Path | None:
    """Return the directory of the release in force, whatever is in it."""
    try:
        return home / (home / "current").readlink()
    except OSError:
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise Refused(f"The agent that runs (process {pid}) belongs to another user.") from None


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n".join(f"    {line[:500]}" for line in lines) or "    (nothing)"
