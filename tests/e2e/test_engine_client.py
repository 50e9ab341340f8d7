"""The controller's view of the engine: backups that go well, and those that the engine refuses or breaks."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ovirtsdk4
import pytest

from blockferry import engine, errors
from blockferry.engine import Connection, Deadlines, JournalEntry
from tests.lab.errors import HostError
from tests.lab.lab import Lab, MiB, NewDisk, Vm

pytestmark = pytest.mark.lab

# Without file systems: these VMs never get as far as a guest.
QCOW2 = NewDisk(10 * MiB, ext4=False)
RAW = NewDisk(3 * MiB + 512, format="raw", bus="virtio-scsi", ext4=False)

# Long enough for the lab on a busy machine, short enough for a test that waits for one to pass.
DEADLINES = Deadlines(
    conflict=20, ready=20, transfer=20, transfer_end=20, finalize=40, give_up=40, outage=20, ovf=1, checkpoint=20
)


class Observer:
    """Another client, that nobody here wrote: what it sees is what is in the engine."""

    def __init__(self, lab: Lab) -> None:
        self.sdk = ovirtsdk4.Connection(
            url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca), timeout=30
        )
        self._api = self.sdk.system_service()

    def vm(self, vm: Vm) -> ovirtsdk4.services.VmService:
        return self._api.vms_service().vm_service(vm.id)

    def open_backups(self, vm: Vm) -> list[str]:
        backups = self.vm(vm).backups_service().list()
        return [backup.id for backup in backups if backup.phase.value not in ("succeeded", "failed")]

    def open_transfers(self, vm: Vm) -> list[str]:
        disks = [disk.id for disk in vm.disks]
        return [
            transfer.id
            for transfer in self._api.image_transfers_service().list()
            if transfer.image.id in disks and not transfer.phase.value.startswith("finished")
        ]

    def start_backup(self, vm: Vm, description: str) -> str:
        """Start a live backup and a transfer of the first disk, and leave both open. Returns the backup's id."""
        types = ovirtsdk4.types
        disk = types.Disk(id=vm.disks[0].id)
        service = self.vm(vm).backups_service()
        backup = service.add(types.Backup(disks=[disk], description=description), query={"legacy": "true"})
        for _ in engine.polling.ticks(20):
            if service.backup_service(backup.id).get().phase == types.BackupPhase.READY:
                break
        self._api.image_transfers_service().add(
            types.ImageTransfer(
                backup=types.Backup(id=backup.id), disk=disk, direction=types.ImageTransferDirection.DOWNLOAD
            )
        )
        return str(backup.id)

    def start_download(self, vm: Vm) -> None:
        """Start a transfer of the first disk of a VM that is down and in no backup, and leave it open."""
        types = ovirtsdk4.types
        disk = types.Disk(id=vm.disks[0].id)
        direction = types.ImageTransferDirection.DOWNLOAD
        self._api.image_transfers_service().add(types.ImageTransfer(disk=disk, direction=direction))

    def is_clean(self, vm: Vm) -> bool:
        return not self.open_backups(vm) and not self.open_transfers(vm)


Connect = Callable[..., contextlib.AbstractContextManager[Connection]]


@pytest.fixture
def connect(lab: Lab) -> Iterator[Connect]:
    """Connect to the lab's engine with short deadlines; named ones may differ. Faults end with the test."""

    def make(timeout: float = 30, url: str = lab.engine.url, **deadlines: float) -> object:
        return engine.connect(
            url,
            lab.username,
            lab.password,
            lab.ca,
            timeout=timeout,
            deadlines=dataclasses.replace(DEADLINES, **deadlines),
        )

    yield make  # type: ignore[misc]
    lab.engine.faults.reset()


@pytest.fixture
def connection(connect: Connect) -> Iterator[Connection]:
    with connect() as connection:
        yield connection


@pytest.fixture
def observer(lab: Lab) -> Iterator[Observer]:
    observer = Observer(lab)
    yield observer
    with contextlib.suppress(ovirtsdk4.Error):
        observer.sdk.close()


