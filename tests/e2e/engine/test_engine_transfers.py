"""
Image transfers in the engine simulator, with the real SDK, the real daemon and its own client.
"""

from __future__ import annotations

import ssl
import urllib.request
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import ovirtsdk4
import pytest
from ovirt_imageio import client
from ovirtsdk4 import types

from tests.e2e.engine.conftest import wait_for
from tests.e2e.engine.test_engine_backups import complete, start, wait_until

pytestmark = pytest.mark.lab

Phase = types.ImageTransferPhase
Direction = types.ImageTransferDirection
Policy = types.ImageTransferTimeoutPolicy
FINISHED = (Phase.FINISHED_SUCCESS, Phase.FINISHED_FAILURE)


@pytest.fixture(autouse=True)
def quick(engine) -> None:
    engine.settings.poll_interval = 0.1


@pytest.fixture
def transfers(connection):
    return connection.system_service().image_transfers_service()


@pytest.fixture
def backup(vm_service):
    """A live backup that is ready, finalized in the end if it still can be."""
    service = start(vm_service)
    yield wait_until(service, types.BackupPhase.READY)
    if service.get().phase == types.BackupPhase.READY:
        service.finalize()


def add(transfers, disk_id: str, **fields):
    """A new download unless fields say otherwise. Returns its service."""
    options = {"disk": types.Disk(id=disk_id), "direction": Direction.DOWNLOAD} | fields
    return transfers.image_transfer_service(transfers.add(types.ImageTransfer(**options)).id)


def wait_for_phase(service, *phases: Phase):
    wait_for(lambda: service.get().phase in phases)
    return service.get()


def wait_for_transferring(service):
    return wait_for_phase(service, Phase.TRANSFERRING)


def ticket_id(transfer) -> str:
    return urlsplit(transfer.transfer_url).path.rpartition("/")[2]


def cow(vm):
    return next(disk for disk in vm.disks if disk.format == "qcow2")


def codes(connection) -> list[int]:
    """Codes of the newest events of all, newest first."""
    return [event.code for event in connection.system_service().events_service().list(max=5)]


def test_ticket_of_a_live_backup(engine, transfers, backup, lab, small_vm) -> None:
    disk = cow(small_vm)
    engine.faults.stick("transferring")
    service = add(
        transfers, disk.id, backup=types.Backup(id=backup.id), format=types.DiskFormat.RAW, inactivity_timeout=3600
    )
    # The URL may be seen before the ticket can be used.
    wait_for(lambda: service.get().transfer_url)
    assert service.get().phase == Phase.INITIALIZING
    engine.faults.release("transferring")
    transfer = wait_for_transferring(service)
    ticket = lab.host.get_ticket(ticket_id(transfer))
    assert ticket is not None
    assert ticket["transfer_id"] == transfer.id != ticket["uuid"]
    assert ticket["size"] == disk.size
    assert ticket["url"].endswith(f"/run/vdsm/backup/{backup.id}:exportname={disk.target}")
    assert (ticket["ops"], ticket["dirty"], ticket["inactivity_timeout"]) == (["read"], False, 3600)
    assert transfer.host.id == lab.host.id
    assert transfer.image.id == disk.id
    assert urlsplit(transfer.proxy_url).path == urlsplit(transfer.transfer_url).path
    service.finalize()
    transfer = wait_for_phase(service, *FINISHED)
    assert transfer.phase == Phase.FINISHED_SUCCESS
    assert (transfer.transfer_url, transfer.proxy_url, transfer.host) == (None, None, None)
    assert lab.host.get_ticket(str(ticket["uuid"])) is None


def test_backup_waits_for_its_transfers_and_status_ok_means_nothing(
    vm_service, transfers, backup, small_vm, connection
) -> None:
    disk = cow(small_vm)
    service = add(transfers, disk.id, backup=types.Backup(id=backup.id))
    wait_for_transferring(service)
    backup_service = vm_service.backups_service().backup_service(backup.id)
    with pytest.raises(ovirtsdk4.Error, match="There is an active image transfer for VM backup") as caught:
        backup_service.finalize()
    assert caught.value.code == 409
    service.finalize()
    wait_for_phase(service, Phase.FINISHED_SUCCESS)
    status = connection.system_service().disks_service().disk_service(disk.id).get().status
    assert status == types.DiskStatus.OK
    assert backup_service.get().phase == types.BackupPhase.READY


