"""
What one transfer has on the host: an NBD server of its own unless QEMU or a file serves it, and a ticket.
"""

from __future__ import annotations

from tests.lab.engine import model
from tests.lab.engine.context import Context
from tests.lab.engine.database import Database, new_id
from tests.lab.errors import HostError
from tests.lab.host import Host

MiB = 1024**2


class SessionError(Exception):
    """The session could not start. code: the event that tells why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Session:
    """
    Methods call the host, so they are used without the database's lock.
    """

    def __init__(self, context: Context, transfer: model.Transfer, host: Host) -> None:
        self._db: Database = context.db
        self._settings = context.settings
        self._transfer = transfer
        self._host = host
        self._ticket_id = new_id()

    def start(self) -> None:
        """
        Serve the disk and add the ticket. Raises SessionError.

        The transfer shows ticket and host first, as in the engine: before the ticket can be used.
        """
        with self._db.changed:
            self._transfer.ticket_id = self._ticket_id
            self._transfer.host = self._host
            backup = self._db.backups.get(self._transfer.backup_id or "")
            disk = self._db.disks[self._transfer.disk_id]
        try:
            url = self._serve(disk, backup)
        except HostError as error:
            raise SessionError(1068, error.message) from error
        try:
            self._host.add_ticket(self._ticket(disk, backup, url))
        except HostError as error:
            raise SessionError(1069, error.message) from error

    def look(self) -> dict[str, object] | None:
        """The daemon's view of the ticket; None when the ticket or the daemon is gone."""
        try:
            return self._host.get_ticket(self._ticket_id)
        except HostError:
            return None

    def extend(self) -> None:
        """Raises HostError."""
        self._host.extend_ticket(self._ticket_id, self._settings.host_ticket_validity)

    def stop(self) -> None:
        """
        Remove the ticket, stop the NBD server. Raises HostError while a client still uses the ticket.
        """
        self._host.remove_ticket(self._ticket_id)
        self._host.stop_nbd(self._transfer.id)
        with self._db.changed:
            self._transfer.ticket_id = None
            self._transfer.host = None

    def _serve(self, disk: model.Disk, backup: model.Backup | None) -> str:
        """Returns the ticket's URL."""
        transfer = self._transfer
        if backup is not None:
            return self._serve_backup(disk, backup)
        if transfer.format == "cow":
            return f"file://{disk.active.path}"
        return self._host.start_nbd(
            transfer.id,
            disk.active.path,
            disk.active.qemu_format,
            readonly=transfer.direction == "download",
            backing_chain=not transfer.shallow,
        )

    def _serve_backup(self, disk: model.Disk, backup: model.Backup) -> str:
        part = backup.disks.get(disk.id)
        if backup.kind is model.BackupKind.LIVE:
            if part is None or part.url is None:
                raise HostError(f"Disk {disk.id} has no URL in backup {backup.id}")
            return part.url
        if part is None or part.volume is None:
            raise HostError(f"Disk {disk.id} is not part of backup {backup.id}")
        return self._host.start_nbd(
            self._transfer.id,
            part.volume.path,
            part.volume.qemu_format,
            bitmap=backup.from_checkpoint_id if part.mode == "incremental" else None,
            backing_chain=not self._transfer.shallow,
        )

    def _ticket(self, disk: model.Disk, backup: model.Backup | None, url: str) -> dict[str, object]:
        transfer = self._transfer
        part = backup.disks.get(disk.id) if backup else None
        return {
            "uuid": self._ticket_id,
            "timeout": self._settings.client_ticket_validity,
            "inactivity_timeout": transfer.inactivity_timeout,
            "size": self._size(disk, url),
            "url": url,
            "transfer_id": transfer.id,
            "sparse": disk.sparse,
            "dirty": part is not None and part.mode == "incremental",
            "ops": ["read" if transfer.direction == "download" else "write"],
        }

    def _size(self, disk: model.Disk, url: str) -> int:
        """Virtual size over NBD; bytes of the file otherwise, with room for qcow2's own data in an upload."""
        if url.startswith("nbd:"):
            return disk.provisioned_size
        if self._transfer.direction == "download":
            return disk.active.path.stat().st_size
        return disk.provisioned_size * 11 // 10 + MiB
