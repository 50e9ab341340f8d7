"""What tests of recovery points share: the engine as its own SDK shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ovirtsdk4
import pytest
from ovirtsdk4 import services

from tests.lab.lab import Lab


@pytest.fixture
def engine(lab: Lab) -> Iterator[services.SystemService]:
    """The engine's services. Faults that the test switched on end with it."""
    connection = ovirtsdk4.Connection(
        url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca), timeout=30
    )
    yield connection.system_service()
    lab.engine.faults.reset()
    with contextlib.suppress(ovirtsdk4.Error):
        connection.close()
