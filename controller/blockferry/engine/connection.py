"""
What a job sees of the engine.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from blockferry.engine import backups, disks, events, faults, inventory, machines, polling, starting, transfers
from blockferry.engine.model import (
    AskedMode,
    Checkpoint,
    Disk,
    Host,
    Journal,
    JournalEntry,
    NewDisk,
    StorageDomain,
    Transfer,
    Transferred,
    Vm,
)
from blockferry.engine.session import Session

log = logging.getLogger(__name__)


@contextlib.contextmanager
def connect(
    url: str,
    username: str,
    password: str,
    ca_file: Path,
    *,
    timeout: float = 60,
    deadlines: polling.Deadlines | None = None,
) -> Iterator[Connection]:
    """
    Log in to an engine; leaving the block logs out.

    url: "https://NAME/ovirt-engine/api".  username: with its profile, "admin@internal".  ca_file: PEM; certificates of
    any other CA are refused.  timeout: seconds for one request.
    Raises ConfigError for a URL or CA file that cannot be used, EngineUnreachable and EngineDenied.
    """
    place = faults.Place(url.rstrip("/"), username, ca_file, timeout)
    session = Session(place, password, deadlines or polling.Deadlines())
    try:
        yield Connection(session)
    finally:
        session.close()


def _no_journal(_entry: JournalEntry) -> None:
    """For callers that need no journal."""


class Connection:
    """
    An engine, as one of its users sees it. May be used from several threads.

    Every method raises EngineUnreachable, EngineDenied or EngineError when the engine does not answer, forbids or
    refuses; what else it raises is said below.

    version: of the engine, for example "4.5.7-1.el9".
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self.version = inventory.version(session)

    def find_vm(self, name: str) -> Vm:
        """Return the VM of exactly this name or id. Raises NotFound (with names near to it), Ambiguous."""
        return inventory.find_vm(self._session, name)

    def disks(self, vm: Vm) -> list[Disk]:
        """Return all disks of a VM. Those with an `obstacle` cannot be in a backup."""
        return inventory.disks(self._session, vm)

    def ovf(self, vm: Vm) -> str:
        """
        Return the VM's configuration; may hold secrets. Before a backup: disks that it locks hide it.

        Raises Conflict when disks are locked for longer than `deadlines.ovf`, at once when another backup does it.
        """
        return inventory.ovf(self._session, vm)

    def checkpoints(self, vm: Vm) -> list[Checkpoint]:
        """Return the VM's checkpoints, the oldest first. Only `usable` ones can be a base."""
        return inventory.checkpoints(self._session, vm)

    def delete_checkpoint(self, vm: Vm, checkpoint_id: str) -> None:
        """
        Remove a checkpoint and wait until it is gone; one that is gone already is fine.

        Raises Conflict while the VM is neither up nor down, or in a backup.
        """
        inventory.delete_checkpoint(self._session, vm, checkpoint_id)

    def hosts(self, cluster: str | None) -> list[Host]:
        """Return the hosts of a cluster (name or id), or all. Raises NotFound."""
        return inventory.hosts(self._session, cluster)

    def find_host(self, name: str) -> Host:
        """Return the host of this name, address or id. Raises NotFound (with the names of all), Ambiguous."""
        return inventory.find_host(self._session, name)

    @contextlib.contextmanager
    def backup(
        self,
        vm: Vm,
        disks: list[Disk],
        *,
        since: str | None = None,
        mode: AskedMode = "engine",
        description: str = "",
        journal: Journal = _no_journal,
    ) -> Iterator[backups.Backup]:
        """
        Start a backup of some disks of a VM; the block runs when they can be read, and leaving it ends the backup.

        since: the checkpoint of the base; None: full.
        mode: "engine": what the engine does by default (hybrid from cluster level 4.7, live or cold below);
        "live": live, or cold when the VM is down; "hybrid": as "engine". Backup.mode tells which ran.
        description: for people who look at the engine; a unique id is added.
        journal: is called with everything that `abandon` needs, before and as soon as it exists.

        Raises
        - Conflict: another backup runs, a lock does not pass, the VM is paused; nothing was started
        - CheckpointUnusable: not from this base; take a full backup
        - EngineError: the backup failed, at its start or when it was finalized: keep nothing of it
        """
        request = starting.new_request(vm, disks, since, mode, description)
        with backups.run(self._session, request, journal) as backup:
            if mode == "hybrid" and backup.mode != "hybrid":
                log.warning("VM '%s': the engine made no hybrid backup but a %s one.", vm.name, backup.mode)
            yield backup

    def storage_domains(self) -> list[StorageDomain]:
        """Return the domains that hold disks, by their names."""
        return disks.domains(self._session)

    def make_disk(self, new: NewDisk, patience: polling.Patience | None = None) -> None:
        """
        Make a floating disk, and wait until it can be written. Nothing of it stays when this raises.

        patience: when it ends, so does the waiting, with Interrupted.
        """
        disks.make(self._session, new, patience)

    def remove_disk(self, disk_id: str) -> None:
        """Remove a disk and wait until it is gone; one that is gone already is fine."""
        disks.remove(self._session, disk_id)

    def remove_unfinished_disk(self, disk_id: str, description: str) -> None:
        """
        Remove a disk that a process that is gone began to make, and end what writes to it.

        Nothing happens when it is not there, has another description, or belongs to a VM.
        """
        disks.remove_unfinished(self._session, disk_id, description)

    def attach_disk(self, vm: Vm, disk_id: str, interface: str, bootable: bool) -> None:
        """Attach a floating disk to a VM that is down."""
        disks.attach(self._session, vm, disk_id, interface, bootable)

    def writing(
        self,
        disk: Transferred,
        keep: bool,
        opened: Callable[[str], None],
        patience: polling.Patience | None = None,
        host_id: str | None = None,
    ) -> AbstractContextManager[Transfer]:
        """
        Open the way to write a disk; leaving the block ends it, and waits until the engine has accepted the disk.

        keep: after a failure, the disk stays with what was written until then; else the engine removes it, also one
        that was there before.  opened: is called with the transfer's id as soon as there is one; end_writing needs it.
        patience: when it ends, so does the waiting for the way to open, with Interrupted.  host_id: of the host whose
        Image I/O and agent write; None: the engine chooses one.

        Raises Conflict when the disk belongs to a running VM, is locked or being transferred.
        """
        return disks.writing(self._session, disk, keep, opened, patience, host_id)

    def end_writing(self, transfer_id: str, disk: Transferred) -> None:
        """End a transfer to a disk that a process that is gone left open; the disk stays. One that ended is fine."""
        transfers.finalize_upload(self._session, transfer_id, disk, events.new_correlation_id())

    def open_uploads(self, disk_id: str) -> list[str]:
        """Return the ids of transfers that write to a disk and have not ended, whoever's they are."""
        return transfers.open_uploads(self._session, [disk_id])

    def has_snapshots(self, vm: Vm) -> bool:
        """Return whether the VM has snapshots, so that its disks have more than one layer."""
        return machines.has_snapshots(self._session, vm)

    def disk_exists(self, disk_id: str) -> bool:
        """Return whether there is a disk of this id."""
        return disks.exists(self._session, disk_id)

    def find_cluster(self, name: str) -> str:
        """Return the id of the cluster of this name or id. Raises NotFound, Ambiguous."""
        return inventory.find_cluster(self._session, name)

    def vm_exists(self, name: str) -> bool:
        """Return whether there is a VM of this name or id."""
        return inventory.exists(self._session, name)

    def make_vm(self, ovf: str, name: str, cluster_id: str, keep_ids: bool) -> Vm:
        """
        Make a VM from a configuration; it gets those of its disks that are there and floating.

        keep_ids: the VM's own id and those of its network interfaces, which must be free, are kept.
        """
        return machines.make(self._session, ovf, name, cluster_id, keep_ids)

    def start_vm(self, vm: Vm) -> None:
        """Start a VM. Does not wait until it runs."""
        machines.start(self._session, vm)

    def remove_vm(self, vm: Vm) -> None:
        """Remove a VM; its disks stay, floating. One that is gone already is fine."""
        machines.remove(self._session, vm)

    def abandon(
        self, vm_id: str, backup_id: str | None = None, transfer_ids: Iterable[str] = (), description: str = ""
    ) -> None:
        """
        End what a process that is gone left open in the engine; what has ended or is not there is fine.

        description: of the journal's entry, finds a backup whose id is not known.
        """
        for transfer_id in transfer_ids:
            transfers.cancel(self._session, transfer_id)
        backups.abandon(self._session, vm_id, backup_id, description)
