"""What commands print: tables for people, JSON for machines, both on standard output; errors and progress beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from blockferry import errors

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(length: int) -> str:
    """Return `length` bytes as a person reads it, e.g. "1.5 GiB"."""
    value, unit = float(length), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{length} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned to the right."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(cell.replace("[", r"\[") for cell in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        # Nothing is cut or folded for a file or a pipe.
        console = Console(highlight=False, width=10_000)
    console.print(grid)


def as_json(value: Any) -> None:
    """Print `value`, of msgspec structs, dataclasses and plain values, as one JSON document."""
    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def error(problem: errors.Error, machine: bool) -> None:
    """Print an error: a sentence on standard error, and for machines a document on standard output."""
    click.echo(f"blockferry: {problem}", err=True)
    if machine:
        as_json({"error": {"kind": type(problem).__name__, "message": problem.message, "hint": problem.hint}})
