"""
`python -m blockferry_agent --config FILE [--log FILE]`: run the agent until a signal.

    SIGTERM, SIGINT    it stops, whatever it does
    SIGUSR1            it stops if nothing is read, else goes on as if nothing had been said: for an upgrade, which
                       sends it again until the agent has gone
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Callable

from blockferry_agent import __version__, config, errors, malloc, server
from blockferry_agent.units import MiB

# Of the log file, and of the one before it (its name and `.1`).
LOG_SIZE = 4 * MiB

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


def main() -> int:
    """Return the exit code: 0 after a signal, 1 when the agent cannot start."""
    parser = argparse.ArgumentParser(prog="blockferry_agent", description="Blockferry's agent on a hypervisor.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="its JSON configuration")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--log", type=Path, metavar="FILE", help="where it logs, in place of stderr")
    arguments = parser.parse_args()

    try:
        handler = logging.StreamHandler() if arguments.log is None else _LogFile(arguments.log)
    except OSError as error:
        parser.error(f"the log {arguments.log} cannot be written: {error.strerror}")
    logging.basicConfig(
        handlers=[handler], level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    malloc.keep_small()
    # Blocked, here and in every thread to come, and waited for: a handler that is called a moment before the main
    # thread goes to sleep does not wake it.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        server.run(config.load(arguments.config), _wait)
    except errors.Error as error:
        logging.error("%s", error)
        return 1
    return 0


def _wait(close_if_idle: Callable[[], bool]) -> None:
    """Return when a signal says that the agent is to stop."""
    while signal.sigwait(_SIGNALS) == signal.SIGUSR1 and not close_if_idle():
        logging.info("asked to stop when nothing is read, and goes on: it reads, or did so a moment ago")


class _LogFile(logging.handlers.RotatingFileHandler):
    """
    A log of bounded size, with the one before it kept.

    Takes stderr along from file to file, so that a crash's last words are in the log, too.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_SIZE, backupCount=1, encoding="utf-8")

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.dup2(stream.fileno(), sys.stderr.fileno())
        return stream


if __name__ == "__main__":
    sys.exit(main())
