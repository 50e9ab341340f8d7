"""
Whether a recovery point is still what the VM's disks hold where nothing has changed since: hashes move, not data.

    one backup since the point's checkpoint ─▶ for each disk: what has not changed, by its bitmap ─▶ hashed on the host,
    and compared: what differs is drift ─▶ end the backup ─▶ remove its checkpoint

Drift is what neither the repository nor the bitmap knows of: a block that was read wrong, a disk that was written past
QEMU, or storage that rots. Only a point whose checkpoint the engine still has can be looked at, most often the newest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from blockferry import engine, errors
from blockferry.config import AskedMode
from blockferry.jobs import backup as backup_job
from blockferry.jobs import journal
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site
from blockferry.repository import DiskReader, Manifest, Repository
from blockferry.transport.agent_upload import AgentUpload
from blockferry_agent import digest
from blockferry_agent.blocks import Known, Range

_SPAN = 1 << 30
"""Bytes of a disk that are compared at a time."""


class Gone(msgspec.Struct, frozen=True):
    """A range of a disk (bytes) that differs from the point, though nothing has changed there."""

    start: int
    length: int


class LookedAt(msgspec.Struct, frozen=True):
    """
    What was found on a disk.

    compared: bytes that are to be as in the point.  changed: bytes that the guest has changed since: they say nothing.
    drift: in disk order.  skipped: why it was not looked at, None when it was.
    """

    id: str
    alias: str
    compared: int = 0
    changed: int = 0
    drift: tuple[Gone, ...] = ()
    skipped: str | None = None


class Drift(msgspec.Struct, frozen=True):
    """What was found on a VM's disks. mode: which backup the engine made to look."""

    vm_name: str
    point_id: str
    mode: str
    disks: tuple[LookedAt, ...]

    @property
    def total(self) -> int:
        """Bytes that drifted."""
        return sum(place.length for disk in self.disks for place in disk.drift)


def run(site: Site, repository: Repository, point: Manifest, mode: AskedMode, progress: Progress) -> Drift:
    """
    Look at the disks of a point's VM, and return what was found. Needs an agent on the VM's host.

    Raises NotFound when the VM, its checkpoint or the agent is not there, Damaged, EngineError, TransportError.
    """
    with site.engine() as connection:
        vm = connection.find_vm(point.vm.id)
        with journal.opened(site.state, vm.id) as log:
            backup_job.end_left_open(connection, log, progress)
            return _Job(site, repository, point, connection, vm, log, progress).run(mode)


class _Job:
    """The look at one VM, whose journal is open."""

    def __init__(
        self,
        site: Site,
        repository: Repository,
        point: Manifest,
        connection: engine.Connection,
        vm: engine.Vm,
        log: journal.Journal,
        progress: Progress,
    ) -> None:
        self._site = site
        self._repository = repository
        self._point = point
        self._connection = connection
        self._vm = vm
        self._log = log
        self._progress = progress

    def run(self, mode: AskedMode) -> Drift:
        self._refuse_lost_checkpoint()
        disks = backup_job.possible_disks(self._connection, self._vm, [], self._progress)
        backup: engine.Backup | None = None
        try:
            with self._connection.backup(
                self._vm,
                disks,
                since=self._point.checkpoint_id,
                mode=mode,
                description=backup_job.description(self._repository),
                journal=self._log.record,
            ) as backup:
                found = tuple(self._look_at(backup, part) for part in backup.disks)
            self._log.ended(self._log.open[-1])
        finally:
            if backup is not None:
                self._drop_checkpoint(backup.to_checkpoint_id)
        return Drift(self._vm.name, self._point.id, backup.mode, found)

    def _refuse_lost_checkpoint(self) -> None:
        usable = {checkpoint.id for checkpoint in self._connection.checkpoints(self._vm) if checkpoint.usable}
        if self._point.checkpoint_id not in usable:
            raise errors.NotFound(
                f"The engine no longer has the checkpoint of recovery point {self._point.id}, so nothing says what has "
                "changed since.",
                "Look at the newest point, or run `blockferry verify` without --live.",
            )

    def _look_at(self, backup: engine.Backup, part: engine.BackupDisk) -> LookedAt:
        """Look at one disk."""
        kept = next((disk for disk in self._point.disks if disk.id == part.id), None)
        if kept is None:
            return LookedAt(part.id, part.alias, skipped="The point does not have it.")
        if not part.incremental:
            return LookedAt(part.id, part.alias, skipped="It has no bitmap, so nothing says what has changed.")
        if kept.size != part.size:
            return LookedAt(part.id, part.alias, skipped="Its size has changed since.")
        reader = self._repository.disk(self._point, part.id)
        with backup.transfer(part) as transfer:
            target = backup_job.target_of(transfer)
            record = self._site.agents().registry.find(target.host_address)
            self._progress.begin(part.id, f"comparing {part.alias}", part.size)
            with self._site.agent(record) as agent:
                agent.probe(target)
                changed = [Range(found.start, found.length, False) for found in agent.changed(target)]
                drift = tuple(self._drift(AgentUpload(agent, target), reader, changed, part))
            self._progress.end(part.id)
        altered = sum(place.length for place in changed)
        return LookedAt(part.id, part.alias, part.size - altered, altered, drift)

    def _drift(
        self, disk: AgentUpload, reader: DiskReader, changed: Sequence[Range], part: engine.BackupDisk
    ) -> Iterator[Gone]:
        """Generate what differs and has not changed."""
        for whole in unchanged(changed, part.size):
            for start in range(whole.start, whole.end, _SPAN):
                span = Range(start, min(_SPAN, whole.end - start), False)
                yield from (Gone(place.start, place.length) for place in disk.compare(_known(reader, span)))
                self._progress.advance(part.id, span.end, 0)

    def _drop_checkpoint(self, checkpoint_id: str | None) -> None:
        if checkpoint_id is None:
            return
        try:
            self._connection.delete_checkpoint(self._vm, checkpoint_id)
        except errors.Error as error:
            self._progress.warn(
                f"The checkpoint of this look stays for now: {error.message} The next backup removes it."
            )


def unchanged(changed: Sequence[Range], size: int) -> Iterator[Range]:
    """
    Generate what has not changed of a disk of `size` bytes. changed: in disk order, without overlap.

        changed:     |    |xx|      |xxxx|    |
        unchanged:   |====|  |======|    |====|
    """
    position = 0
    for place in changed:
        if place.start > position:
            yield Range(position, place.start - position, False)
        position = place.end
    if position < size:
        yield Range(position, size - position, False)


def _known(reader: DiskReader, span: Range) -> Iterator[Known]:
    """Generate what a point holds in a span, without gaps: ranges with their digests, and zeros."""
    position = span.start
    for entry in reader.entries(span.start, span.length):
        if entry.start > position:
            yield Known(position, entry.start - position, b"")
        # A piece of a chunk has no digest of its own in the index.
        own = entry.digest or digest.xxh3(reader.part(entry, reader.chunk(entry.chunk)))
        yield Known(entry.start, entry.length, own)
        position = entry.end
    if position < span.end:
        yield Known(position, span.end - position, b"")
