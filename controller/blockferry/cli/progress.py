"""Progress on a terminal (bars), elsewhere (a line for each step), or not at all. Always on standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from blockferry.cli import output
from blockferry.jobs import progress


@contextlib.contextmanager
def shown(quiet: bool) -> Iterator[progress.Progress]:
    """Show progress while the block runs."""
    if quiet:
        yield Warnings()
    elif sys.stderr.isatty():
        with Bars() as bars:
            yield bars
    else:
        yield Lines()


class Warnings(progress.Silent):
    """Warnings only."""

    def warn(self, text: str) -> None:
        output.note(f"warning: {text}")


class Lines(Warnings):
    """A line for each step, for logs."""

    def step(self, text: str) -> None:
        output.note(text)

    def begin(self, key: str, label: str, total: int) -> None:
        self.step(f"{label}: {output.size(total)}")


class Bars:
    """A bar for each piece of work; steps and warnings scroll by above."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[moved]} moved"),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bars.stop()

    def step(self, text: str) -> None:
        self._bars.console.print(output.printable(text), markup=False)

    def warn(self, text: str) -> None:
        self._bars.console.print(f"warning: {output.printable(text)}", style="yellow", markup=False)

    def begin(self, key: str, label: str, total: int) -> None:
        self._tasks[key] = self._bars.add_task(output.printable(label), total=total, moved=output.size(0))

    def advance(self, key: str, position: int, moved: int) -> None:
        self._bars.update(self._tasks[key], completed=position, moved=output.size(moved))

    def end(self, key: str) -> None:
        self._bars.stop_task(self._tasks[key])
