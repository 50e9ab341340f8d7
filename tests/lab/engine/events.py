"""
The audit log: what happened, with the engine's codes and texts (AuditLogMessages).
"""

from __future__ import annotations

from tests.lab.engine import model
from tests.lab.engine.database import Database

# code: (severity, text)
_MESSAGES = {
    54: ("error", "Failed to run VM {vm} (User: {user})."),
    153: ("normal", "VM {vm} was started by {user} (Host: {host})."),
    33: ("normal", "VM {vm} powered off by {user} (Host: {host})."),
    73: ("normal", "VM shutdown initiated by {user} on VM {vm} (Host: {host})."),
    45: ("normal", "Snapshot '{snapshot}' creation for VM '{vm}' was initiated by {user}."),
    68: ("normal", "Snapshot '{snapshot}' creation for VM '{vm}' has been completed."),
    117: ("error", "Failed to create Snapshot '{snapshot}' for VM '{vm}' (User: {user})."),
    174: ("normal", "VM {vm} has been successfully imported from the given configuration."),
    175: (
        "warning",
        "VM {vm} has been imported from the given configuration but the following disk(s) failed to attach: {disks}.",
    ),
    342: ("normal", "Snapshot '{snapshot}' deletion for VM '{vm}' was initiated by {user}."),
    356: ("normal", "Snapshot '{snapshot}' deletion for VM '{vm}' has been completed."),
    357: ("error", "Failed to delete snapshot '{snapshot}' for VM '{vm}'."),
    1031: ("normal", "Image {transfer} with disk {disk} was initiated by {user}."),
    1032: ("normal", "Image {transfer} with disk {disk} succeeded."),
    1033: ("normal", "Image {transfer} with disk {disk} was cancelled."),
    1034: ("error", "Image {transfer} with disk {disk} failed."),
    1053: ("normal", "Image {transfer} with disk {disk} was cleaned up."),
    1064: ("error", "Transfer was stopped by system. Reason: failure in transfer image ticket renewal."),
    1065: ("error", "Transfer was stopped by system. Reason: missing transfer image ticket."),
    1068: ("error", "Transfer was stopped by system. Reason: failed to create a signed image ticket."),
    1069: ("error", "Transfer was stopped by system. Reason: failed to add image ticket to ovirt-imageio."),
    1071: ("warning", "Upload was paused by system due to client inactivity. Disk: {disk}."),
    1072: ("error", "Download was canceled by system due to client inactivity. Disk: {disk}."),
    1073: ("normal", "Upload with disk {disk} was paused by user {user}."),
    1074: ("normal", "Transfer of disk {disk} was resumed by user {user}."),
    1076: ("error", "Transfer was cancelled by system due to client inactivity. Disk: {disk}."),
    1077: ("warning", "Transfer was paused by system due to client inactivity. Disk: {disk}."),
    10790: ("normal", "Backup {backup} for VM {vm} started (User: {user})."),
    10791: (
        "error",
        "Incremental backup {backup} for VM {vm} failed. Full backup is now needed (User: {user}).",
    ),
    10792: ("error", "Backup {backup} for VM {vm} failed (User: {user})."),
    10793: ("normal", "Backup {backup} for VM {vm} completed successfully (User: {user})."),
    10794: ("normal", "Backup {backup} for VM {vm} finalized (User: {user})."),
    10795: ("error", "Backup {backup} for VM {vm} failed to finalize (User: {user})."),
    10796: ("normal", "Backup {backup} for VM {vm} stopped (User: {user})."),
    10797: ("normal", "Checkpoint {checkpoint} for VM {vm} deleted (User: {user})."),
    10798: ("error", "Failed to delete checkpoint {checkpoint} for VM {vm} (User: {user})."),
    10799: ("normal", "Scratch disks creation for backup {backup} of VM {vm} started (User: {user})."),
    10805: ("normal", "Scratch disks for backup {backup} of VM {vm} created (User: {user})."),
    10806: ("error", "Failed to create scratch disks for backup {backup} of VM {vm} (User: {user})."),
    10813: (
        "warning",
        "Possible failure while removing a snapshot that was generated automatically during backup of VM '{vm}'."
        " The snapshot may be removed manually",
    ),
    10814: (
        "error",
        "Backup {backup} for VM {vm} was marked as failed since it is no longer monitored, cleanup may be required.",
    ),
}


class Events:
    """The log of one engine."""

    def __init__(self, database: Database, user: str) -> None:
        self._db = database
        self._user = f"{user}-authz"

    def add(
        self,
        code: int,
        vm: model.Vm | None = None,
        correlation_id: str | None = None,
        **values: str,
    ) -> None:
        """values: what the text names besides VM, host and user."""
        severity, text = _MESSAGES[code]
        host_name = vm.host.name if vm else None
        with self._db.changed:
            self._db.events.append(
                model.Event(
                    index=len(self._db.events) + 1,
                    code=code,
                    severity=severity,
                    description=text.format(user=self._user, vm=vm.name if vm else "", host=host_name, **values),
                    correlation_id=correlation_id,
                    time=model.now(),
                    vm_id=vm.id if vm else None,
                    vm_name=vm.name if vm else None,
                    host_name=host_name,
                )
            )
            self._db.changed.notify_all()

    def codes(self, vm_id: str) -> list[int]:
        """Codes of a VM's events in the order of time; for tests."""
        with self._db.changed:
            return [event.code for event in self._db.events if event.vm_id == vm_id]