@pytest.fixture
def new_small_vm(lab: Lab) -> Iterator[Callable[..., Vm]]:
    """Make VMs with small disks, running unless told otherwise; they are removed with the test."""
    made: list[Vm] = []

    def make(*disks: NewDisk, name: str | None = None, up: bool = True) -> Vm:
        vm = lab.new_vm(name, disks=disks or (QCOW2, RAW), start=False)
        made.append(vm)
        if up:
            lab.host.start_vm(vm.id)
        return vm

    yield make
    for vm in made:
        lab.host.remove_vm(vm.id)


@pytest.fixture
def vm(new_small_vm: Callable[..., Vm]) -> Vm:
    """A running VM with a qcow2 and a raw disk."""
    return new_small_vm()


def back_up(connection: Connection, vm: Vm, mode: str = "live", since: str | None = None) -> engine.Backup:
    """Run a backup with a transfer of each disk. Returns it, ended."""
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), mode=mode, since=since) as backup:  # type: ignore[arg-type]
        for disk in backup.disks:
            with backup.transfer(disk):
                pass
    return backup


# Looking things up.


def test_a_vm_is_found_by_name_and_id(connection: Connection, vm: Vm, lab: Lab) -> None:
    found = connection.find_vm(vm.name)
    assert (found.id, found.name, found.status) == (vm.id, vm.name, "up")
    assert connection.find_vm(vm.id) == found
    assert connection.version.startswith("4.5")
    assert vm.name in connection.ovf(found)
    for name in (lab.host.id, lab.host.name, lab.host.address):
        host = connection.find_host(name)
        assert (host.id, host.ssh_port, host.ssh_public_key) == (
            lab.host.id,
            lab.host.ssh_port,
            lab.host.ssh_public_key,
        )


def test_unknown_names_say_what_is_near(connection: Connection, new_small_vm: Callable[..., Vm]) -> None:
    new_small_vm(name="database-01", up=False)
    for name in ("Database-01", "database-02"):
        with pytest.raises(errors.NotFound, match=f"no VM '{name}'.*Near to it: database-01"):
            connection.find_vm(name)
    for name in ('" or name="*', "*", "00000000-0000-4000-8000-000000000000"):
        with pytest.raises(errors.NotFound):
            connection.find_vm(name)
    with pytest.raises(errors.NotFound, match="Its hosts are: host1"):
        connection.find_host("host2")


def test_ambiguous_names_list_the_ids(connection: Connection, new_small_vm: Callable[..., Vm]) -> None:
    twins = [new_small_vm(name="twin", up=False) for _ in range(2)]
    with pytest.raises(errors.Ambiguous) as caught:
        connection.find_vm("twin")
    for vm in twins:
        assert f"{vm.id} (cluster Default)" in str(caught.value)
        assert connection.find_vm(vm.id).id == vm.id


def test_the_configuration_is_hidden_during_a_live_backup(connection: Connection, vm: Vm) -> None:
    found = connection.find_vm(vm.name)
    with (
        connection.backup(found, connection.disks(found), mode="live", description="nightly") as backup,
        pytest.raises(errors.Conflict, match=f"VM '{vm.name}' is in another backup: {backup.id} 'nightly"),
    ):
        connection.ovf(found)


def test_the_configuration_is_hidden_while_a_disk_is_locked(
    connection: Connection, new_small_vm: Callable[..., Vm], observer: Observer
) -> None:
    vm = new_small_vm(up=False)
    observer.start_download(vm)
    with pytest.raises(errors.Conflict, match=f"OVF.*of VM '{vm.name}': locked disks are {vm.name}_Disk1"):
        connection.ovf(connection.find_vm(vm.name))


# Backups that go well.


