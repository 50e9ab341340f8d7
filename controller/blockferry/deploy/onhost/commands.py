"""The host's own programs, called by name."""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

from blockferry.deploy.onhost.refusal import Refused

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 60
"""Seconds."""


class Output(NamedTuple):
    """What a program left. status: 127 when there is no such program."""

    status: int
    stdout: str
    stderr: str


def call(*command: str) -> Output:
    """Run a program to its end, whatever its exit status. Raises Refused when it takes longer than `TIMEOUT`."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "PATH": PATH, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        return Output(127, "", f"there is no {command[0]}")
    except subprocess.TimeoutExpired:
        raise Refused(f"`{' '.join(command)}` does not end.", "See what it hangs on, on the host.") from None
    return Output(done.returncode, done.stdout, done.stderr)


def run(*command: str) -> str:
    """Run a program that must succeed and return what it printed. Raises Refused with its last words."""
    output = call(*command)
    if output.status:
        words = (output.stderr or output.stdout).strip().splitlines() or [f"status {output.status}"]
        raise Refused(f"`{' '.join(command)}` failed: {words[-1]}.")
    return output.stdout
