"""The Markdown table: what ran, how fast, beside whom, and what could not."""

from __future__ import annotations

from collections.abc import Sequence

from blockferry_agent.units import GiB
from tests.bench import race
from tests.bench.race import Result


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
