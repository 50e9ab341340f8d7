"""Which transport carries a disk: at first, and after one broke."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blockferry import errors
from blockferry.transport import ladder, patience
from blockferry.transport.disk import Disk, Reading, Target, Transport
from blockferry.transport.ladder import Ladder
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.units import MiB

TARGET = Target("host1", "192.0.2.1", "transfer", "secret-ticket", "https://192.0.2.1/images/secret-ticket", None, 512)

AWAY = errors.AgentUnreachable("No agent answers.", "See `blockferry agent status`.")
CUT = errors.TransportError("The connection broke.")


class Way:
    """
    A transport that opens a disk, or fails with an error.

    error: what `open` raises.  opened: times that it was asked.
    """

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.is_last_resort = name == "imageio"
        self.error = error
        self.opened = 0

    def open(self, target: Target) -> Disk:
        self.opened += 1
        if self.error:
            raise self.error
        return Way.Open()

    class Open:
        size = 512
        remark = ""

        def read(self, request: ReadRequest) -> Reading:
            raise NotImplementedError

        def close(self) -> None: ...


@pytest.fixture(autouse=True)
def short_comeback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "COMEBACK", 0.0)


def climber(*ways: Transport, pause: Callable[[float], None] = lambda seconds: None) -> Ladder[Disk]:
    return Ladder(ways, TARGET, pause)


# The first climb.


def test_first_choice_says_nothing() -> None:
    first, second = Way("grpc"), Way("imageio")
    opened = climber(first, second).open()
    assert (opened.transport, opened.why) == ("grpc", "")
    assert not second.opened


@pytest.mark.parametrize(
    "error",
    [
        AWAY,
        errors.NotFound("No agent was deployed there."),
        agent_errors.TicketNotFound("No such ticket."),
        agent_errors.TicketRefused("The agent may not open that socket."),
        agent_errors.SourceGone("The agent does not see that socket."),
        agent_errors.ProtocolError("The sizes differ."),
        agent_errors.Error("The agent failed unexpectedly."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_next_one_carries_what_the_first_does_not(error: agent_errors.Error) -> None:
    opened = climber(Way("grpc", error), Way("imageio")).open()
    assert (opened.transport, opened.why) == ("imageio", f"grpc: {error.message}")


@pytest.mark.parametrize("kind", [agent_errors.ReadFailed, agent_errors.BitmapMissing])
def test_disk_that_nobody_can_read_ends_the_climb(kind: type[agent_errors.Error]) -> None:
    second = Way("imageio")
    with pytest.raises(kind, match="Input/output error"):
        climber(Way("grpc", kind("Input/output error.")), second).open()
    assert not second.opened


def test_all_reasons_when_none_answers() -> None:
    with pytest.raises(errors.TransportError) as caught:
        climber(Way("grpc", AWAY), Way("imageio", errors.TransportError("Port closed."))).open()
    assert "reaches the disk on host host1 (192.0.2.1)" in caught.value.message
    assert "grpc: No agent answers. imageio: Port closed." in caught.value.message
    assert caught.value.hint == AWAY.hint, "what helps the best one"
    assert "secret-ticket" not in str(caught.value)


def test_defects_are_not_taken_for_answers() -> None:
    with pytest.raises(ZeroDivisionError):
        climber(Way("grpc", ZeroDivisionError()), Way("imageio")).open()


def test_a_climb_is_interrupted() -> None:
    def pause(seconds: float) -> None:
        raise errors.Interrupted("Stopped.")

    way = Way("grpc")
    with pytest.raises(errors.Interrupted):
        climber(way, pause=pause).open()
    assert not way.opened


# After a break.


def test_next_one_goes_on_where_the_first_broke() -> None:
    first, second = Way("grpc"), Way("imageio")
    climb = climber(first, second)
    opened = climb.open()
    first.error = AWAY
    climb.broke(opened, CUT, 3 * MiB, carried=True)
    opened = climb.open()
    assert (opened.transport, opened.why) == ("imageio", "grpc broke at 3.0 MiB: The connection broke.")


def test_the_one_that_broke_goes_on_when_it_is_back() -> None:
    first, second = Way("grpc"), Way("imageio")
    climb = climber(first, second)
    climb.broke(climb.open(), CUT, 3 * MiB, carried=True)
    opened = climb.open()
    assert (opened.transport, opened.why) == ("grpc", "grpc broke at 3.0 MiB: The connection broke.")
    assert not second.opened


def test_the_one_that_broke_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "COMEBACK", 60.0)
    first = Way("grpc")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if pauses.count(ladder.COMEBACK_PAUSE) == 3:
            first.error = None

    climb = climber(first, Way("imageio"), pause=pause)
    opened = climb.open()
    assert not sum(pauses)
    first.error = AWAY
    climb.broke(opened, CUT, MiB, carried=True)
    assert climb.open().transport == "grpc"
    assert first.opened == 5


def test_a_better_one_takes_over_from_one_that_broke() -> None:
    first, second = Way("grpc", AWAY), Way("imageio")
    climb = climber(first, second)
    opened = climb.open()
    first.error = None
    climb.broke(opened, CUT, MiB, carried=True)
    opened = climb.open()
    assert (opened.transport, opened.why) == ("grpc", "imageio broke at 1.0 MiB: The connection broke.")


def test_one_that_carried_nothing_is_left_out() -> None:
    first, second = Way("grpc"), Way("imageio")
    climb = climber(first, second)
    climb.broke(climb.open(), CUT, 0, carried=False)
    opened = climb.open()
    assert (opened.transport, opened.why) == ("imageio", "grpc broke at 0.0 MiB: The connection broke.")
    climb.broke(opened, AWAY, 2 * MiB, carried=False)
    with pytest.raises(errors.TransportError) as caught:
        climb.open()
    assert "carries the disk any further" in caught.value.message
    assert "grpc broke at 0.0 MiB: The connection broke." in caught.value.message
    assert "imageio broke at 2.0 MiB: No agent answers." in caught.value.message
    assert (first.opened, second.opened) == (1, 1)


def test_one_that_breaks_again_and_again_is_left_out() -> None:
    climb = climber(Way("grpc"), Way("imageio"))
    carried = []
    for place in range(2 * (ladder.MAX_BREAKS + 1)):
        opened = climb.open()
        carried.append(opened.transport)
        climb.broke(opened, CUT, place * MiB, carried=True)
    assert carried == ["grpc"] * (ladder.MAX_BREAKS + 1) + ["imageio"] * (ladder.MAX_BREAKS + 1)
    with pytest.raises(errors.TransportError):
        climb.open()


def test_error_of_the_disk_tells_what_broke_before() -> None:
    first = Way("grpc")
    climb = climber(first, Way("imageio"))
    opened = climb.open()
    first.error = AWAY
    climb.broke(opened, CUT, MiB, carried=True)
    opened = climb.open()
    with pytest.raises(agent_errors.ReadFailed) as caught:
        climb.broke(opened, agent_errors.ReadFailed("Input/output error.", "See the logs."), 2 * MiB, carried=True)
    assert caught.value.message == "Input/output error. grpc broke at 1.0 MiB: The connection broke."
    assert caught.value.hint == "See the logs."


@pytest.mark.parametrize("kind", [errors.RepositoryFull, errors.Damaged, errors.Interrupted])
def test_errors_that_are_not_of_the_data_path_are_raised_as_they_are(kind: type[errors.Error]) -> None:
    climb = climber(Way("grpc"))
    error = kind("No room.")
    with pytest.raises(kind) as caught:
        climb.broke(climb.open(), error, MiB, carried=True)
    assert caught.value is error


# Agents that are busy.

BUSY = agent_errors.Busy("The agent reads 16 disks already.", "Wait for other backups.", retry_after=7)


class Clock:
    """The time, which passes in pauses only. `pauses`: those that took any."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if seconds:
            self.pauses.append(seconds)
            self.on_pause()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "monotonic", clock)
    return clock


