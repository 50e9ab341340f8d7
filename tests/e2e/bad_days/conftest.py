"""A scene for each module, mended before each test: an operator, his agent, a VM with a recovery point."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.bad_days.scene import Scene
from tests.lab.lab import Lab


@pytest.fixture(scope="module")
def module_scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(lab, tmp_path_factory.mktemp("operator"))
    yield scene
    scene.close()


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    """The module's scene, with its VM down. Faults end with the test."""
    yield module_scene
    module_scene.lab.engine.faults.reset()
    module_scene.on_ticket = None
    module_scene.lab.host.destroy_vm(module_scene.vm.id)
