"""
The worker of one transfer: starts its session, watches its ticket, ends it (TransferDiskImageCommandCallback).
"""

from __future__ import annotations

import time

from tests.lab.engine import model
from tests.lab.engine.context import Context
from tests.lab.engine.disks import Disks
from tests.lab.engine.model import TransferPhase
from tests.lab.engine.transfers.session import Session, SessionError
from tests.lab.errors import HostError

_FAILED = (TransferPhase.CANCELLED_SYSTEM, TransferPhase.FINALIZING_FAILURE)


class Monitor:
    def __init__(self, context: Context, disks: Disks, transfer: model.Transfer, session: Session) -> None:
        self._context = context
        self._db = context.db
        self._disks = disks
        self._disk = context.db.disks[transfer.disk_id]
        self._transfer = transfer
        self._session = session
        self._extend_failures = 0
        self._idle_when_complete = 0
        self._expires = 0.0

    def run(self) -> None:
        self._start()
        while not self._transfer.phase.finished:
            match self._transfer.phase:
                case TransferPhase.TRANSFERRING:
                    if not self._leaves(TransferPhase.TRANSFERRING, self._context.settings.poll_interval):
                        self._watch()
                case TransferPhase.RESUMING:
                    self._resume()
                case TransferPhase.FINALIZING_SUCCESS:
                    self._succeed()
                case TransferPhase.CANCELLED_USER:
                    self._clean_up()
                case TransferPhase.CANCELLED_SYSTEM:
                    self._fail()
                case paused:
                    self._leaves(paused)

    def _start(self) -> None:
        try:
            self._session.start()
        except SessionError as error:
            self._event(error.code)
            self._stop_by_system()
            return
        self._expires = time.monotonic() + self._context.settings.host_ticket_validity
        self._enter(TransferPhase.INITIALIZING, TransferPhase.TRANSFERRING)

    def _watch(self) -> None:
        """One look at the ticket: extend it, and end the transfer when the ticket is gone, read, or idle."""
        if not self._extend():
            self._event(1064)
            self._stop_by_system()
            return
        ticket = self._session.look()
        if ticket is None:
            self._event(1065)
            self._stop_by_system()
            return
        with self._db.changed:
            self._transfer.active = bool(ticket["active"])
            self._transfer.transferred = _number(ticket.get("transferred"))
        if self._is_complete(_number(ticket["size"])):
            self._change(TransferPhase.TRANSFERRING, TransferPhase.FINALIZING_SUCCESS)
        elif self._is_idle(_number(ticket["idle_time"])):
            self._stop_idle()

    def _extend(self) -> bool:
        """Extend the ticket when it is close to its end. The second failure in a row counts."""
        settings = self._context.settings
        if time.monotonic() < self._expires - settings.ticket_refresh_allowance:
            return True
        try:
            self._session.extend()
        except HostError:
            self._extend_failures += 1
            return self._extend_failures < 2
        self._extend_failures = 0
        self._expires = time.monotonic() + settings.host_ticket_validity
        return True

    def _is_complete(self, size: int) -> bool:
        """A download that was read to its end and then left alone needs no client to finalize it."""
        transfer = self._transfer
        if transfer.direction == "download" and transfer.transferred == size and not transfer.active:
            self._idle_when_complete += 1
        else:
            self._idle_when_complete = 0
        return self._idle_when_complete == 2

    def _is_idle(self, idle_time: int) -> bool:
        limit = self._transfer.inactivity_timeout
        return limit > 0 and idle_time > limit and not self._transfer.active

    def _stop_idle(self) -> None:
        download = self._transfer.direction == "download"
        match self._transfer.timeout_policy:
            case "pause":
                code, phase = 1077, TransferPhase.PAUSED_SYSTEM
            case "cancel":
                code, phase = 1076, TransferPhase.CANCELLED_SYSTEM
            case _ if download:
                code, phase = 1072, TransferPhase.CANCELLED_SYSTEM
            case _:
                code, phase = 1071, TransferPhase.PAUSED_SYSTEM
        self._event(code, disk=self._disk.alias)
        self._change(TransferPhase.TRANSFERRING, phase)

    def _stop_by_system(self) -> None:
        """Uploads wait for a human, downloads end."""
        upload = self._transfer.direction == "upload"
        with self._db.changed:
            if not self._transfer.phase.finished and self._transfer.phase in (
                TransferPhase.INITIALIZING,
                TransferPhase.TRANSFERRING,
                TransferPhase.RESUMING,
            ):
                self._set(TransferPhase.PAUSED_SYSTEM if upload else TransferPhase.CANCELLED_SYSTEM)

    def _resume(self) -> None:
        """The same ticket goes on, extended; there is no new NBD server."""
        try:
            self._session.extend()
        except HostError:
            self._event(1064)
            self._stop_by_system()
            return
        self._expires = time.monotonic() + self._context.settings.host_ticket_validity
        self._enter(TransferPhase.RESUMING, TransferPhase.TRANSFERRING)

    def _succeed(self) -> None:
        self._close_session()
        if self._transfer.direction == "upload" and not self._is_valid():
            self._set(TransferPhase.FINALIZING_FAILURE)
            self._drop_disk()
            self._finish(TransferPhase.FINISHED_FAILURE, 1034)
            return
        # This is also done for a disk of a live backup, which goes on (handleFinalizingSuccess).
        with self._db.changed:
            self._disk.status = model.DiskStatus.OK
        self._finish(TransferPhase.FINISHED_SUCCESS, 1032)

    def _fail(self) -> None:
        self._set(TransferPhase.FINALIZING_FAILURE)
        self._close_session()
        self._release_disk()
        self._finish(TransferPhase.FINISHED_FAILURE, 1034)

    def _clean_up(self) -> None:
        """The user has cancelled."""
        self._set(TransferPhase.FINALIZING_CLEANUP)
        self._event(1033, **self._names())
        self._close_session()
        self._release_disk()
        self._set(TransferPhase.FINISHED_CLEANUP)
        self._context.workers.pause(self._context.settings.phase_delay)
        self._finish(TransferPhase.FINISHED_FAILURE, 1053)

    def _close_session(self) -> None:
        """Until no client uses the ticket: the daemon refuses before (409), and the engine tries again."""
        while True:
            try:
                self._session.stop()
            except HostError:
                self._context.workers.pause(self._context.settings.poll_interval)
            else:
                return

    def _release_disk(self) -> None:
        """An upload that was given up takes its disk with it; a disk that was only read is free again."""
        if self._transfer.direction == "upload":
            self._drop_disk()
        elif self._transfer.backup_id is None:
            with self._db.changed:
                self._disk.status = model.DiskStatus.OK

    def _drop_disk(self) -> None:
        with self._db.changed:
            self._disk.status = model.DiskStatus.ILLEGAL
        self._disks.drop(self._disk)

    def _is_valid(self) -> bool:
        """What vdsm's Volume.verify_untrusted checks after an upload."""
        active = self._disk.active
        host = self._db.spm
        try:
            volume = host.volume(active.path)
        except HostError:
            return False
        return (
            volume.format == active.qemu_format
            and volume.size == self._disk.provisioned_size
            and volume.backing is None
        )

    def _finish(self, phase: TransferPhase, code: int) -> None:
        self._event(code, **self._names())
        self._enter(self._transfer.phase, phase)

    def _enter(self, expected: TransferPhase, phase: TransferPhase) -> None:
        """Go to a phase a moment later, unless a fault holds it back or a client changes the phase meanwhile."""
        self._context.workers.pause(self._context.settings.phase_delay)
        self._context.workers.wait(
            lambda: self._transfer.phase is not expected or not self._context.faults.holds(phase)
        )
        self._change(expected, phase)

    def _change(self, expected: TransferPhase, phase: TransferPhase) -> None:
        with self._db.changed:
            if self._transfer.phase is expected:
                self._set(phase)

    def _set(self, phase: TransferPhase) -> None:
        with self._db.changed:
            self._transfer.phase = phase
            self._transfer.modified = model.now()
            self._db.changed.notify_all()

    def _leaves(self, phase: TransferPhase, timeout: float | None = None) -> bool:
        """Wait until somebody changes the phase, for so many seconds or for ever. Has it changed?"""
        return self._context.workers.wait(lambda: self._transfer.phase is not phase, timeout)

    def _event(self, code: int, **values: str) -> None:
        self._context.events.add(code, None, self._transfer.correlation_id, **values)

    def _names(self) -> dict[str, str]:
        return {"transfer": self._transfer.direction.capitalize(), "disk": self._disk.alias}


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