def test_a_busy_agent_is_waited_for_before_the_last_resort(clock: Clock) -> None:
    first, second, last = Way("netcat", BUSY), Way("grpc", BUSY), Way("imageio")
    said: list[str] = []
    opened = climber(first, second, last, pause=clock.pause).open(said.append)
    assert (opened.transport, opened.why) == ("imageio", f"netcat: {BUSY.message} grpc: {BUSY.message}")
    assert sum(clock.pauses) == pytest.approx(patience.PATIENCE)
    assert first.opened == second.opened == len(clock.pauses) + 1, "each as often, the other way to the same agent, too"
    assert said == [f"waits for host host1, for 5 minutes at most. {BUSY.message}"]


def test_pauses_are_those_that_the_agent_asks_for_and_grow(clock: Clock) -> None:
    climber(Way("grpc", BUSY), Way("imageio"), pause=clock.pause).open()
    *whole, _ = clock.pauses
    assert BUSY.retry_after <= whole[0] <= 1.5 * BUSY.retry_after
    assert all(20 <= pause <= 30 for pause in whole[3:])
    assert len(set(whole)) == len(whole), "by chance"


def test_a_place_that_becomes_free_is_taken(clock: Clock) -> None:
    first, last = Way("grpc", BUSY), Way("imageio")

    def free() -> None:
        if len(clock.pauses) == 2:
            first.error = None

    clock.on_pause = free
    opened = climber(first, last, pause=clock.pause).open()
    assert (opened.transport, opened.why, last.opened) == ("grpc", "", 0)


