"""`python -m blockferry_agent --config FILE`: run the agent until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import ctypes
import logging
import signal
import sys
import threading
from pathlib import Path

from blockferry_agent import __version__, config, errors, server


def main() -> int:
    """Return the exit code: 0 after a signal, 1 when the agent cannot start."""
    parser = argparse.ArgumentParser(prog="blockferry_agent", description="Blockferry's agent on a hypervisor.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="its JSON configuration")
    parser.add_argument("--version", action="version", version=__version__)
    arguments = parser.parse_args()

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _limit_malloc_arenas()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        server.run(config.load(arguments.config), stop.wait)
    except errors.Error as error:
        logging.error("%s", error)
        return 1
    return 0


def _limit_malloc_arenas() -> None:
    """
    Keep glibc from giving every thread a heap of its own, each of which holds on to the blocks that passed through it.

    Measured with four disks read at once: 115 MiB resident at the most instead of 133, at the same speed.
    """
    m_arena_max = -8  # malloc.h
    ctypes.CDLL(None).mallopt(m_arena_max, 2)


if __name__ == "__main__":
    sys.exit(main())