def test_download_over_https_finalizes_itself(transfers, backup, small_vm, lab, tmp_path) -> None:
    raw = next(disk for disk in small_vm.disks if disk.format == "raw")
    service = add(transfers, raw.id, backup=types.Backup(id=backup.id))
    transfer = wait_for_transferring(service)
    with urllib.request.urlopen(
        transfer.transfer_url, context=ssl.create_default_context(cafile=str(lab.ca))
    ) as answer:
        assert len(answer.read()) == raw.size
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_SUCCESS


def test_incremental_ticket_is_dirty(vm_service, transfers, small_vm, lab) -> None:
    base = complete(vm_service)
    for legacy in (True, False):
        backup = wait_until(start(vm_service, since=base, legacy=legacy), types.BackupPhase.READY)
        service = add(transfers, cow(small_vm).id, backup=types.Backup(id=backup.id))
        ticket = lab.host.get_ticket(ticket_id(wait_for_transferring(service)))
        assert ticket is not None
        assert ticket["dirty"] is True
        service.finalize()
        wait_for_phase(service, Phase.FINISHED_SUCCESS)
        backup_service = vm_service.backups_service().backup_service(backup.id)
        backup_service.finalize()
        wait_until(backup_service, types.BackupPhase.SUCCEEDED)


def test_broken_bitmap_of_a_hybrid_shows_in_the_transfer(vm_service, transfers, small_vm, lab, connection) -> None:
    base = complete(vm_service)
    lab.host.kill_vm(small_vm.id)
    lab.host.start_vm(small_vm.id)
    backup_service = start(vm_service, since=base, legacy=False)
    backup = wait_until(backup_service, types.BackupPhase.READY)
    service = add(transfers, cow(small_vm).id, backup=types.Backup(id=backup.id))
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE
    assert 1068 in codes(connection)
    backup_service.finalize()
    wait_until(backup_service, types.BackupPhase.SUCCEEDED)


def test_daemon_that_restarts_ends_the_download(transfers, backup, small_vm, lab, connection) -> None:
    disk = cow(small_vm)
    service = add(transfers, disk.id, backup=types.Backup(id=backup.id))
    wait_for_transferring(service)
    lab.host.restart_imageio()
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE
    assert 1065 in codes(connection)
    again = add(transfers, disk.id, backup=types.Backup(id=backup.id))
    wait_for_transferring(again)
    again.finalize()
    wait_for_phase(again, Phase.FINISHED_SUCCESS)


def test_idle_download_is_cancelled_or_paused(engine, transfers, backup, small_vm, connection) -> None:
    disk = cow(small_vm)
    for policy, code in ((Policy.LEGACY, 1072), (Policy.CANCEL, 1076)):
        service = add(
            transfers,
            disk.id,
            backup=types.Backup(id=backup.id),
            inactivity_timeout=1,
            timeout_policy=policy,
        )
        assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE
        assert code in codes(connection)
    service = add(
        transfers,
        disk.id,
        backup=types.Backup(id=backup.id),
        inactivity_timeout=1,
        timeout_policy=Policy.PAUSE,
    )
    before = ticket_id(wait_for_transferring(service))
    wait_for_phase(service, Phase.PAUSED_SYSTEM)
    # It is as idle as before: there is time until the next look.
    engine.settings.poll_interval = 2
    service.resume()
    assert ticket_id(wait_for_transferring(service)) == before
    service.cancel()
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE


def test_ticket_is_extended_in_time(engine, transfers, backup, small_vm, lab) -> None:
    engine.settings.ticket_refresh_allowance = engine.settings.host_ticket_validity - 1
    service = add(transfers, cow(small_vm).id, backup=types.Backup(id=backup.id))
    ticket = ticket_id(wait_for_transferring(service))
    expires = lab.host.get_ticket(ticket)["expires"]
    wait_for(lambda: lab.host.get_ticket(ticket)["expires"] > expires)
    service.finalize()
    wait_for_phase(service, Phase.FINISHED_SUCCESS)


