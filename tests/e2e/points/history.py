"""
The recovery points of one VM, each with what nbdcopy saw of its disks while the backup was open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ovirtsdk4 import services

from tests.lab import processes, witness
from tests.lab.lab import Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies


class Taken(NamedTuple):
    """
    A recovery point.

    manifest: as the command printed it.  copies: raw files by disk id.  told: warnings that the operator saw.
    """

    manifest: dict[str, Any]
    copies: dict[str, Path]
    told: str

    @property
    def id(self) -> str:
        return str(self.manifest["id"])

    def disk(self, disk_id: str) -> dict[str, Any]:
        """What the manifest says of one disk."""
        (found,) = (disk for disk in self.manifest["disks"] if disk["id"] == disk_id)
        return dict(found)

    def bytes(self, kind: str) -> int:
        """Bytes that were dirty, read, moved or stored, of all disks."""
        return sum(int(disk["bytes"][kind]) for disk in self.manifest["disks"])

    @property
    def read_as(self) -> list[str]:
        """How each disk was read, in the VM's order."""
        return [disk["backup_mode"] for disk in self.manifest["disks"]]

    @property
    def carriers(self) -> set[str]:
        """What carried the disks, or parts of them."""
        return {carrier["transport"] for disk in self.manifest["disks"] for carrier in disk["carriers"]}


class History:
    """
    points: in the order in which they were taken.
    """

    def __init__(self, operator: Operator, vm: Vm, copies: Copies, engine: services.SystemService) -> None:
        self.operator = operator
        self.vm = vm
        self.in_engine = engine.vms_service().vm_service(vm.id)
        self.points: list[Taken] = []
        self._copies = copies

    def backup(self, *options: str) -> Taken:
        """Take a recovery point; it must succeed, and its figures must agree with each other."""
        result = self.operator.run("backup", self.vm.name, *options, "--json", "--quiet")
        assert result.status == 0, f"backup {options} ended with {result.status}: {result.errors}"
        manifest = result.document
        order = [disk.id for disk in self.vm.disks]
        manifest["disks"].sort(key=lambda disk: order.index(disk["id"]))
        taken = Taken(manifest, self._copies.take(self.vm), result.errors)
        assert set(taken.copies) == {disk["id"] for disk in manifest["disks"]}
        for disk in manifest["disks"]:
            assert_consistent(disk)
        self.points.append(taken)
        return taken

    @property
    def checkpoints(self) -> list[str]:
        """The ids of the VM's checkpoints that the engine has, the oldest first."""
        return [checkpoint.id for checkpoint in self.in_engine.checkpoints_service().list()]

    def assert_all_restored(self, directory: Path, image_format: str = "raw") -> None:
        """Restore every point; each image must be its copy, byte for byte."""
        for point in self.points:
            self.assert_restored(point, directory, image_format)

    def assert_restored(self, point: Taken, directory: Path, image_format: str = "raw") -> None:
        """Restore a point into a directory, which is emptied again."""
        images = self.operator.do(
            "restore", self.vm.name, point.id, "--to", str(directory), "--format", image_format, "--force"
        )
        assert {image["disk_id"] for image in images} == set(point.copies)
        for image in images:
            path = Path(image["path"])
            if image_format == "qcow2":
                path = _as_raw(path)
            copy = point.copies[image["disk_id"]]
            assert witness.equal(path, copy), f"{image['alias']} of {point.id} is not what nbdcopy saw"
        for path in directory.iterdir():
            path.unlink()


def assert_consistent(disk: dict[str, Any]) -> None:
    """What a manifest says of a disk's bytes must be possible."""
    count = disk["bytes"]
    assert 0 <= count["moved"] <= count["read"] <= disk["size"], count
    if disk["backup_mode"] == "full":
        assert count["dirty"] == disk["size"], count
    # Compression may save much, the chunks' headers and the index cost little.
    assert count["stored"] <= count["moved"] * 1.02 + 128 * 1024, count


def _as_raw(image: Path) -> Path:
    path = image.with_suffix(".converted")
    processes.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, path)
    return path
