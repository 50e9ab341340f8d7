"""What a recovery point is built on: found again after a restart, done without when it is lost, never somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from ovirtsdk4 import services, types

from tests.conftest import NewVm
from tests.e2e.points.history import History, Taken
from tests.lab import processes
from tests.lab.lab import KiB, Lab, MiB, NewDisk, Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

pytestmark = pytest.mark.lab

GRAIN = 64 * KiB

# Without file systems: only `write` writes to them.
DISKS = (
    NewDisk(40 * MiB, ext4=False),
    NewDisk(5 * MiB + 3 * GRAIN + 512, bus="virtio-scsi", ext4=False),
    NewDisk(2 * MiB + 512, format="raw", ext4=False),
)
DATA = 24 * MiB


@pytest.fixture
def history(lab: Lab, new_vm: NewVm, deployed: Operator, copies: Copies, engine: services.SystemService) -> History:
    """Of a VM that is down, with a first point."""
    vm = new_vm(disks=DISKS, start=False)
    for number in range(DATA // MiB):
        write(lab, vm, 0, f"write -P {number + 1} {number}M 1M")
    for place in (1, 2):
        write(lab, vm, place, "write -P 77 0 1M", f"write -P 78 {vm.disks[place].size - 512} 512")
    history = History(deployed, vm, copies, engine)
    assert history.backup().read_as == ["full"] * 3
    return history


def write(lab: Lab, vm: Vm, place: int, *commands: str) -> None:
    """Write to the VM's disk at this place, as its guest would."""
    for command in commands:
        lab.host.qemu_io(vm.id, vm.disks[place].id, command)


def assert_incremental(point: Taken, dirty: int) -> None:
    """The first disk was read by its bitmap. dirty: bytes of it that were written."""
    assert point.disk(point.manifest["disks"][0]["id"])["backup_mode"] == "incremental"
    assert point.manifest["disks"][0]["bytes"]["dirty"] == dirty
    assert point.manifest["disks"][0]["bytes"]["moved"] == dirty
    assert point.told == ""


def assert_full_but_cheap(point: Taken, written: int) -> None:
    """All was read, hardly anything moved. written: windows (MiB) of the first disk that were written since a full read."""
    disk = point.manifest["disks"][0]
    assert point.manifest["parent_id"] is None
    assert disk["backup_mode"] == "full"
    assert disk["bytes"]["read"] >= DATA
    assert 0 < disk["bytes"]["moved"] <= written * MiB


def test_base_survives_restarts(lab: Lab, history: History, tmp_path: Path) -> None:
    vm = history.vm
    vm.start()
    write(lab, vm, 0, f"write -P 0xa1 3M {2 * GRAIN}")
    assert_incremental(history.backup("--mode", "live"), 2 * GRAIN)
    lab.host.destroy_vm(vm.id)
    write(lab, vm, 0, f"write -P 0xa2 30M {GRAIN}")
    vm.start()
    write(lab, vm, 0, f"write -P 0xa3 31M {GRAIN}")
    assert_incremental(history.backup("--mode", "live"), 2 * GRAIN)
    assert_incremental(history.backup("--mode", "hybrid"), 0)
    history.assert_all_restored(tmp_path / "restored")


def test_base_that_is_lost(lab: Lab, history: History, tmp_path: Path) -> None:
    vm = history.vm
    vm.start()
    write(lab, vm, 0, f"write -P 0xb1 1M {GRAIN}")
    assert_incremental(history.backup("--mode", "live"), GRAIN)

    # QEMU is killed: its bitmaps stay marked as in use.
    write(lab, vm, 0, f"write -P 0xb2 2M {GRAIN}")
    lab.host.kill_vm(vm.id)
    vm.start()
    point = history.backup("--mode", "live")
    assert_full_but_cheap(point, 2)
    assert "Taking a full backup instead" in point.told

    # Killed again, and this time it stays down: the bitmap is missed only when a transfer starts.
    write(lab, vm, 0, f"write -P 0xb3 4M {GRAIN}")
    lab.host.kill_vm(vm.id)
    point = history.backup("--mode", "live")
    assert point.manifest["mode"] == "cold"
    assert_full_but_cheap(point, 1)
    assert "Taking a full backup instead" in point.told
    assert history.checkpoints == [point.manifest["checkpoint_id"]], "that of the attempt before stays in the engine"

    write(lab, vm, 0, f"write -P 0xb4 5M {GRAIN}")
    assert_incremental(history.backup(), GRAIN)

    # Somebody deletes the checkpoint.
    (checkpoint,) = history.checkpoints
    history.in_engine.checkpoints_service().checkpoint_service(checkpoint).remove()
    processes.wait_for("removal of the checkpoint", lambda: not history.checkpoints)
    write(lab, vm, 0, f"write -P 0xb5 6M {GRAIN}")
    assert_full_but_cheap(history.backup(), 2)

    # The host cannot redefine the checkpoint; the engine forgets all that the VM has.
    vm.start()
    write(lab, vm, 0, f"write -P 0xb6 7M {GRAIN}")
    lab.engine.faults.fail_redefine()
    point = history.backup("--mode", "live")
    assert_full_but_cheap(point, 1)
    assert "Taking a full backup instead" in point.told

    assert_incremental(history.backup("--mode", "live"), 0)
    assert history.checkpoints == [history.points[-1].manifest["checkpoint_id"]]
    history.assert_all_restored(tmp_path / "restored")


