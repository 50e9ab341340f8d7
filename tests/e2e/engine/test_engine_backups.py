"""
Backups and checkpoints in the engine simulator, with the real SDK and a real host: phases, refusals, locks, failures.

That the data is right is shown in test_engine_examples.
"""

from __future__ import annotations

import uuid

import ovirtsdk4
import pytest
from ovirtsdk4 import types

from tests.e2e.engine.conftest import wait_for

pytestmark = pytest.mark.lab

MiB = 1 << 20


def start(vm_service, since: str | None = None, *, legacy: bool = True, **fields):
    """Start a backup of all disks. Returns its service when the engine has accepted it."""
    disks = [types.Disk(id=each.id) for each in vm_service.disk_attachments_service().list()]
    backup = vm_service.backups_service().add(
        types.Backup(**({"disks": disks, "from_checkpoint_id": since} | fields)),
        query={"legacy": "true"} if legacy else {},
    )
    return vm_service.backups_service().backup_service(backup.id)


def wait_until(service, phase: types.BackupPhase):
    """The backup, when it has reached the phase."""
    wait_for(lambda: service.get().phase == phase)
    return service.get()


def finalize(service) -> None:
    service.finalize()
    wait_until(service, types.BackupPhase.SUCCEEDED)


def complete(vm_service, since: str | None = None, *, legacy: bool = True) -> str:
    """A whole backup without a download. Returns its checkpoint's id."""
    service = start(vm_service, since, legacy=legacy)
    checkpoint_id = wait_until(service, types.BackupPhase.READY).to_checkpoint_id
    finalize(service)
    return checkpoint_id


def codes(engine, small_vm) -> list[int]:
    """Codes of the VM's events, in the order of time."""
    return engine.events.codes(small_vm.id)


def test_live_backup_shows_its_phases_and_locks_the_disks(engine, vm_service, small_vm) -> None:
    engine.faults.stick("starting")
    service = start(vm_service)
    backup = service.get()
    assert backup.phase == types.BackupPhase.INITIALIZING
    assert backup.to_checkpoint_id is None
    assert backup.host.id
    assert vm_service.get(all_content=True).initialization is None
    assert {disk.status for disk in service.disks_service().list()} == {types.DiskStatus.LOCKED}
    # The checkpoint is in the list before the host has made it.
    (checkpoint,) = vm_service.checkpoints_service().list()
    engine.faults.release("starting")
    backup = wait_until(service, types.BackupPhase.READY)
    assert backup.to_checkpoint_id == checkpoint.id
    finalize(service)
    assert vm_service.get(all_content=True).initialization is not None
    assert codes(engine, small_vm) == [10790, 10799, 10805, 10794, 10793]


def test_raw_disks_are_always_full(vm_service) -> None:
    base = complete(vm_service)
    service = start(vm_service, since=base)
    wait_until(service, types.BackupPhase.READY)
    modes = {disk.format: disk.backup_mode for disk in service.disks_service().list()}
    assert modes == {
        types.DiskFormat.COW: types.DiskBackupMode.INCREMENTAL,
        types.DiskFormat.RAW: types.DiskBackupMode.FULL,
    }
    chain = vm_service.checkpoints_service().list()
    assert [each.parent_id for each in chain] == [None, base]
    finalize(service)


def test_backup_of_raw_disks_only_has_no_checkpoint(vm_service) -> None:
    raw = vm_service.disk_attachments_service().list()[1]
    service = start(vm_service, disks=[types.Disk(id=raw.id)])
    assert wait_until(service, types.BackupPhase.READY).to_checkpoint_id is None
    assert vm_service.checkpoints_service().list() == []
    finalize(service)


def test_checkpoint_is_redefined_after_the_vm_was_restarted(vm_service, lab, small_vm) -> None:
    base = complete(vm_service)
    lab.host.destroy_vm(small_vm.id)
    lab.host.start_vm(small_vm.id)
    assert lab.host.list_checkpoints(small_vm.id) == []
    complete(vm_service, since=base)
    assert base in lab.host.list_checkpoints(small_vm.id)


def test_live_incremental_after_a_hybrid_and_the_other_way_round(vm_service) -> None:
    first = complete(vm_service, legacy=False)
    second = complete(vm_service, since=first)
    third = complete(vm_service, since=second, legacy=False)
    chain = vm_service.checkpoints_service().list()
    assert [each.id for each in chain] == [first, second, third]


def test_killed_vm_needs_a_full_backup(engine, vm_service, lab, small_vm) -> None:
    base = complete(vm_service)
    lab.host.kill_vm(small_vm.id)
    lab.host.start_vm(small_vm.id)
    with pytest.raises(ovirtsdk4.Error) as caught:
        start(vm_service, since=base)
    assert (caught.value.code, caught.value.fault.detail) == (400, "[]")
    assert vm_service.checkpoints_service().list() == []
    assert 10791 in codes(engine, small_vm)
    assert vm_service.backups_service().list()[-1].phase == types.BackupPhase.FAILED
    with pytest.raises(ovirtsdk4.Error, match=f"Checkpoint ID {base} doesn't exist"):
        start(vm_service, since=base)
    complete(vm_service)


