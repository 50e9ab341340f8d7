"""Recovery points in an encrypted bucket, copied to a plain directory: by the commands, from a VM to its disk again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.component import object_stores
from tests.conftest import NewVm
from tests.e2e.points.history import History
from tests.lab.lab import Lab, MiB, NewDisk
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab


@pytest.fixture
def operator(lab: Lab, tmp_path: Path) -> Iterator[Operator]:
    """An operator whose repository is to be in a bucket, opened by a key file that is not there yet."""
    with object_stores.serving() as s3:
        operator = Operator(lab, tmp_path / "operator")
        url = f"s3://{s3.new_bucket()}/backups"
        configured = operator.config.read_text()
        operator.config.write_text(
            configured.replace(f'url = "{operator.directory / "repository"}"', f'url = "{url}"\nkey_file = "key"')
        )
        operator.environment |= s3.environment
        yield operator


def test_points_in_an_encrypted_bucket(
    lab: Lab, new_vm: NewVm, operator: Operator, copies: Copies, engine: services.SystemService, tmp_path: Path
) -> None:
    operator.do("repository", "init", "--encrypt")
    vm = new_vm(disks=(NewDisk(8 * MiB, ext4=False),), start=False)
    lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P 7 0 {4 * MiB}")
    history = History(operator, vm, copies, engine)
    history.backup("--transport", "imageio")
    lab.host.qemu_io(vm.id, vm.disks[0].id, f"write -q -P 9 {MiB} {64 * 1024}")
    second = history.backup("--transport", "imageio")
    assert second.bytes("dirty") == 64 * 1024
    assert operator.do("verify", vm.name)["damage"] == []
    history.assert_all_restored(tmp_path / "restored")

    plain = Operator(lab, tmp_path / "plain")
    plain.do("repository", "init")
    copied = operator.do("repository", "copy", vm.name, "--to", str(plain.directory / "repository"))
    assert [done["new"] for done in copied] == [True, True]
    history.operator = plain
    history.assert_all_restored(tmp_path / "copies")
