"""Single files come back with their owners: out of a point of the lab's VM, while the VM has moved on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ovirtsdk4 import services

from tests.conftest import NewVm
from tests.e2e.points.history import History
from tests.lab import guestfish
from tests.lab.lab import Lab, MiB, NewDisk
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab


def test_single_files_come_back_with_their_owners(
    lab: Lab, new_vm: NewVm, deployed: Operator, copies: Copies, engine: services.SystemService, tmp_path: Path
) -> None:
    """By the README's commands. The second point is an incremental, so what comes back is of two backups."""
    vm = new_vm(disks=(NewDisk(32 * MiB),))
    vm.guest.run("mkdir -m 750 /mnt/vda/ann && chown 1000:1001 /mnt/vda/ann")
    vm.guest.write_file("/mnt/vda/ann/letter", b"Nobody wants backups.\n")
    vm.guest.run("chown 1000:1001 /mnt/vda/ann/letter && chmod 640 /mnt/vda/ann/letter && sync")
    history = History(deployed, vm, copies, engine)
    history.backup()
    vm.guest.write_file("/mnt/vda/ann/answer", b"Everybody wants restores.\n")
    vm.guest.run("chmod 600 /mnt/vda/ann/answer && sync")
    point = history.backup()
    assert point.read_as == ["incremental"]
    vm.guest.run("rm -r /mnt/vda/ann && sync")

    with guestfish.installed() as installed:
        deployed.environment |= {
            "PATH": f"{installed.path}:{os.environ['PATH']}",
            "TMPDIR": str(installed.temporary),
        }
        fetched = deployed.do("files", "get", vm.name, point.id, "/ann", "--to", str(tmp_path))
    assert fetched == [{"source": "/ann", "path": str(tmp_path / "ann")}]
    for name, owner, mode in (("", 1000, 0o750), ("letter", 1000, 0o640), ("answer", 0, 0o600)):
        status = (tmp_path / "ann" / name).stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (owner, mode), name
    assert (tmp_path / "ann/letter").read_bytes() == b"Nobody wants backups.\n"
    assert (tmp_path / "ann/answer").read_bytes() == b"Everybody wants restores.\n"
