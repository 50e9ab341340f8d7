"""The generated stubs are those of the contract, and old enough for every Python that runs an agent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import stubs

# The newest that still serve Python 3.9.
OLDEST_GRPCIO = (1, 80)
OLDEST_PROTOBUF = (6, 33)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return stubs.generate(tmp_path_factory.mktemp("stubs"))


@pytest.mark.parametrize("name", stubs.NAMES)
def test_the_stubs_in_the_tree_are_those_of_the_contract(generated: dict[str, str], name: str) -> None:
    in_tree = (stubs.ROOT / stubs.PACKAGE / name).read_text()
    assert in_tree == generated[name], "run `make proto`"


def test_the_stubs_ask_for_no_newer_runtime(generated: dict[str, str]) -> None:
    assert _version(r"Protobuf Python Version: ([\d.]+)", generated["agent_pb2.py"]) <= OLDEST_PROTOBUF
    assert _version(r"GRPC_GENERATED_VERSION = '([\d.]+)'", generated["agent_pb2_grpc.py"])[:2] <= OLDEST_GRPCIO


def test_every_call_of_the_contract_is_documented() -> None:
    lines = Path(stubs.ROOT / stubs.PACKAGE / "agent.proto").read_text().splitlines()
    calls = [number for number, line in enumerate(lines) if line.strip().startswith("rpc ")]
    assert calls
    assert all(lines[number - 1].strip().startswith("//") for number in calls)


def _version(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found is not None
    return tuple(int(part) for part in found[1].split("."))
