"""Bad days with the agent of the host: there is none, it hangs, it is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from blockferry.transport import grpc_agent, ladder
from tests.e2e.bad_days.scene import Scene

pytestmark = pytest.mark.lab

# Seconds after which an agent that has gone silent is noticed in the middle of a disk.
SILENCE = grpc_agent.KEEPALIVE + grpc_agent.PING_TIMEOUT
# Seconds that it takes to see that it did not come back.
PROBE = ladder.COMEBACK + grpc_agent.PROBE_TIMEOUT

ONLY_GRPC = ("--transport", "grpc", "--no-fallback")


@pytest.fixture
def without_agent(scene: Scene) -> Iterator[Scene]:
    """The scene, whose agent is deployed again after the test."""
    yield scene
    scene.operator.do("agent", "deploy", scene.lab.host.name)


# The agent.


def test_host_without_agent(without_agent: Scene) -> None:
    scene = without_agent
    scene.operator.do("agent", "remove", scene.lab.host.name)
    result = scene.backup(*ONLY_GRPC)
    scene.assert_says(result, 7, "No transport reaches the disk on host host1", "No agent was deployed", "agent deploy")
    scene.assert_engine_is_clean()
    point = scene.assert_next_succeeds()
    carriers = [carrier for disk in point["disks"] for carrier in disk["carriers"]]
    assert {carrier["transport"] for carrier in carriers} == {"imageio"}
    assert "grpc: No agent was deployed on host 127.0.0.1." in carriers[0]["reason"]


def test_agent_that_is_down(without_agent: Scene) -> None:
    scene = without_agent
    kill(scene.agent_pid)
    result = scene.operator.run("agent", "status")
    scene.assert_says(result, 7, "No answer from the agent on: host1", "Deploy it again")
    result = scene.backup("--json")
    scene.assert_went_on(result)
    scene.assert_says(result, 0, "goes through imageio. grpc: The agent at .* does not answer")


def test_agent_that_hangs(without_agent: Scene) -> None:
    scene = without_agent
    with stopped(scene.agent_pid):
        result = scene.backup("--json")
    scene.assert_went_on(result)
    scene.assert_says(result, 0, "goes through imageio. grpc: The agent at .* did not answer in time")


@pytest.mark.parametrize("mode", ["live", "hybrid"])
def test_agent_is_killed_in_mid_disk(without_agent: Scene, mode: str) -> None:
    """Where nothing else may carry the disk; `test_failover` has what happens elsewhere."""
    scene = without_agent
    with scene.held_backup("--mode", mode, *ONLY_GRPC) as held:
        kill(scene.agent_pid)
        result = held.end()
    scene.assert_survived(result, 7, "The agent at .* does not answer", "agent status")
    scene.assert_starts_and_stops()


def test_agent_hangs_in_mid_disk(without_agent: Scene) -> None:
    scene = without_agent
    with scene.held_backup(*ONLY_GRPC) as held, stopped(scene.agent_pid):
        result = held.end(SILENCE + PROBE + 30)
    scene.assert_survived(result, 7, "The agent at .* does not answer", "agent status")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
