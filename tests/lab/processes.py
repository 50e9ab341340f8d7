"""
The lab's processes: commands that end, daemons that stay, and the mark by which the reaper knows them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from tests.lab.errors import LabError

# Every process of a lab carries its directory in this environment variable.
MARK = "BLOCKFERRY_LAB"

# What QEMU, libvirtd and qemu-nbd run as: the qemu and vdsm users of a real host.
USER = "nobody"
GROUP = "nogroup"
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups")


def run(
    *command: str | Path,
    input: bytes | None = None,
    stdout: BinaryIO | None = None,
    cwd: Path | None = None,
    timeout: float = 120,
) -> str:
    """
    Run a command to its end and return what it printed ("" when stdout is a file).

    timeout: seconds.  Raises LabError with its error text when it fails.
    """
    arguments = [str(word) for word in command]
    try:
        done = subprocess.run(
            arguments,
            input=input,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(
            f"The program {arguments[0]} is missing: run `sh tests/setup`, which installs what the lab needs"
        ) from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{' '.join(arguments)} took longer than {timeout} seconds") from None
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise LabError(f"{' '.join(arguments)} failed ({done.returncode}): {text}")
    return done.stdout.decode(errors="replace") if stdout is None else ""


def wait_for(what: str, ready: Callable[[], bool], timeout: float = 60) -> None:
    """Wait until ready() is true.  Raises LabError naming what did not happen."""
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not ready():
        if time.monotonic() > deadline:
            raise LabError(f"{what} did not happen in {timeout} seconds")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Daemon:
    """
    A process of the lab that stays until it is stopped, its output in a log file.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        lab: Path,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        """
        command: started at once.  lab: the lab's directory, for the mark.  environment: added to our own.
        """
        self._command = [str(word) for word in command]
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {}), MARK: str(lab)},
                # Ctrl-C in the terminal is for the owner of the lab, who then stops its daemons in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Wait until the daemon is ready.  Raises LabError with the end of its log when it ends before."""

        def alive_and_ready() -> bool:
            if self._process.poll() is not None:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise LabError(f"{' '.join(self._command)} ended: {tail}")
            return ready()

        wait_for(f"start of {self._command[0]}", alive_and_ready, timeout)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after a while.  Does nothing when it has ended."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
        self._process.wait()
