"""The command `blockferry`: parses what the operator typed, calls one job, prints what came of it."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Load the program, and run it. A Ctrl-C while it loads, most of a second, ends it without a traceback."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from blockferry.cli import program  # noqa: PLC0415  Loading it is what takes the time.

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    program.main()
