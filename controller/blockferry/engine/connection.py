"""
What a job sees of the engine.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from blockferry.engine import backups, faults, inventory, polling, starting, transfers
from blockferry.engine.model import AskedMode, Checkpoint, Disk, Host, Journal, JournalEntry, Vm
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
