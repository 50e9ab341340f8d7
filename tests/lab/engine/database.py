"""
The engine's tables, and the one lock over them.
"""

from __future__ import annotations

import secrets
import threading
import uuid

from tests.lab.engine.model import (
    Attachment,
    Backup,
    Checkpoint,
    Cluster,
    DataCenter,
    Disk,
    Event,
    HostRow,
    Job,
    Snapshot,
    StorageDomain,
    Transfer,
    Vm,
)
from tests.lab.host import Host


class Database:
    """
    Tables by id. Hold `changed` to read more than one row or to write; notify it after a write that someone may
    wait for. No host operation that takes time runs while it is held.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.data_centers: dict[str, DataCenter] = {}
        self.clusters: dict[str, Cluster] = {}
        self.hosts: dict[str, HostRow] = {}
        self.storage_domains: dict[str, StorageDomain] = {}
        self.vms: dict[str, Vm] = {}
        self.disks: dict[str, Disk] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.checkpoints: dict[str, Checkpoint] = {}
        self.backups: dict[str, Backup] = {}
        self.transfers: dict[str, Transfer] = {}
        self.events: list[Event] = []
        self.jobs: dict[str, Job] = {}

    @property
    def spm(self) -> Host:
        """The host that manages storage: where volumes are made, checked and removed."""
        return next(row.host for row in self.hosts.values() if row.spm)

    def disks_of(self, vm: Vm) -> list[Disk]:
        return [self.disks[attachment.disk_id] for attachment in vm.attachments]

    def owners_of(self, disk_id: str) -> list[tuple[Vm, Attachment]]:
        """The VMs that a disk is attached to."""
        return [
            (vm, attachment)
            for vm in self.vms.values()
            for attachment in vm.attachments
            if attachment.disk_id == disk_id
        ]

    def checkpoints_of(self, vm_id: str) -> list[Checkpoint]:
        """Root first: a checkpoint's parent is always the one made before it."""
        return [checkpoint for checkpoint in self.checkpoints.values() if checkpoint.vm_id == vm_id]

    def unfinished_backup(self, vm_id: str) -> Backup | None:
        for backup in self.backups.values():
            if backup.vm_id == vm_id and not backup.finished:
                return backup
        return None

    def unfinished_transfer(self, disk_id: str) -> Transfer | None:
        for transfer in self.transfers.values():
            if transfer.disk_id == disk_id and not transfer.phase.finished:
                return transfer
        return None


def new_id() -> str:
    return str(uuid.uuid4())


def new_mac() -> str:
    """Of the range that the engine's own pool begins with."""
    return "56:6f:" + secrets.token_bytes(4).hex(":")
