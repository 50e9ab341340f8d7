"""The first transport that answers carries the disk."""

from __future__ import annotations

import pytest

from blockferry import errors
from blockferry.transport import ladder
from blockferry.transport.disk import Disk, Reading, Target
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import ReadRequest

TARGET = Target("host1", "192.0.2.1", "transfer", "secret-ticket", "https://192.0.2.1/images/secret-ticket", None, 512)


class Way:
    """A transport that opens a disk, or fails with an error."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.opened: list[Target] = []
        self._error = error

    def open(self, target: Target) -> Disk:
        self.opened.append(target)
        if self._error:
            raise self._error
        return Way.Open()

    class Open:
        size = 512

        def read(self, request: ReadRequest) -> Reading:
            raise NotImplementedError

        def close(self) -> None: ...


def test_first_choice_says_nothing() -> None:
    first, second = Way("grpc"), Way("imageio")
    opened = ladder.open_first([first, second], TARGET)
    assert (opened.transport, opened.why) == ("grpc", "")
    assert not second.opened


@pytest.mark.parametrize(
    "error",
    [
        errors.AgentUnreachable("No agent answers."),
        errors.NotFound("No agent was deployed there."),
        agent_errors.TicketNotFound("No such ticket."),
        agent_errors.Busy("Enough to do."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_next_one_carries_what_the_first_does_not(error: agent_errors.Error) -> None:
    opened = ladder.open_first([Way("grpc", error), Way("imageio")], TARGET)
    assert (opened.transport, opened.why) == ("imageio", f"grpc: {error.message}")


@pytest.mark.parametrize("kind", [agent_errors.SourceGone, agent_errors.ReadFailed, agent_errors.ProtocolError])
def test_disk_that_cannot_be_read_ends_the_climb(kind: type[agent_errors.SourceError]) -> None:
    second = Way("imageio")
    with pytest.raises(kind):
        ladder.open_first([Way("grpc", kind("The disk is gone.")), second], TARGET)
    assert not second.opened


def test_all_reasons_when_none_answers() -> None:
    ways = [Way("grpc", errors.AgentUnreachable("No agent.")), Way("imageio", errors.TransportError("Port closed."))]
    with pytest.raises(errors.TransportError) as caught:
        ladder.open_first(ways, TARGET)
    assert "host1 (192.0.2.1)" in str(caught.value)
    assert "grpc: No agent. imageio: Port closed." in str(caught.value)
    assert "secret-ticket" not in str(caught.value)


def test_defects_are_not_taken_for_answers() -> None:
    with pytest.raises(ZeroDivisionError):
        ladder.open_first([Way("grpc", ZeroDivisionError()), Way("imageio")], TARGET)