def test_live_full_then_incremental(connection: Connection, vm: Vm, lab: Lab, observer: Observer) -> None:
    found = connection.find_vm(vm.name)
    disks = connection.disks(found)
    journal: list[JournalEntry] = []
    with connection.backup(found, disks, mode="live", description="nightly", journal=journal.append) as backup:
        assert backup.mode == "live"
        assert [(disk.id, disk.size, disk.incremental) for disk in backup.disks] == [
            (disk.id, disk.size, False) for disk in vm.disks
        ]
        with backup.transfer(backup.disks[0]) as transfer:
            assert transfer.host.id == lab.host.id
            assert lab.host.get_ticket(transfer.ticket_id) is not None
            assert transfer.transfer_url.endswith(f":{lab.host.imageio_port}/images/{transfer.ticket_id}")
            assert transfer.size == vm.disks[0].size
        assert lab.host.get_ticket(transfer.ticket_id) is None
    assert backup.description.startswith("nightly [")
    assert [(entry.backup_id, entry.transfer_id) for entry in journal] == [
        (None, None),
        (backup.id, None),
        (backup.id, transfer.id),
    ]
    assert {(entry.vm_id, entry.description) for entry in journal} == {(vm.id, backup.description)}
    assert [(point.id, point.usable) for point in connection.checkpoints(found)] == [(backup.to_checkpoint_id, True)]

    second = back_up(connection, vm, since=backup.to_checkpoint_id)
    assert [disk.incremental for disk in second.disks] == [True, False]  # raw disks never are
    assert observer.is_clean(vm)


def test_hybrid_is_what_the_engine_does_by_default(connection: Connection, vm: Vm, observer: Observer) -> None:
    first = back_up(connection, vm, mode="engine")
    second = back_up(connection, vm, mode="hybrid", since=first.to_checkpoint_id)
    assert (first.mode, second.mode) == ("hybrid", "hybrid")
    assert [disk.incremental for disk in second.disks] == [True, False]
    assert observer.is_clean(vm)


def test_a_hybrid_snapshot_that_stays_is_named(
    connection: Connection,
    vm: Vm,
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(vm_id: str, disk_ids: list[str]) -> None:
        raise HostError("no merge today")

    assert back_up(connection, vm, mode="hybrid").mode == "hybrid"
    assert not caplog.messages
    monkeypatch.setattr(lab.host, "merge_snapshot", fail)
    assert back_up(connection, vm, mode="hybrid").mode == "hybrid"
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("blockferry")]
    assert f"VM '{vm.name}'" in message
    assert "delete the VM's snapshots named 'Auto-generated for Backup VM'" in message


def test_live_of_a_stopped_vm_is_cold(connection: Connection, new_small_vm: Callable[..., Vm]) -> None:
    vm = new_small_vm(up=False)
    first = back_up(connection, vm)
    second = back_up(connection, vm, since=first.to_checkpoint_id)
    assert (first.mode, second.mode) == ("cold", "cold")
    assert [disk.incremental for disk in second.disks] == [True, False]


def test_raw_disks_alone_have_no_checkpoint(connection: Connection, new_small_vm: Callable[..., Vm]) -> None:
    vm = new_small_vm(RAW)
    assert back_up(connection, vm).to_checkpoint_id is None
    assert connection.checkpoints(connection.find_vm(vm.name)) == []


def test_transfers_side_by_side(connection: Connection, vm: Vm, observer: Observer) -> None:
    found = connection.find_vm(vm.name)
    together = threading.Barrier(2, timeout=20)
    tickets: list[str] = []

    def read(backup: engine.Backup, disk: engine.BackupDisk) -> None:
        with backup.transfer(disk) as transfer:
            together.wait()
            tickets.append(transfer.ticket_id)

    with connection.backup(found, connection.disks(found)) as backup:
        threads = [threading.Thread(target=read, args=(backup, disk)) for disk in backup.disks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(tickets)) == 2
    assert observer.is_clean(vm)


def test_old_checkpoints_are_deleted(connection: Connection, vm: Vm, lab: Lab) -> None:
    found = connection.find_vm(vm.name)
    first = back_up(connection, vm).to_checkpoint_id
    second = back_up(connection, vm, since=first).to_checkpoint_id
    assert first is not None
    lab.host.pause_vm(vm.id)
    with pytest.raises(errors.Conflict, match=f"VM '{vm.name}' is paused"):
        connection.delete_checkpoint(found, first)
    lab.host.resume_vm(vm.id)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # whoever comes late finds it gone, at one moment or another
        list(pool.map(lambda _: connection.delete_checkpoint(found, first), range(4)))
    connection.delete_checkpoint(found, first)
    assert [point.id for point in connection.checkpoints(found)] == [second]