def test_failed_redefinition_can_be_switched_on(engine, vm_service, small_vm) -> None:
    base = complete(vm_service)
    engine.faults.fail_redefine()
    with pytest.raises(ovirtsdk4.Error):
        start(vm_service, since=base)
    assert 10791 in codes(engine, small_vm)
    complete(vm_service)


def test_refused_begin_keeps_old_checkpoints_and_drops_the_new_one(engine, vm_service, small_vm) -> None:
    base = complete(vm_service)
    engine.faults.fail_start()
    wait_until(start(vm_service, since=base), types.BackupPhase.FAILED)
    assert [each.id for each in vm_service.checkpoints_service().list()] == [base]
    assert codes(engine, small_vm)[-1] == 10792


@pytest.mark.parametrize("legacy", [True, False])
def test_only_one_backup_at_a_time(vm_service, legacy) -> None:
    service = start(vm_service, legacy=legacy)
    wait_until(service, types.BackupPhase.READY)
    with pytest.raises(ovirtsdk4.Error, match="Cannot backup VM") as caught:
        start(vm_service, legacy=legacy)
    assert caught.value.code == 409
    finalize(service)


def test_paused_vm_is_refused(vm_service, lab, small_vm) -> None:
    lab.host.pause_vm(small_vm.id)
    with pytest.raises(ovirtsdk4.Error, match="should be in Up or Down status") as caught:
        start(vm_service)
    assert caught.value.code == 409


def test_wrong_requests_are_refused(vm_service) -> None:
    unknown = str(uuid.uuid4())
    with pytest.raises(ovirtsdk4.Error, match=unknown) as caught:
        start(vm_service, disks=[types.Disk(id=unknown)])
    assert (caught.value.code, caught.value.fault.reason) == (400, "Operation Failed")
    with pytest.raises(ovirtsdk4.Error, match=f"Checkpoint ID {unknown} doesn't exist") as caught:
        start(vm_service, since=unknown)
    assert caught.value.code == 400
    with pytest.raises(ovirtsdk4.Error, match="too long") as caught:
        start(vm_service, description="x" * 1025)
    assert caught.value.code == 400


def test_premature_finalize_aborts(engine, vm_service) -> None:
    engine.faults.stick("ready")
    service = start(vm_service)
    wait_until(service, types.BackupPhase.STARTING)
    with pytest.raises(ovirtsdk4.Error) as caught:
        service.finalize()
    assert caught.value.code == 400
    wait_until(service, types.BackupPhase.FAILED)
    assert vm_service.checkpoints_service().list() == []
    engine.faults.release("ready")
    complete(vm_service)


def test_second_finalize_is_refused(vm_service) -> None:
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    finalize(service)
    with pytest.raises(ovirtsdk4.Error, match="is already in 'succeeded' phase") as caught:
        service.finalize()
    assert caught.value.code == 400


def test_vm_that_dies_fails_the_backup_at_finalize_and_cannot_start_before(vm_service, lab, small_vm) -> None:
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    lab.host.kill_vm(small_vm.id)
    assert service.get().phase == types.BackupPhase.READY
    with pytest.raises(ovirtsdk4.Error, match="Cannot run VM"):
        vm_service.start()
    service.finalize()
    wait_until(service, types.BackupPhase.FAILED)
    assert vm_service.checkpoints_service().list() == []
    vm_service.start()
    wait_for(lambda: vm_service.get().status == types.VmStatus.UP)


def test_live_backup_blocks_what_would_end_the_vm(vm_service) -> None:
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    for action in (vm_service.stop, vm_service.shutdown, vm_service.remove):
        with pytest.raises(ovirtsdk4.Error, match="The VM is during a backup operation") as caught:
            action()
        assert caught.value.code == 409
    finalize(service)
    vm_service.stop()
    wait_for(lambda: vm_service.get().status == types.VmStatus.DOWN)
    vm_service.start()
    wait_for(lambda: vm_service.get().status == types.VmStatus.UP)


def test_hybrid_shows_a_snapshot_and_no_host(engine, vm_service, connection, small_vm) -> None:
    service = start(vm_service, legacy=False)
    backup = wait_until(service, types.BackupPhase.READY)
    assert backup.host is None
    snapshot = connection.follow_link(backup.snapshot)
    assert snapshot.description == "Auto-generated for Backup VM"
    frozen = vm_service.snapshots_service().snapshot_service(snapshot.id).disks_service().list()
    assert [disk.format for disk in frozen] == [types.DiskFormat.COW, types.DiskFormat.RAW]
    assert {disk.format for disk in service.disks_service().list()} == {types.DiskFormat.COW}
    assert vm_service.get(all_content=True).initialization is not None
    finalize(service)
    with pytest.raises(ovirtsdk4.NotFoundError):
        connection.follow_link(backup.snapshot)
    # The raw disk is raw again and has lost its bitmap.
    checkpoints = vm_service.checkpoints_service()
    members = checkpoints.checkpoint_service(backup.to_checkpoint_id).disks_service().list()
    assert [disk.format for disk in members] == [types.DiskFormat.COW]
    assert codes(engine, small_vm) == [10790, 45, 68, 10796, 342, 356, 10793]


