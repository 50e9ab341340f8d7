"""The report: Markdown tables of what ran, how fast, beside whom, and what could not; and every round's seconds as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from blockferry_agent.units import GiB, MiB
from tests.bench import race
from tests.bench.race import Result

AGENT_MEMORY = 150 * MiB
"""What the agent may have resident."""


class Report:
    """
    Sections in the order in which they came, and what memory was seen. It is written anew with each of them, so that
    one that cannot run costs only itself.

    path: of the Markdown; the JSON is put beside it.
    """

    def __init__(self, preface: str, path: Path) -> None:
        self._path = path
        self._sections = [preface]
        self._memory: list[str] = []
        self._seconds: dict[str, dict[str, Sequence[float]]] = {}

    def race(self, title: str, results: Sequence[Result], size: int, remark: str = "") -> None:
        """Add a table of what all did with `size` bytes."""
        self._seconds[title] = {result.contender.name: result.seconds for result in results}
        self.text(title, "\n\n".join(filter(None, (remark, table(results, size)))))

    def text(self, title: str, text: str) -> None:
        self._sections.append(f"## {title}\n\n{text}")
        self._save()

    def memory(self, what: str, peak: int) -> None:
        """Add the most memory that an agent had, in bytes, to the table at the end."""
        holds = "holds" if peak <= AGENT_MEMORY else "missed"
        self._memory.append(f"| {what} | {peak / MiB:.0f} | {AGENT_MEMORY / MiB:.0f}: {holds} |")
        self._save()

    def _save(self) -> None:
        sections = list(self._sections)
        if self._memory:
            sections.append("\n".join(["## Memory", "", "| | MiB at the peak | bar |", "|---|---|---|", *self._memory]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        self._path.with_suffix(".json").write_text(json.dumps(self._seconds, indent=1) + "\n", encoding="utf-8")


def table(results: Sequence[Result], size: int) -> str:
    """Return a table of readings of `size` bytes, the fastest first."""
    able = sorted((result for result in results if result.seconds), key=lambda result: result.median)
    lines = ["| | GiB/s (median) | slowest to fastest | against | ratio | bar |", "|---|---|---|---|---|---|"]
    for result in able:
        rates = [size / GiB / seconds for seconds in result.seconds]
        against, ratio, bar = _beside(result, results)
        lines.append(
            f"| {result.contender.name} | {size / GiB / result.median:.2f} | {min(rates):.2f} to {max(rates):.2f} "
            f"| {against} | {ratio} | {bar} |"
        )
    lines += [
        f"| {result.contender.name} | could not run: {result.reason} | | | | |" for result in results if result.reason
    ]
    return "\n".join(lines)


def _beside(result: Result, results: Sequence[Result]) -> tuple[str, str, str]:
    """Return who a result is compared with, the ratio, and whether it holds the bar."""
    contender = result.contender
    if not contender.bar:
        return "", "", ""
    other = race.best(results, contender.against)
    if other is None:
        return contender.against, "could not run", ""
    ratio = race.ratio(result, other)
    holds = "holds" if ratio >= contender.bar else f"missed by {(1 - ratio / contender.bar) * 100:.0f} %"
    return other.contender.name, f"{ratio:.2f}", f"{contender.bar:g}: {holds}"
