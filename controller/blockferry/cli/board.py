"""How hosts come along: a line for each under way on a terminal, a line for each step elsewhere. On standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from blockferry.cli import output
from blockferry.jobs import fleet


@contextlib.contextmanager
def shown(quiet: bool) -> Iterator[fleet.Board]:
    """Show hosts while the block runs. quiet: failures only."""
    if quiet:
        yield Failures()
    elif sys.stderr.isatty():
        with Live(console=Console(stderr=True, highlight=False), transient=True) as live:
            yield Screen(live)
    else:
        yield Lines()


class Failures(fleet.Unseen):
    """Failures only."""

    def end(self, host_name: str, text: str, failed: bool) -> None:
        if failed:
            output.note(f"{host_name}: {text}")


class Lines(Failures):
    """A line for each step, for logs."""

    def note(self, text: str) -> None:
        output.note(text)

    def say(self, host_name: str, text: str) -> None:
        output.note(f"{host_name}: {text}")

    def end(self, host_name: str, text: str, failed: bool) -> None:
        output.note(f"{host_name}: {text}")


class Screen:
    """A moving line for each host that is under way; those that are done scroll by above."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._lock = threading.Lock()
        self._under_way: dict[str, Spinner] = {}

    def note(self, text: str) -> None:
        self._live.console.print(Text(output.printable(text)))

    def say(self, host_name: str, text: str) -> None:
        with self._lock:
            spinner = self._under_way.setdefault(host_name, Spinner("dots"))
            spinner.update(text=Text(output.printable(f"{host_name}: {text}")))
            self._draw()

    def end(self, host_name: str, text: str, failed: bool) -> None:
        with self._lock:
            self._under_way.pop(host_name, None)
            self._draw()
        style = "red" if failed else "green"
        self._live.console.print(Text(output.printable(f"{host_name}: {text}"), style=style))

    def _draw(self) -> None:
        self._live.update(Group(*self._under_way.values()))
