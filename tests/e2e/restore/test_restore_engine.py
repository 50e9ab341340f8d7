"""What a restore asks of the engine, against an engine that does what the facts say."""

from __future__ import annotations

import dataclasses
import uuid

import pytest
from ovirtsdk4 import services

from blockferry import engine, errors
from blockferry.jobs import configuration
from tests.conftest import NewVm
from tests.lab import processes
from tests.lab.lab import Lab, MiB, NewDisk, Vm

pytestmark = pytest.mark.lab

DISKS = (NewDisk(4 * MiB, ext4=False), NewDisk(3 * MiB + 512, format="raw", bus="virtio-scsi", ext4=False))


@pytest.fixture
def vm(new_vm: NewVm) -> Vm:
    """A VM that does not run."""
    return new_vm(disks=DISKS, start=False)


@pytest.fixture
def opened() -> list[str]:
    """The ids of transfers that were told of."""
    return []


def new_disk(connection: engine.Connection, **changes: object) -> engine.NewDisk:
    disk = engine.NewDisk(
        id=str(uuid.uuid4()),
        alias="new",
        size=5 * MiB + 512,
        initial_size=2 * MiB,
        format="cow",
        sparse=True,
        storage_domain_id=connection.storage_domains()[0].id,
        description="made by a test",
    )
    return dataclasses.replace(disk, **changes)  # type: ignore[arg-type]


def write(lab: Lab, transfer: engine.Transfer, pattern: str) -> None:
    """Write to the first MiB of the disk behind a transfer, as an agent would."""
    ticket = lab.host.get_ticket(transfer.ticket_id)
    assert ticket is not None
    assert ticket["ops"] == ["write"]
    url = str(ticket["url"]).replace("nbd:unix:", "nbd+unix:///?socket=")
    processes.run("qemu-io", "-f", "raw", "-c", f"write -P {pattern} 0 1M", "-c", "flush", url)


def test_a_new_disk_is_made_written_and_attached(
    lab: Lab, connection: engine.Connection, sdk: services.SystemService, vm: Vm, opened: list[str]
) -> None:
    disk = new_disk(connection)
    assert not connection.disk_exists(disk.id)
    connection.make_disk(disk)
    with connection.writing(disk, False, opened.append) as transfer:
        assert opened == [transfer.id]
        assert transfer.size == disk.size
        write(lab, transfer, "0x5a")
    found = sdk.disks_service().disk_service(disk.id).get()
    assert (found.status.value, found.format.value, found.backup.value) == ("ok", "cow", "incremental")
    assert found.provisioned_size == disk.size

    in_engine = connection.find_vm(vm.id)
    connection.attach_disk(in_engine, disk.id, "virtio_scsi", bootable=False)
    assert disk.id in {each.id for each in connection.disks(in_engine)}
    connection.remove_disk(disk.id)
    assert not connection.disk_exists(disk.id)
    connection.remove_disk(disk.id)


def test_a_disk_that_the_engine_refuses(connection: engine.Connection, vm: Vm) -> None:
    taken = new_disk(connection, id=vm.disks[0].id)
    with pytest.raises(errors.EngineError, match="is already used by the following existing disk"):
        connection.make_disk(taken)
    assert connection.disk_exists(taken.id), "the disk that was there before is nobody's to remove"


def test_a_disk_that_the_engine_gives_up(lab: Lab, connection: engine.Connection) -> None:
    """It was there, and is gone when it is looked at."""
    disk = new_disk(connection)
    lab.engine.faults.refuse(f"/disks/{disk.id}", 404, "")
    with pytest.raises(errors.EngineError, match="Disk 'new' is gone: the engine could not complete it"):
        connection.make_disk(disk)
    assert not connection.disk_exists(disk.id)


