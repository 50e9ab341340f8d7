"""What the commands about agents say in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from blockferry import errors
from blockferry.cli import output
from blockferry.cli.settings import Settings
from blockferry.deploy import Finding
from blockferry.jobs import fleet
from blockferry.jobs.agent_status import AgentState
from blockferry.jobs.fleet import Outcome

R = TypeVar("R")

_MARKS = {"ok": "ok", "warning": "WARNING", "failure": "FAILURE", "unknown": "unknown"}


def report(
    settings: Settings,
    outcomes: Sequence[Outcome[R]],
    word: Callable[[R], str],
    agent_of: Callable[[R], AgentState | None] = lambda result: None,
) -> None:
    """Print what came of hosts, and exit as the first problem says. word: what was done, such as "deployed"."""
    if settings.machine:
        output.as_json([_row(outcome, word, agent_of) for outcome in outcomes])
    else:
        for outcome in outcomes:
            if outcome.result is not None:
                output.line(f"{outcome.host_name}: {word(outcome.result)}")
            elif not outcome.begun:
                output.line(f"{outcome.host_name}: not begun")
    fail(outcomes)


def fail(outcomes: Sequence[Outcome[R]]) -> None:
    """Exit with the first problem, if there is one; it names how many there are."""
    problem = fleet.failure(outcomes)
    if problem is None:
        return
    failed = [outcome.host_name for outcome in outcomes if outcome.problem is not None]
    if len(outcomes) > 1:
        problem = type(problem)(
            f"{len(failed)} of {len(outcomes)} hosts failed: {', '.join(failed)}. {problem.message}", problem.hint
        )
    output.failed(problem)


def states(found: Sequence[AgentState]) -> None:
    """Print agents, a row each."""
    rows = [
        (
            state.host_name,
            state.where,
            state.health or "no answer",
            state.version or "",
            {True: "yes", False: "no", None: "?"}[state.current],
            state.python_version or "",
            "" if state.uptime_seconds is None else age(state.uptime_seconds),
            "" if state.active_reads is None else str(state.active_reads),
            "" if state.resident_bytes is None else output.size(state.resident_bytes),
            "" if state.load is None else f"{state.load:.1f} of {state.cores}",
            state.certificate_until,
        )
        for state in found
    ]
    head = ("HOST", "WHERE", "HEALTH", "VERSION", "CURRENT", "PYTHON", "UP", "READS", "MEMORY", "LOAD", "CERTIFICATE")
    output.table(head, rows)
    for state in found:
        if state.problem:
            output.line(f"{state.host_name}: {state.problem}")


def findings(outcomes: Sequence[Outcome[list[Finding]]]) -> None:
    """Print what was found on hosts, the host's name once."""
    rows = []
    for outcome in outcomes:
        for found in outcome.result or []:
            rows.append((outcome.host_name, _MARKS[found.state], found.name, f"{found.what}. {found.hint}".strip(". ")))
    output.table(("HOST", "STATE", "THING", "WHAT"), rows)


def age(seconds: int) -> str:
    """Return a time that has passed, in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _row(outcome: Outcome[R], word: Callable[[R], str], agent_of: Callable[[R], AgentState | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"host_name": outcome.host_name, "begun": outcome.begun}
    if outcome.result is not None:
        row["done"] = word(outcome.result)
        state = agent_of(outcome.result)
        if state is not None:
            row["agent"] = msgspec.to_builtins(state)
    if outcome.problem is not None:
        row["problem"] = {"message": outcome.problem.message, "hint": outcome.problem.hint}
    return row


def silent(found: Sequence[AgentState]) -> errors.AgentUnreachable | None:
    """Return the error for agents that do not answer; None when all do."""
    names = [state.host_name for state in found if state.problem]
    if not names:
        return None
    return errors.AgentUnreachable(f"No answer from the agent on: {', '.join(names)}.", "Deploy it again.")
