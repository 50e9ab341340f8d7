"""Rounds in which all contenders run, one at a time and in changing order."""

from __future__ import annotations

import random
import statistics
import subprocess
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockferry import errors


class Unavailable(Exception):
    """A contender cannot run here. Says why."""


class Contender(NamedTuple):
    """
    name: in the table.  run: does all of it once, and returns the seconds it took; raises Unavailable.
    bar: the least ratio to `against` that we want to hold, 0 for none.
    """

    name: str
    run: Callable[[], float]
    bar: float = 0.0
    against: str = ""


class Result(NamedTuple):
    """
    seconds: of each round, in its order; empty when it cannot run, and `reason` says why.
    """

    contender: Contender
    seconds: tuple[float, ...]
    reason: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def run(contenders: Sequence[Contender], rounds: int, say: Callable[[str], None]) -> list[Result]:
    """Let all run `rounds` times, after one run each that does not count. Those that cannot are named."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    reasons: dict[str, str] = {}
    for number in range(rounds + 1):
        order = list(contenders)
        random.shuffle(order)
        for contender in order:
            if contender.name in reasons:
                continue
            try:
                took = contender.run()
            except (Unavailable, errors.Error, AssertionError, OSError, subprocess.SubprocessError) as reason:
                # One that fails must not cost the figures of the others.
                reasons[contender.name] = str(reason)
                say(f"{contender.name}: cannot run: {reason}")
                continue
            if number:
                seconds[contender.name].append(took)
                say(f"round {number}: {contender.name}: {took:.2f} s")
    return [
        Result(
            contender,
            () if contender.name in reasons else tuple(seconds[contender.name]),
            reasons.get(contender.name, ""),
        )
        for contender in contenders
    ]


def ratio(result: Result, other: Result) -> float:
    """Return how many times as fast `result` is as `other`: the median of the ratios within each round."""
    return statistics.median(theirs / ours for ours, theirs in zip(result.seconds, other.seconds, strict=True))


def best(results: Sequence[Result], prefix: str) -> Result | None:
    """Return the fastest of those whose name begins so; None when none could run."""
    able = [result for result in results if result.contender.name.startswith(prefix) and result.seconds]
    return min(able, key=lambda result: result.median, default=None)
