"""
The operator of a lab: types `blockferry` commands, as a program of its own, with a configuration for this lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.lab import configuration, processes
from tests.lab.lab import Lab

PROGRAM = Path(sys.executable).parent / "blockferry"


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    output: str
    errors: str

    @property
    def document(self) -> Any:
        """What it printed with --json."""
        return json.loads(self.output)


class Operator:
    """
    directory: where the configuration is, with the repository and the controller's state beside it.
    environment: of the commands.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.config = configuration.write(lab, directory / configuration.NAME)
        self.environment = {**os.environ, "BLOCKFERRY_CONFIG": str(self.config), processes.MARK: str(lab.directory)}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command; the caller waits for it."""
        return subprocess.Popen(
            [PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    def run(self, *words: str, timeout: float = 240) -> Result:
        """Run a command to its end, whatever that is. timeout: seconds."""
        with self.start(*words) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return Result(process.returncode, output, errors)

    def do(self, *words: str, timeout: float = 240) -> Any:
        """Run a command with --json that must succeed, and return its document."""
        result = self.run(*words, "--json", "--quiet", timeout=timeout)
        assert result.status == 0, f"blockferry {' '.join(words)} ended with {result.status}: {result.errors}"
        return result.document