@pytest.mark.parametrize("keep", [False, True])
def test_a_failure_removes_a_disk_or_keeps_it(
    connection: engine.Connection, vm: Vm, opened: list[str], keep: bool
) -> None:
    """Also one that was there before, so a restore in place always keeps it."""
    in_engine = connection.find_vm(vm.id)
    disk = connection.disks(in_engine)[0]
    with pytest.raises(errors.RestoreError), connection.writing(disk, keep, opened.append):
        raise errors.RestoreError("It failed on the way.")
    assert connection.disk_exists(disk.id) == keep
    if keep:
        with connection.writing(disk, keep, opened.append):
            pass


def test_what_a_killed_restore_left_is_ended(
    connection: engine.Connection, vm: Vm, sdk: services.SystemService
) -> None:
    disk = connection.disks(connection.find_vm(vm.id))[0]
    opened: list[str] = []
    # Left at the end after all: otherwise it calls the engine when it is collected, and be it by the engine's own thread.
    with connection.writing(disk, True, opened.append):
        assert sdk.disks_service().disk_service(disk.id).get().status.value == "locked"
        with (
            pytest.raises(errors.Conflict, match="is being transferred"),
            connection.writing(disk, True, opened.append),
        ):
            pass
        connection.end_writing(opened[0], disk)
        connection.end_writing(opened[0], disk)
        assert sdk.disks_service().disk_service(disk.id).get().status.value == "ok"


def test_a_running_vm_keeps_its_disks(lab: Lab, connection: engine.Connection, vm: Vm, opened: list[str]) -> None:
    disk = connection.disks(connection.find_vm(vm.id))[0]
    lab.host.start_vm(vm.id)
    with (
        pytest.raises(errors.Conflict, match="is plugged to non-Down VMs"),
        connection.writing(disk, True, opened.append),
    ):
        pass
    assert opened == []


def test_a_vm_is_made_from_a_configuration(
    lab: Lab, connection: engine.Connection, sdk: services.SystemService, vm: Vm
) -> None:
    """Under new ids, beside the old one. A disk that is not there does not stop the import: an event tells."""
    ovf = connection.ovf(connection.find_vm(vm.id))
    cluster_id = connection.find_cluster(configuration.cluster_name(ovf))
    first = new_disk(connection)
    connection.make_disk(first)
    ids = {vm.disks[0].id: first.id, vm.disks[1].id: str(uuid.uuid4())}
    made = connection.make_vm(configuration.with_disks(ovf, ids), "made", cluster_id, keep_ids=False)
    try:
        assert made.id != vm.id
        assert (made.name, made.status, made.cluster_id) == ("made", "down", cluster_id)
        assert [disk.id for disk in connection.disks(made)] == [first.id]
        assert not connection.has_snapshots(made)
        assert lab.engine.events.codes(made.id) == [175]
        with pytest.raises(errors.Conflict, match="VM Name already exists"):
            connection.make_vm(ovf, "made", cluster_id, keep_ids=False)
        with pytest.raises(errors.Conflict, match="VM ID already exists"):
            connection.make_vm(ovf, "other", cluster_id, keep_ids=True)
        with pytest.raises(errors.EngineError, match="could not be parsed"):
            connection.make_vm("<nothing/>", "other", cluster_id, keep_ids=False)
    finally:
        connection.remove_vm(made)
        connection.remove_vm(made)
    assert connection.disk_exists(first.id), "disks stay when a VM is removed that was not completed"
    connection.remove_disk(first.id)


def test_a_vm_comes_back_under_its_own_ids(lab: Lab, connection: engine.Connection) -> None:
    vm = lab.new_vm(disks=DISKS[:1], start=False)
    old = connection.find_vm(vm.id)
    ovf = connection.ovf(old)
    ids = [disk.id for disk in connection.disks(old)]
    connection.remove_vm(old)
    made = connection.make_vm(ovf, old.name, old.cluster_id, keep_ids=True)
    assert made.id == old.id
    assert [disk.id for disk in connection.disks(made)] == ids
    assert lab.engine.events.codes(made.id)[-1] == 174
    connection.remove_vm(made)
    connection.remove_disk(ids[0])
