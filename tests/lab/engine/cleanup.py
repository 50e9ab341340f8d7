"""
Old records of finished backups and transfers go away (DbEntityCleanupManager); then their GET is a 404.
"""

from __future__ import annotations

import datetime

from tests.lab.engine import model
from tests.lab.engine.context import Context
from tests.lab.engine.model import BackupPhase, TransferPhase


class Cleanup:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._db = context.db

    def run_forever(self) -> None:
        """The engine's schedule; ends with the engine."""
        while True:
            self._context.workers.pause(self._context.settings.cleanup_rate)
            self.run()

    def run(self) -> None:
        """One round, now."""
        settings = self._context.settings
        with self._db.changed:
            for backup in list(self._db.backups.values()):
                if backup.finished and _is_older(
                    backup.modified,
                    settings.succeeded_backup_cleanup
                    if backup.phase is BackupPhase.SUCCEEDED
                    else settings.failed_backup_cleanup,
                ):
                    del self._db.backups[backup.id]
            for transfer in list(self._db.transfers.values()):
                if transfer.phase.finished and _is_older(
                    transfer.modified,
                    settings.succeeded_transfer_cleanup
                    if transfer.phase is TransferPhase.FINISHED_SUCCESS
                    else settings.failed_transfer_cleanup,
                ):
                    del self._db.transfers[transfer.id]


def _is_older(time: datetime.datetime, seconds: float) -> bool:
    return model.now() - time >= datetime.timedelta(seconds=seconds)