def test_an_agent_that_has_no_place_for_a_reading_is_waited_for(clock: Clock) -> None:
    """It says so only when blocks are asked for; the disk could be opened."""
    first, last = Way("grpc"), Way("imageio")
    climb = climber(first, last, pause=clock.pause)
    said: list[str] = []
    while (opened := climb.open(said.append)).transport == "grpc":
        climb.broke(opened, BUSY, 3 * MiB, carried=False)
    assert sum(clock.pauses) == pytest.approx(patience.PATIENCE)
    assert opened.why == f"grpc: {BUSY.message}"
    assert len(said) == 1
    climb.broke(opened, CUT, 4 * MiB, carried=True)
    assert climb.open().transport == "imageio", "it is not asked again"


def test_each_wait_for_a_place_is_a_new_one(clock: Clock) -> None:
    """A full backup is many readings: every one of them may have to wait."""
    climb = climber(Way("grpc"), Way("imageio"), pause=clock.pause)
    for place in range(100):
        opened = climb.open()
        assert opened.transport == "grpc"
        climb.broke(opened, BUSY, place * MiB, carried=True)
    assert sum(clock.pauses) > patience.PATIENCE


def test_an_agent_that_stops_while_it_is_busy_gets_time_to_come_back(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "COMEBACK", 60.0)
    first, last = Way("grpc"), Way("imageio")
    climb = climber(first, last, pause=clock.pause)
    climb.broke(climb.open(), agent_errors.Busy("The agent is stopping."), MiB, carried=True)
    first.error = AWAY

    def start() -> None:
        if len(clock.pauses) == 4:
            first.error = None

    clock.on_pause = start
    assert (climb.open().transport, last.opened) == ("grpc", 0)


def test_only_busy_ways(clock: Clock) -> None:
    with pytest.raises(errors.TransportError, match="reaches the disk on host host1") as caught:
        climber(Way("grpc", BUSY), pause=clock.pause).open()
    assert BUSY.message in caught.value.message
    assert caught.value.hint == BUSY.hint
    assert sum(clock.pauses) == pytest.approx(patience.PATIENCE)


def test_a_last_resort_that_comes_first_waits_for_nobody(clock: Clock) -> None:
    assert climber(Way("imageio"), Way("grpc", BUSY), pause=clock.pause).open().transport == "imageio"
    assert not clock.pauses
