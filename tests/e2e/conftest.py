"""An operator with a repository, an agent on the lab's host, and a witness of what backups read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import witness
from tests.lab.lab import Lab
from tests.lab.operator import Operator


@pytest.fixture
def operator(lab: Lab, tmp_path: Path) -> Iterator[Operator]:
    """An operator with an empty repository and no agent. An agent that he deploys is removed at the end."""
    one = Operator(lab, tmp_path / "operator")
    one.do("repository", "init")
    yield one
    one.run("agent", "remove", lab.host.name)


@pytest.fixture
def deployed(operator: Operator, lab: Lab) -> Operator:
    """The operator, with his agent on the lab's host."""
    operator.do("agent", "deploy", lab.host.name)
    return operator


@pytest.fixture
def copies(lab: Lab, tmp_path: Path) -> Iterator[witness.Copies]:
    """Independent copies of every disk that a backup reads."""
    directory = tmp_path / "witness"
    directory.mkdir()
    with witness.watching(lab, directory) as found:
        yield found