# Not now.


def test_a_second_backup_names_the_first(connection: Connection, vm: Vm) -> None:
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), description="the first") as first:
        with pytest.raises(errors.Conflict) as caught:
            back_up(connection, vm)
        assert first.id in str(caught.value)
        assert "'the first [" in str(caught.value)
    assert back_up(connection, vm).mode == "live"


@pytest.mark.parametrize("mode", ["live", "engine"])
def test_a_paused_vm_is_not_backed_up(connection: Connection, vm: Vm, lab: Lab, mode: str) -> None:
    lab.host.pause_vm(vm.id)
    with pytest.raises(errors.Conflict, match=f"VM '{vm.name}' is paused.*Resume it"):
        back_up(connection, vm, mode=mode)


def test_locks_that_pass_are_waited_for(
    connection: Connection, vm: Vm, lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    locked = "Cannot backup VM: The following disks are locked: x. Please try again in a few minutes."
    lab.engine.faults.refuse(f"/vms/{vm.id}/backups", 409, locked)
    assert back_up(connection, vm).mode == "live"
    assert sum("Waiting up to 20 s to start the backup" in message for message in caplog.messages) == 1


def test_locks_that_do_not_pass_are_not(connect: Connect, vm: Vm, lab: Lab) -> None:
    preview = "Cannot backup VM. VM is previewing a Snapshot."
    lab.engine.faults.refuse(f"/vms/{vm.id}/backups", 409, preview)
    with connect(conflict=60) as connection, pytest.raises(errors.Conflict, match="previewing a Snapshot"):
        back_up(connection, vm)


# A base that does not do.


def test_an_unknown_checkpoint(connection: Connection, vm: Vm) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    with pytest.raises(errors.CheckpointUnusable, match=f"Checkpoint ID {unknown} doesn't exist"):
        back_up(connection, vm, since=unknown)


@pytest.mark.parametrize("fault", ["fail_redefine", "fail_start"])
def test_an_incremental_that_does_not_start(
    connection: Connection, vm: Vm, lab: Lab, observer: Observer, fault: str
) -> None:
    base = back_up(connection, vm).to_checkpoint_id
    getattr(lab.engine.faults, fault)()
    with pytest.raises(errors.CheckpointUnusable, match="Take a full backup"):
        back_up(connection, vm, since=base)
    assert observer.is_clean(vm)
    assert back_up(connection, vm).mode == "live"


def test_a_bitmap_that_is_gone_shows_in_the_transfer(
    connection: Connection, new_small_vm: Callable[..., Vm], lab: Lab, observer: Observer
) -> None:
    vm = new_small_vm(QCOW2, up=False)
    base = back_up(connection, vm).to_checkpoint_id
    assert base is not None
    lab.host.remove_bitmap(vm.disks[0].path, base)
    with pytest.raises(errors.CheckpointUnusable, match="The engine says: "):
        back_up(connection, vm, since=base)
    assert observer.is_clean(vm)
    assert back_up(connection, vm).mode == "cold"


# Failures, and what they leave.


def test_a_full_that_does_not_start_says_what_the_engine_says(
    connection: Connection, vm: Vm, lab: Lab, observer: Observer
) -> None:
    lab.engine.faults.fail_start()
    with pytest.raises(errors.EngineError, match=f"The engine says: Backup .* for VM {vm.name} failed") as caught:
        back_up(connection, vm)
    assert type(caught.value) is errors.EngineError
    assert observer.is_clean(vm)


@pytest.mark.parametrize("failure", [OSError("disk"), KeyboardInterrupt()])
@pytest.mark.parametrize("mode", ["live", "engine"])
def test_what_breaks_inside_leaves_the_engine_clean(
    connection: Connection, vm: Vm, observer: Observer, failure: BaseException, mode: str
) -> None:
    found = connection.find_vm(vm.name)
    with (
        pytest.raises(type(failure)) as caught,
        connection.backup(found, connection.disks(found), mode=mode) as backup,  # type: ignore[arg-type]
        backup.transfer(backup.disks[0]),
    ):
        raise failure
    assert caught.value is failure
    assert observer.is_clean(vm)


@pytest.mark.parametrize(("phase", "step"), [("ready", "ready"), ("transferring", "transfer")])
def test_a_phase_that_never_comes(
    connect: Connect, vm: Vm, lab: Lab, observer: Observer, phase: str, step: str
) -> None:
    lab.engine.faults.stick(phase)
    with connect(**{step: 1}) as connection, pytest.raises(errors.EngineError, match="did not become ready within 1 s"):
        back_up(connection, vm)
    assert observer.is_clean(vm)


def test_a_vm_that_crashes_in_its_live_backup(connection: Connection, vm: Vm, lab: Lab, observer: Observer) -> None:
    found = connection.find_vm(vm.name)
    with (
        pytest.raises(errors.EngineError, match="failed while it was finalized"),
        connection.backup(found, connection.disks(found), mode="live") as backup,
    ):
        lab.host.kill_vm(vm.id)
        with pytest.raises(errors.EngineError, match=f"VM '{vm.name}' is down since its live backup started"):
            backup.transfer(backup.disks[0]).__enter__()
    assert observer.is_clean(vm)
    assert connection.checkpoints(found) == []


def test_a_transfer_that_the_engine_ended_is_no_failure(connection: Connection, vm: Vm, lab: Lab) -> None:
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), mode="live") as backup:
        with backup.transfer(backup.disks[0]) as transfer:
            lab.host.remove_ticket(transfer.ticket_id)
        assert backup.to_checkpoint_id is not None
    assert len(connection.checkpoints(found)) == 1


