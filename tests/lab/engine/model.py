"""
The engine's entities: the rows of its database.

Rows are changed in place under the database's lock. Sizes are bytes; times are UTC; ids are UUIDs as text.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from pathlib import Path
from typing import Literal

from tests.lab.errors import HostError
from tests.lab.host import Host
from tests.lab.storage import Format


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclasses.dataclass(frozen=True)
class DataCenter:
    id: str
    name: str


@dataclasses.dataclass(frozen=True)
class Cluster:
    """level: compatibility version, for example (4, 7)."""

    id: str
    name: str
    level: tuple[int, int]
    data_center_id: str

    @property
    def hybrid_by_default(self) -> bool:
        """Value of the option UseHybridBackup at this level."""
        return self.level >= (4, 7)


@dataclasses.dataclass
class HostRow:
    """A host as the engine sees it.  status: "up", "maintenance", "non_responsive"…"""

    host: Host
    cluster_id: str
    spm: bool
    status: str = "up"


@dataclasses.dataclass(frozen=True)
class StorageDomain:
    """A file domain on the host's own disk."""

    id: str
    name: str
    path: Path


@dataclasses.dataclass(frozen=True)
class Volume:
    """
    One layer of a disk.

    id: what REST calls image_id.  format: "cow" (qcow2) or "raw".
    """

    id: str
    path: Path
    format: str

    @property
    def qemu_format(self) -> Format:
        return "qcow2" if self.format == "cow" else "raw"


class DiskStatus(enum.StrEnum):
    OK = "ok"
    LOCKED = "locked"
    ILLEGAL = "illegal"


@dataclasses.dataclass
class Disk:
    """
    A disk of image storage.

    volumes: base first, the active layer last.
    locked_in_memory: another command owns it, though its status says "ok" (a hybrid backup does this).
    """

    id: str
    alias: str
    provisioned_size: int
    storage_domain_id: str
    volumes: list[Volume]
    backup: str = "none"
    description: str = ""
    shareable: bool = False
    sparse: bool = True
    status: DiskStatus = DiskStatus.OK
    locked_in_memory: bool = False

    @property
    def active(self) -> Volume:
        return self.volumes[-1]

    @property
    def format(self) -> str:
        return self.active.format


@dataclasses.dataclass
class Attachment:
    """
    A disk in a VM. active: plugged.  interface: "virtio" or "virtio_scsi".
    """

    disk_id: str
    interface: str
    logical_name: str
    bootable: bool = False
    active: bool = True


@dataclasses.dataclass(frozen=True)
class Nic:
    """A network interface in a VM, which the engine knows and no guest has: nothing in the lab meets anybody."""

    id: str
    name: str
    mac: str
    network: str = "ovirtmgmt"


@dataclasses.dataclass
class Vm:
    """
    transition: status while a command is under way ("powering_up"); else the host says.
    removing_checkpoint: the VM is locked by the removal of a checkpoint.
    """

    id: str
    name: str
    cluster_id: str
    host: Host
    memory: int
    active_snapshot_id: str
    attachments: list[Attachment]
    created: datetime.datetime = dataclasses.field(default_factory=now)
    description: str = ""
    origin: str = "ovirt"
    transition: str | None = None
    removing_checkpoint: bool = False
    nics: list[Nic] = dataclasses.field(default_factory=list)

    @property
    def status(self) -> str:
        """A VM that its host does not know does not run."""
        if self.transition:
            return self.transition
        try:
            return self.host.vm_state(self.id)
        except HostError:
            return "down"


@dataclasses.dataclass
class Snapshot:
    """
    The snapshot that a hybrid backup makes. volumes: the frozen layer of each disk, by disk id.
    """

    id: str
    vm_id: str
    description: str
    status: str = "locked"
    created: datetime.datetime = dataclasses.field(default_factory=now)
    volumes: dict[str, Volume] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Checkpoint:
    """
    disk_ids: the disks that hold a bitmap named like the checkpoint.  state: "created" or "invalid".
    """

    id: str
    vm_id: str
    parent_id: str | None
    description: str | None
    disk_ids: list[str]
    state: str = "created"
    created: datetime.datetime = dataclasses.field(default_factory=now)


