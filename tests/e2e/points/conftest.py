"""What tests of recovery points share: the engine as its own SDK shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ovirtsdk4
import pytest
from ovirtsdk4 import services

from tests.lab.lab import Lab
from tests.lab.operator import Operator


@pytest.fixture(scope="module")
def deployed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator with a repository and an agent for all VMs of a module: deploying takes long beside a backup."""
    operator = Operator(lab, tmp_path_factory.mktemp("operator"))
    operator.do("repository", "init")
    operator.do("agent", "deploy", lab.host.name)
    yield operator
    operator.run("agent", "remove", lab.host.name)


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
