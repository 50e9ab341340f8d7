"""One thing done on many hosts, side by side: one that fails does not stop the others."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from typing import Generic, Protocol, TypeVar

from blockferry import errors
from blockferry_agent import errors as agent_errors

H = TypeVar("H")
R = TypeVar("R")


class Board(Protocol):
    """Shows how hosts come along. Called from several threads; must return quickly and not raise."""

    def note(self, text: str) -> None:
        """Something about the whole."""

    def say(self, host_name: str, text: str) -> None:
        """A host goes on to something else."""

    def end(self, host_name: str, text: str, failed: bool) -> None:
        """A host is done, or failed."""


@dataclasses.dataclass(frozen=True)
class Outcome(Generic[R]):
    """
    What came of a host: a result, or a problem.

    begun: False when it was never its turn.
    """

    host_name: str
    result: R | None = None
    problem: agent_errors.Error | None = None
    begun: bool = True


class Turn:
    """A host's turn: what its work says goes to the board."""

    def __init__(self, host_name: str, board: Board, stopping: threading.Event) -> None:
        self.host_name = host_name
        self._board = board
        self._stopping = stopping

    def say(self, text: str) -> None:
        self._board.say(self.host_name, text)

    def pause(self, seconds: float) -> None:
        """Wait. Raises Interrupted when all are to stop."""
        if self._stopping.wait(seconds):
            raise errors.Interrupted("Stopped by a signal.")


def side_by_side(
    hosts: Sequence[tuple[str, H]],
    work: Callable[[H, Turn], R],
    board: Board,
    at_once: int,
    *,
    told: Callable[[R], str] = lambda result: "done",
    keep_going: bool = True,
) -> list[Outcome[R]]:
    """
    Do the work for hosts, `at_once` of them at a time; return what came of each, in their order.

    told: a result in a few words.  keep_going: begin others after one has failed.
    A signal lets those that have begun come to an end, then KeyboardInterrupt is raised.
    """
    stopping = threading.Event()
    failed = threading.Event()

    def do(name: str, host: H) -> Outcome[R]:
        if stopping.is_set() or (failed.is_set() and not keep_going):
            return Outcome(name, problem=_not_begun(), begun=False)
        try:
            result = work(host, Turn(name, board, stopping))
        except agent_errors.Error as problem:
            failed.set()
            board.end(name, str(problem), failed=True)
            return Outcome(name, problem=problem)
        board.end(name, told(result), failed=False)
        return Outcome(name, result)

    with futures.ThreadPoolExecutor(max(1, at_once), thread_name_prefix="host") as threads:
        try:
            begun = [threads.submit(do, name, host) for name, host in hosts]
            return [future.result() for future in begun]
        except KeyboardInterrupt:
            stopping.set()
            board.note("Stopping: hosts that have begun come to an end first.")
            raise


def first_alone(
    hosts: Sequence[tuple[str, H]],
    work: Callable[[H, Turn], R],
    board: Board,
    at_once: int,
    *,
    told: Callable[[R], str] = lambda result: "done",
    keep_going: bool = False,
) -> list[Outcome[R]]:
    """As `side_by_side`, but the first host goes ahead alone: what is wrong everywhere breaks only there."""
    first = side_by_side(hosts[:1], work, board, 1, told=told)
    if failure(first) is not None and not keep_going:
        return first + [Outcome(name, problem=_not_begun(), begun=False) for name, _ in hosts[1:]]
    return first + side_by_side(hosts[1:], work, board, at_once, told=told, keep_going=keep_going)


def failure(outcomes: Iterable[Outcome[R]]) -> agent_errors.Error | None:
    """Return the first problem."""
    return next((outcome.problem for outcome in outcomes if outcome.problem is not None), None)


def _not_begun() -> agent_errors.Error:
    return errors.DeployError("Not begun, because another host failed before.", "Mend that one, or give --keep-going.")


class Unseen:
    """A board that nobody looks at."""

    def note(self, text: str) -> None: ...

    def say(self, host_name: str, text: str) -> None: ...

    def end(self, host_name: str, text: str, failed: bool) -> None: ...