def test_hybrid_lets_the_vm_be_stopped(vm_service) -> None:
    service = start(vm_service, legacy=False)
    base = wait_until(service, types.BackupPhase.READY).to_checkpoint_id
    vm_service.stop()
    wait_for(lambda: vm_service.get().status == types.VmStatus.DOWN)
    finalize(service)
    complete(vm_service, since=base, legacy=False)


def test_cold_backup_blocks_the_start(vm_service, lab, small_vm) -> None:
    lab.host.destroy_vm(small_vm.id)
    service = start(vm_service)
    backup = wait_until(service, types.BackupPhase.READY)
    assert backup.host is None and backup.snapshot is None
    with pytest.raises(ovirtsdk4.Error, match="Cannot run VM"):
        vm_service.start()
    cow = next(disk for disk in small_vm.disks if disk.format == "qcow2")
    assert lab.host.volume(cow.path).bitmaps == {backup.to_checkpoint_id: {"auto"}}
    finalize(service)


def test_new_disk_is_full_in_the_next_incremental(vm_service, connection) -> None:
    base = complete(vm_service)
    vm_service.stop()
    wait_for(lambda: vm_service.get().status == types.VmStatus.DOWN)
    disks = connection.system_service().disks_service()
    added = disks.add(
        types.Disk(
            name="second",
            format=types.DiskFormat.COW,
            provisioned_size=2 * MiB,
            backup=types.DiskBackup.INCREMENTAL,
            storage_domains=[types.StorageDomain(name="data1")],
        )
    )
    wait_for(lambda: disks.disk_service(added.id).get().status == types.DiskStatus.OK)
    vm_service.disk_attachments_service().add(
        types.DiskAttachment(
            disk=types.Disk(id=added.id), interface=types.DiskInterface.VIRTIO, bootable=False, active=True
        )
    )
    vm_service.start()
    wait_for(lambda: vm_service.get().status == types.VmStatus.UP)
    service = start(vm_service, since=base)
    wait_until(service, types.BackupPhase.READY)
    modes = {disk.id: disk.backup_mode for disk in service.disks_service().list()}
    assert modes[added.id] == types.DiskBackupMode.FULL
    assert types.DiskBackupMode.INCREMENTAL in modes.values()
    finalize(service)


def test_backup_with_an_id_of_the_client_fails_at_a_restart(engine, vm_service, small_vm) -> None:
    chosen = str(uuid.uuid4())
    service = start(vm_service, legacy=False, id=chosen)
    assert service.get().id == chosen
    wait_until(service, types.BackupPhase.READY)
    engine.faults.restart(seconds=0.1)
    assert service.get().phase == types.BackupPhase.FAILED
    assert codes(engine, small_vm)[-1] == 10814


def test_backup_goes_on_over_a_restart_when_the_engine_chose_its_id(engine, vm_service) -> None:
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    engine.faults.restart(seconds=0.1)
    finalize(service)


def test_finished_records_go_away(engine, vm_service) -> None:
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    finalize(service)
    engine.cleanup.run()
    service.get()
    engine.settings.succeeded_backup_cleanup = 0
    engine.cleanup.run()
    with pytest.raises(ovirtsdk4.NotFoundError):
        service.get()


@pytest.mark.parametrize("running", [True, False])
def test_checkpoints_are_removed_but_not_during_a_backup(vm_service, lab, small_vm, running) -> None:
    first, second, third = (complete(vm_service) for _ in range(3))
    service = start(vm_service)
    wait_until(service, types.BackupPhase.READY)
    checkpoints = vm_service.checkpoints_service()
    with pytest.raises(ovirtsdk4.Error, match="Cannot remove checkpoint") as caught:
        checkpoints.checkpoint_service(second).remove()
    assert caught.value.code == 409
    finalize(service)
    if not running:
        lab.host.destroy_vm(small_vm.id)
    checkpoints.checkpoint_service(second).remove()
    wait_for(lambda: len(checkpoints.list()) == 3)
    chain = checkpoints.list()
    assert [each.id for each in chain[:2]] == [first, third]
    assert chain[1].parent_id == first
    lab.host.destroy_vm(small_vm.id)
    cow = next(disk for disk in small_vm.disks if disk.format == "qcow2")
    assert set(lab.host.volume(cow.path).bitmaps) == {each.id for each in chain}
