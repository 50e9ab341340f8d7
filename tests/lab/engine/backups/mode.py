"""
What the three modes of a backup have in common.
"""

from __future__ import annotations

import abc

from tests.lab.engine import model
from tests.lab.engine.checkpoints import Checkpoints
from tests.lab.engine.context import Context
from tests.lab.engine.database import new_id
from tests.lab.engine.model import BackupPhase
from tests.lab.engine.workers import Stopped


class Aborted(Exception):
    """The client finalized the backup before it was ready."""


class Mode(abc.ABC):
    """
    One backup of one VM.

    `lock` and `unlock` run under the database's lock, the others without it. Those that talk to the host raise
    HostError.
    """

    def __init__(self, context: Context, checkpoints: Checkpoints, vm: model.Vm, backup: model.Backup) -> None:
        self.context = context
        self.db = context.db
        self.checkpoints = checkpoints
        self.vm = vm
        self.backup = backup
        self.checkpoint_id = new_id()

    @abc.abstractmethod
    def lock(self) -> None:
        """Take the disks."""

    @abc.abstractmethod
    def unlock(self) -> None:
        """Give the disks back."""

    def prepare(self) -> None:
        """What happens while the client's POST waits. Raises Rejection."""
        return

    @abc.abstractmethod
    def start(self) -> None:
        """Bring the backup to READY. Raises Aborted when the client gave up meanwhile."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End a backup that was ready."""

    @abc.abstractmethod
    def undo(self) -> None:
        """Clean up after a start that did not reach READY, or a stop that failed, as far as that works."""

    def disks(self) -> list[model.Disk]:
        return [self.db.disks[disk_id] for disk_id in self.backup.disks]

    def event(self, code: int, **values: str) -> None:
        self.context.events.add(code, self.vm, self.backup.correlation_id, backup=self.backup.id, **values)

    def enter(self, phase: BackupPhase, **fields: str | None) -> None:
        """
        Enter a phase a moment later, unless a fault holds it back. Raises Aborted.

        fields: what the backup shows from that moment on.
        """
        self.context.workers.pause(self.context.settings.phase_delay)
        self.context.workers.wait(lambda: self._is_over() or not self.context.faults.holds(phase.shown))
        with self.db.changed:
            if self.backup.finished:
                # A restarted engine does not follow it any more.
                raise Stopped
            if self._is_over():
                raise Aborted
            for name, value in fields.items():
                setattr(self.backup, name, value)
            self.set_phase(phase)

    def set_phase(self, phase: BackupPhase) -> None:
        with self.db.changed:
            self.backup.phase = phase
            self.backup.modified = model.now()
            self.db.changed.notify_all()

    def add_checkpoint(self, disk_ids: list[str]) -> None:
        self.checkpoints.add(self.checkpoint_id, self.vm.id, self.backup.description, disk_ids)

    def _is_over(self) -> bool:
        return self.backup.finished or self.backup.phase is BackupPhase.FINALIZING_FAILURE