class BackupPhase(enum.Enum):
    """The engine's own phases; the value is what REST shows."""

    INITIALIZING = "initializing"
    CREATING_SCRATCH_DISKS = "initializing", 1
    ADDING_BITMAPS = "initializing", 2
    WAITING_FOR_BITMAPS = "initializing", 3
    STARTING = "starting"
    READY = "ready"
    FINALIZING = "finalizing"
    FINALIZING_FAILURE = "finalizing", 1
    REMOVING_SNAPSHOT = "finalizing", 2
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    def __init__(self, shown: str, _distinct: int = 0) -> None:
        self.shown = shown


UNFINISHED_BEFORE_READY = frozenset(
    {
        BackupPhase.INITIALIZING,
        BackupPhase.CREATING_SCRATCH_DISKS,
        BackupPhase.ADDING_BITMAPS,
        BackupPhase.WAITING_FOR_BITMAPS,
        BackupPhase.STARTING,
    }
)


class BackupKind(enum.Enum):
    LIVE = "live"
    COLD = "cold"
    HYBRID = "hybrid"


@dataclasses.dataclass
class BackupDisk:
    """
    A disk of a backup.

    mode: "full" or "incremental".
    url: live: the NBD URL that QEMU serves.
    volume: cold and hybrid: the layer that transfers read.
    """

    disk_id: str
    mode: Literal["full", "incremental"]
    url: str | None = None
    volume: Volume | None = None


@dataclasses.dataclass
class Backup:
    """
    to_checkpoint_id: set as soon as the client may see it, not before.
    unmonitored_after_restart: the client chose the id, so a restarted engine no longer follows it.
    """

    id: str
    vm_id: str
    kind: BackupKind
    disks: dict[str, BackupDisk]
    from_checkpoint_id: str | None
    description: str | None
    correlation_id: str | None
    require_consistency: bool
    unmonitored_after_restart: bool
    host: Host | None = None
    snapshot_id: str | None = None
    to_checkpoint_id: str | None = None
    phase: BackupPhase = BackupPhase.INITIALIZING
    created: datetime.datetime = dataclasses.field(default_factory=now)
    modified: datetime.datetime = dataclasses.field(default_factory=now)

    @property
    def finished(self) -> bool:
        return self.phase in (BackupPhase.SUCCEEDED, BackupPhase.FAILED)


class TransferPhase(enum.StrEnum):
    INITIALIZING = "initializing"
    TRANSFERRING = "transferring"
    RESUMING = "resuming"
    PAUSED_SYSTEM = "paused_system"
    PAUSED_USER = "paused_user"
    CANCELLED_SYSTEM = "cancelled_system"
    CANCELLED_USER = "cancelled_user"
    FINALIZING_SUCCESS = "finalizing_success"
    FINALIZING_FAILURE = "finalizing_failure"
    FINALIZING_CLEANUP = "finalizing_cleanup"
    FINISHED_SUCCESS = "finished_success"
    FINISHED_FAILURE = "finished_failure"
    FINISHED_CLEANUP = "finished_cleanup"

    @property
    def paused(self) -> bool:
        return self in (TransferPhase.PAUSED_SYSTEM, TransferPhase.PAUSED_USER)

    @property
    def finished(self) -> bool:
        return self in (
            TransferPhase.FINISHED_SUCCESS,
            TransferPhase.FINISHED_FAILURE,
            TransferPhase.FINISHED_CLEANUP,
        )


@dataclasses.dataclass
class Transfer:
    """
    ticket_id, host: set while the transfer has a ticket.  transferred: bytes, as the daemon counts them.
    """

    id: str
    disk_id: str
    direction: str
    format: str
    backup_id: str | None
    inactivity_timeout: int
    timeout_policy: str
    shallow: bool
    correlation_id: str | None
    ticket_id: str | None = None
    host: Host | None = None
    active: bool = False
    transferred: int = 0
    phase: TransferPhase = TransferPhase.INITIALIZING
    modified: datetime.datetime = dataclasses.field(default_factory=now)


@dataclasses.dataclass(frozen=True)
class Event:
    """index: counts up from 1.  vm: name and id belong to the event even when the VM is gone."""

    index: int
    code: int
    severity: str
    description: str
    correlation_id: str | None
    time: datetime.datetime
    vm_id: str | None
    vm_name: str | None
    host_name: str | None


@dataclasses.dataclass
class Job:
    """status: "started", "finished" or "failed"."""

    id: str
    description: str
    correlation_id: str | None
    status: str = "started"
    started: datetime.datetime = dataclasses.field(default_factory=now)
    ended: datetime.datetime | None = None