def test_disks_that_come_and_grow(lab: Lab, history: History, engine: services.SystemService, tmp_path: Path) -> None:
    vm = history.vm
    first, second, raw = (disk.id for disk in vm.disks)

    # A disk more: it alone is read whole, besides the raw one.
    added = add_disk(lab, history, engine, 3 * MiB)
    write(lab, vm, 3, "write -P 0xc1 1M 512")
    write(lab, vm, 0, f"write -P 0xc2 0 {GRAIN}")
    point = history.backup()
    assert point.read_as == ["incremental", "incremental", "full", "full"]
    assert point.manifest["parent_id"] == history.points[0].id
    assert history.backup().read_as == ["incremental", "incremental", "full", "incremental"]

    # One disk grows while the VM is down, another while it runs.
    grow(history, second, 7 * MiB + 512)
    write(lab, vm, 1, f"write -P 0xc3 {7 * MiB} 512")
    point = history.backup()
    assert point.read_as[1] == "incremental"
    assert point.disk(second)["size"] == 7 * MiB + 512
    assert point.disk(second)["bytes"]["moved"] == 512
    vm.start()
    grow(history, first, 300 * MiB)
    write(lab, vm, 0, f"write -P 0xc4 299M {GRAIN}")
    assert_incremental(history.backup("--mode", "live"), GRAIN)
    grow(history, raw, 4 * MiB)
    assert history.backup("--mode", "hybrid").disk(raw)["size"] == 4 * MiB
    assert {disk["id"] for disk in history.points[-1].manifest["disks"]} == {first, second, raw, added}
    history.assert_all_restored(tmp_path / "restored")


def test_some_of_the_disks(lab: Lab, history: History, tmp_path: Path) -> None:
    vm = history.vm
    first, second, _ = vm.disks
    whole = history.points[0]
    write(lab, vm, 0, f"write -P 0xd1 1M {GRAIN}")
    write(lab, vm, 1, f"write -P 0xd2 1M {GRAIN}")

    some = history.backup("--disk", f"{vm.name}_Disk1")
    assert [disk["id"] for disk in some.manifest["disks"]] == [first.id]
    assert_incremental(some, GRAIN)
    assert history.checkpoints == [whole.manifest["checkpoint_id"], some.manifest["checkpoint_id"]], (
        "the other disks still need the older checkpoint"
    )

    write(lab, vm, 0, f"write -P 0xd3 2M {GRAIN}")
    some = history.backup("--disk", second.id)
    assert [disk["id"] for disk in some.manifest["disks"]] == [second.id]
    assert some.manifest["parent_id"] == whole.id

    again = history.backup()
    assert again.manifest["parent_id"] == whole.id, "the newest that has all disks"
    assert again.manifest["disks"][0]["bytes"]["dirty"] == 2 * GRAIN
    assert history.checkpoints == [again.manifest["checkpoint_id"]]

    full = history.backup("--full")
    assert full.manifest["parent_id"] is None
    assert full.bytes("moved") <= 3 * MiB
    history.assert_all_restored(tmp_path / "restored")


def test_checkpoints_of_somebody_else(history: History, tmp_path: Path) -> None:
    foreign = back_up_with_another_tool(history)
    history.backup()
    history.backup("--full")
    history.backup("--fresh")
    assert history.checkpoints == [foreign, history.points[-1].manifest["checkpoint_id"]]
    history.assert_all_restored(tmp_path / "restored")


def test_configuration_is_kept(history: History) -> None:
    point = history.points[0].manifest
    directory = history.operator.directory / "repository/vms" / history.vm.id / point["id"]
    ovf = history.in_engine.get(all_content=True).initialization.configuration.data
    assert (directory / "vm.ovf").read_text() == ovf
    assert point["ovf"]["length"] == len(ovf.encode())
    assert point["ovf_missing"] is None
    assert point["vm"] == {"id": history.vm.id, "name": history.vm.name}


def add_disk(lab: Lab, history: History, engine: services.SystemService, size: int) -> str:
    """Attach a new qcow2 disk to the VM, which is down, and return its id."""
    (domain,) = engine.storage_domains_service().list()
    disks = engine.disks_service()
    disk = disks.add(
        types.Disk(
            name="added",
            format=types.DiskFormat.COW,
            provisioned_size=size,
            backup=types.DiskBackup.INCREMENTAL,
            storage_domains=[types.StorageDomain(id=domain.id)],
        )
    )
    processes.wait_for("the new disk", lambda: disks.disk_service(disk.id).get().status == types.DiskStatus.OK)
    history.in_engine.disk_attachments_service().add(
        types.DiskAttachment(
            disk=types.Disk(id=disk.id), interface=types.DiskInterface.VIRTIO, active=True, bootable=False
        )
    )
    return str(disk.id)


def grow(history: History, disk_id: str, size: int) -> None:
    attachment = history.in_engine.disk_attachments_service().attachment_service(disk_id)
    attachment.update(types.DiskAttachment(disk=types.Disk(provisioned_size=size)))

    def grown() -> bool:
        (found,) = (
            each.disk
            for each in history.in_engine.disk_attachments_service().list(follow="disk")
            if each.disk.id == disk_id
        )
        return bool(found.provisioned_size == size and found.status == types.DiskStatus.OK)

    processes.wait_for("growing of the disk", grown)


def back_up_with_another_tool(history: History) -> str:
    """Take a backup as another tool would, and return the id of its checkpoint."""
    backups = history.in_engine.backups_service()
    disks = [types.Disk(id=disk.id) for disk in history.vm.disks]
    started = backups.add(types.Backup(disks=disks, description="another tool"), query={"legacy": "true"})
    service = backups.backup_service(started.id)
    processes.wait_for("start of its backup", lambda: service.get().phase == types.BackupPhase.READY)
    checkpoint = str(service.get().to_checkpoint_id)
    service.finalize()
    processes.wait_for("end of its backup", lambda: service.get().phase == types.BackupPhase.SUCCEEDED)
    return checkpoint
