"""
The HTML report of a comparison: one file, which needs no network to be looked at.

The plots are made by plotly, whose JavaScript is put into the file (some 5 MiB): of the libraries that are kept up, it
is the one whose plots can be looked into with the mouse, which a time-line wants.
"""

from __future__ import annotations

import html as escape
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import plotly.graph_objects as go
import plotly.io

from blockferry.cli import output
from blockferry.jobs.compare import Comparison
from blockferry.jobs.figures import Row
from blockferry_agent.units import MiB

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
"""


def html(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Return the report. Names come from whoever made a VM, so they are escaped."""
    columns, cells = output.comparison_cells(rows)
    title = escape.escape(output.printable(f"Transports compared on VM {comparison.vm_name}"))
    facts = [output.comparison_heading(comparison), *output.comparison_notes(comparison)]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
        *(f"<p>{escape.escape(output.printable(fact))}</p>" for fact in facts),
        _table(columns, cells),
        _plot(_bars(rows), with_library=True),
        _plot(_lines(comparison), with_library=False),
        f"<p>Blockferry {escape.escape(comparison.version)} on {escape.escape(comparison.machine)}, "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC.</p></body></html>",
    ]
    return "\n".join(parts)


def _table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape.escape(output.printable(cell))}</td>" for cell in row) + "</tr>" for row in cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _plot(figure: go.Figure, with_library: bool) -> str:
    text: str = plotly.io.to_html(figure, full_html=False, include_plotlyjs=with_library, config={"displaylogo": False})
    return text


def _bars(rows: Sequence[Row]) -> go.Figure:
    """Draw the medians, with the slowest and the fastest round."""
    bar = go.Bar(
        x=[row.transport for row in rows],
        y=[row.rate / MiB for row in rows],
        error_y={
            "array": [(row.fastest - row.rate) / MiB for row in rows],
            "arrayminus": [(row.rate - row.slowest) / MiB for row in rows],
        },
    )
    return go.Figure(
        bar,
        layout={
            "title": {"text": "Throughput: median of the rounds, slowest and fastest"},
            "yaxis": {"title": {"text": "MiB/s"}},
        },
    )


def _lines(comparison: Comparison) -> go.Figure:
    """Draw how fast each reading was along the way."""
    figure = go.Figure(
        layout={
            "title": {"text": "Throughput along the way"},
            "xaxis": {"title": {"text": "seconds"}},
            "yaxis": {"title": {"text": "MiB/s"}},
        }
    )
    for carried in comparison.carried:
        for done in carried.rounds:
            pairs = [(a, b) for a, b in zip(done.samples, done.samples[1:], strict=False) if b[0] > a[0]]
            figure.add_scatter(
                x=[b[0] for _, b in pairs],
                y=[(b[1] - a[1]) / (b[0] - a[0]) / MiB for a, b in pairs],
                mode="lines",
                name=escape.escape(output.printable(f"{carried.transport}, {done.disk}, round {done.number}")),
                legendgroup=carried.transport,
            )
    return figure
