"""What tests of restores share: the engine as its own SDK shows it, and the controller's connection to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ovirtsdk4
import pytest
from ovirtsdk4 import services

from blockferry import engine
from tests.lab.lab import Lab

# Long enough for the lab on a busy machine.
DEADLINES = engine.Deadlines(conflict=20, ready=20, transfer=20, transfer_end=20, outage=20, ovf=5)


@pytest.fixture
def sdk(lab: Lab) -> Iterator[services.SystemService]:
    """The engine's services. Faults that the test switched on end with it."""
    connection = ovirtsdk4.Connection(
        url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca), timeout=30
    )
    yield connection.system_service()
    lab.engine.faults.reset()
    with contextlib.suppress(ovirtsdk4.Error):
        connection.close()


@pytest.fixture
def connection(lab: Lab) -> Iterator[engine.Connection]:
    """The controller's connection. Faults that the test switched on end with it."""
    with engine.connect(
        lab.engine.url, lab.username, lab.password, lab.ca, timeout=20, deadlines=DEADLINES
    ) as connected:
        yield connected
    lab.engine.faults.reset()