def test_wrong_transfers_are_refused(vm_service, transfers, backup, small_vm, connection) -> None:
    disk = cow(small_vm)
    this = types.Backup(id=backup.id)
    with pytest.raises(ovirtsdk4.Error, match="plugged to non-Down VMs") as caught:
        add(transfers, disk.id)
    assert caught.value.code == 409
    with pytest.raises(ovirtsdk4.Error, match="specified VM backup does not exist") as caught:
        add(transfers, disk.id, backup=types.Backup(id=str(uuid.uuid4())))
    assert caught.value.code == 400
    with pytest.raises(ovirtsdk4.Error, match="format is not applicable") as caught:
        add(transfers, disk.id, backup=this, format=types.DiskFormat.COW)
    assert caught.value.code == 400
    service = add(transfers, disk.id, backup=this)
    with pytest.raises(ovirtsdk4.Error, match="is being transferred") as caught:
        add(transfers, disk.id, backup=this)
    assert caught.value.code == 409
    with pytest.raises(ovirtsdk4.Error, match="Cannot pause image download") as caught:
        service.pause()
    assert caught.value.code == 400
    wait_for_transferring(service)
    with pytest.raises(ovirtsdk4.Error, match="not in a paused state") as caught:
        service.resume()
    assert caught.value.code == 409
    service.finalize()
    wait_for_phase(service, Phase.FINISHED_SUCCESS)
    # Actions do not tell whether a transfer exists or may do this.
    service.cancel()
    service.extend()
    assert service.get().phase == Phase.FINISHED_SUCCESS
    transfers.image_transfer_service(str(uuid.uuid4())).finalize()


def test_disk_outside_the_backup_fails_late(vm_service, transfers, small_vm) -> None:
    raw = next(disk for disk in small_vm.disks if disk.format == "raw")
    backup_service = start(vm_service, disks=[types.Disk(id=cow(small_vm).id)])
    backup = wait_until(backup_service, types.BackupPhase.READY)
    service = add(transfers, raw.id, backup=types.Backup(id=backup.id))
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE
    backup_service.finalize()
    wait_until(backup_service, types.BackupPhase.SUCCEEDED)


def write_pattern(path: Path, size: int) -> None:
    """Data at both ends, zeros between."""
    with path.open("wb") as file:
        file.write(b"start".ljust(4096, b"A"))
        file.seek(size - 512)
        file.write(b"end".ljust(512, b"Z"))


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_upload_and_download_of_a_disk_of_a_vm_that_is_down(
    transfers, small_vm, lab, connection, tmp_path, format
) -> None:
    lab.host.destroy_vm(small_vm.id)
    disk = next(each for each in small_vm.disks if each.format == format)
    write_pattern(tmp_path / "source", disk.size)
    service = add(transfers, disk.id, direction=Direction.UPLOAD, format=types.DiskFormat.RAW)
    transfer = wait_for_transferring(service)
    disks = connection.system_service().disks_service()
    assert disks.disk_service(disk.id).get().status == types.DiskStatus.LOCKED
    client.upload(str(tmp_path / "source"), transfer.transfer_url, str(lab.ca))
    service.finalize()
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_SUCCESS
    assert disks.disk_service(disk.id).get().status == types.DiskStatus.OK

    service = add(transfers, disk.id, format=types.DiskFormat.RAW)
    transfer = wait_for_transferring(service)
    client.download(transfer.transfer_url, str(tmp_path / "copy"), str(lab.ca), fmt="raw")
    service.finalize()
    wait_for_phase(service, Phase.FINISHED_SUCCESS)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()


def test_qcow2_file_as_it_is(transfers, small_vm, lab, tmp_path) -> None:
    lab.host.destroy_vm(small_vm.id)
    disk = cow(small_vm)
    service = add(transfers, disk.id, format=types.DiskFormat.COW)
    transfer = wait_for_transferring(service)
    with urllib.request.urlopen(
        transfer.transfer_url, context=ssl.create_default_context(cafile=str(lab.ca))
    ) as answer:
        assert answer.read() == disk.path.read_bytes()
    service.finalize()
    wait_for_phase(service, Phase.FINISHED_SUCCESS)


def test_cancelled_upload_takes_the_disk_with_it(transfers, connection) -> None:
    disks = connection.system_service().disks_service()
    disk = disks.add(
        types.Disk(
            name="restored",
            format=types.DiskFormat.COW,
            provisioned_size=1 << 20,
            storage_domains=[types.StorageDomain(name="data1")],
        )
    )
    wait_for(lambda: disks.disk_service(disk.id).get().status == types.DiskStatus.OK)
    service = add(transfers, disk.id, direction=Direction.UPLOAD)
    wait_for_transferring(service)
    service.pause()
    wait_for_phase(service, Phase.PAUSED_USER)
    service.cancel()
    assert wait_for_phase(service, *FINISHED).phase == Phase.FINISHED_FAILURE
    with pytest.raises(ovirtsdk4.NotFoundError):
        disks.disk_service(disk.id).get()