def test_a_session_that_expired_is_renewed(connection: Connection, vm: Vm, lab: Lab) -> None:
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), mode="live"):
        lab.engine.faults.expire_sessions()
    assert len(connection.checkpoints(found)) == 1


# What a killed controller left.


def test_abandon_ends_a_backup_with_its_transfers(connection: Connection, vm: Vm, observer: Observer) -> None:
    backup_id = observer.start_backup(vm, "left behind")
    connection.abandon(vm.id, backup_id, observer.open_transfers(vm))
    assert observer.is_clean(vm)
    connection.abandon(vm.id, backup_id, ["00000000-0000-4000-8000-000000000000"])


def test_abandon_finds_what_nobody_heard_of(connection: Connection, vm: Vm, observer: Observer) -> None:
    observer.start_backup(vm, "left behind")
    connection.abandon(vm.id, description="another one")
    assert not observer.is_clean(vm)
    connection.abandon(vm.id, description="left behind")
    assert observer.is_clean(vm)


def test_abandon_of_a_vm_that_is_gone(connection: Connection) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    connection.abandon(unknown, unknown, [unknown])
    connection.abandon(unknown, description="any")


# The way in.


def test_the_wrong_password(lab: Lab) -> None:
    with (
        pytest.raises(errors.EngineDenied, match="does not let user 'admin@internal' in") as caught,
        engine.connect(lab.engine.url, lab.username, "wrong-secret", lab.ca),
    ):
        pass
    assert "wrong-secret" not in str(caught.value)


def test_a_port_that_is_not_the_engines(lab: Lab, tmp_path: Path) -> None:
    url = f"https://localhost:{lab.host.imageio_port}/ovirt-engine/api"
    with (
        pytest.raises(errors.EngineUnreachable, match="is not an oVirt engine"),
        engine.connect(url, lab.username, lab.password, lab.ca),
    ):
        pass


def test_a_path_that_is_not_the_apis(lab: Lab) -> None:
    url = lab.engine.url.replace("/api", "/web")
    with (
        pytest.raises(errors.EngineUnreachable, match="is not an oVirt engine"),
        engine.connect(url, lab.username, lab.password, lab.ca),
    ):
        pass
