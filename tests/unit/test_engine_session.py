"""Whatever the SDK stumbles over in an answer is the engine's fault, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from blockferry import errors
from blockferry.engine import Deadlines, faults, session


@pytest.fixture
def running(tmp_path: Path) -> Iterator[session.Session]:
    """A session that has sent nothing yet."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    place = faults.Place("https://engine.invalid/ovirt-engine/api", "admin@internal", tmp_path / "ca.pem", 1)
    running = session.Session(place, "secret", Deadlines())
    yield running
    running.close()


@pytest.mark.parametrize("stumble", [Exception("<"), ValueError("1x"), AttributeError("no 'text'")])
def test_an_answer_that_cannot_be_read(running: session.Session, stumble: Exception) -> None:
    def read(_api: session.Api) -> None:
        raise stumble

    with pytest.raises(errors.EngineError, match=f"asked to read a host.*makes no sense: {stumble}"):
        running.call("read a host", read)
