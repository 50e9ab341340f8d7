"""
Restore into oVirt: disks of a recovery point become new disks, a new VM, or what an old disk holds.

    new disks    make ─▶ write ─▶ the engine accepts it
    new VM       new disks ─▶ the VM, from the point's configuration ─▶ its disks attached
    in place     compare, write what differs ─▶ the engine accepts it

What was made is removed when something fails, unless it is to be kept; a disk that was there before never is, because
an upload that is cancelled takes its disk with it, while one that is finalized leaves it.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

import msgspec

from blockferry import engine, errors
from blockferry.config import Compression, TransportName
from blockferry.jobs import configuration, copying, selection, unfinished, upload, volumes
from blockferry.jobs.backup import naming, target_of
from blockferry.jobs.domains import Domains
from blockferry.jobs.images import Format
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site
from blockferry.jobs.unfinished import Record
from blockferry.jobs.upload import Gap, Written
from blockferry.repository import Carrier, DiskManifest, Manifest, Repository
from blockferry.transport.ladder import Ladder
from blockferry.transport.uploading import UploadTransport

T = TypeVar("T")

MAX_DISKS_AT_ONCE = 4


class Options(NamedTuple):
    """
    How disks are placed.

    disks: names or ids; none: all.  transports: which may carry the blocks, the best first.
    storage_domain: name or id for all disks; None: each goes to where it was.  storage_map: by name or id of where a
    disk was, where it goes.  format: of new disks.
    host: name, address or id of the host that writes; None: the engine chooses one for each disk.
    keep_partial: new disks stay when a restore fails.  skip_damaged: what cannot be read becomes zeros, and is told.
    """

    disks: Sequence[str]
    transports: Sequence[TransportName]
    compression: Compression
    storage_domain: str | None = None
    storage_map: Mapping[str, str] = {}
    format: Format = "qcow2"
    host: str | None = None
    keep_partial: bool = False
    skip_damaged: bool = False


class NewVm(NamedTuple):
    """
    The VM that is to be made.

    cluster: name or id; None: the one that it was in.  keep_ids: the VM and its disks get the ids that they had.
    """

    name: str
    cluster: str | None = None
    keep_ids: bool = False
    start: bool = False


class Placed(msgspec.Struct, frozen=True):
    """
    A disk that was restored.

    source_id: in the point.  disk_id: in the engine.  size: bytes.
    compared: bytes that were compared on the host.  data, zeros: bytes that were written as data and as zeros; what
    differed is both together.  gaps: ranges that cannot be read in the repository, and are zeros now.
    """

    source_id: str
    disk_id: str
    alias: str
    size: int
    compared: int
    data: int
    zeros: int
    seconds: float
    carriers: tuple[Carrier, ...]
    gaps: tuple[Gap, ...]


class Result(msgspec.Struct, frozen=True):
    """What came of a restore. vm_id, vm_name: of the VM that was made or written to.  started: it was started."""

    point_id: str
    disks: tuple[Placed, ...]
    vm_id: str | None = None
    vm_name: str | None = None
    started: bool = False


def new_disks(site: Site, repository: Repository, point: Manifest, options: Options, progress: Progress) -> Result:
    """
    Restore disks as new ones, which belong to no VM.

    Raises NotFound, Ambiguous, EngineError, TransportError, Damaged, RestoreError when there is no room.
    """
    with site.engine() as connection, repository.reading(f"restore of point {point.id} of VM {point.vm.name}"):
        job = _Job(site, repository, connection, point, options, progress)
        with job.new_disks(keep_ids=False) as placed:
            return Result(point.id, tuple(placed))


def new_vm(
    site: Site, repository: Repository, point: Manifest, vm: NewVm, options: Options, progress: Progress
) -> Result:
    """
    Make a VM from a point's configuration, with its disks.

    Raises as new_disks, and Conflict when the name, or an id that is to be kept, is taken.
    """
    ovf = repository.ovf(point)
    with site.engine() as connection, repository.reading(f"restore of point {point.id} of VM {point.vm.name}"):
        job = _Job(site, repository, connection, point, options, progress)
        # Whatever would be refused at the end is found out before gigabytes are moved.
        job.check_free(vm)
        cluster_id = connection.find_cluster(vm.cluster or configuration.cluster_name(ovf))
        with job.new_disks(vm.keep_ids) as placed:
            made = job.new_vm(vm, cluster_id, ovf, placed)
        if vm.start:
            try:
                _start(connection, made, progress)
            except BaseException:
                _tell_gaps(placed, progress)
                raise
        return Result(point.id, tuple(placed), made.id, made.name, vm.start)


def in_place(site: Site, repository: Repository, point: Manifest, options: Options, progress: Progress) -> Result:
    """
    Make disks of the point's VM, which must be down, what they were; only what differs is written.

    Raises as new_disks, and Conflict when the VM runs, or a disk cannot be written. A disk whose restore fails on the
    way is neither what it was nor what it shall be: the error says so.
    """
    with site.engine() as connection, repository.reading(f"restore of point {point.id} of VM {point.vm.name}"):
        job = _Job(site, repository, connection, point, options, progress)
        vm = job.target_vm()
        targets = job.targets(vm)
        job.check_sound()
        return Result(point.id, tuple(job.overwrite(targets)), vm.id, vm.name)


def _start(connection: engine.Connection, vm: engine.Vm, progress: Progress) -> None:
    progress.step(f"VM {vm.name}: starting")
    try:
        connection.start_vm(vm)
    except errors.Error as error:
        raise errors.EngineError(
            f"VM {vm.name} ({vm.id}) is there with its disks, but does not start: {error.message}", error.hint
        ) from error


class _Job:
    """One restore. disks: of the point, those that are restored."""

    def __init__(
        self,
        site: Site,
        repository: Repository,
        connection: engine.Connection,
        point: Manifest,
        options: Options,
        progress: Progress,
    ) -> None:
        self.disks = selection.disks(point.disks, options.disks, f"Recovery point {point.id}")
        self._transports: list[UploadTransport] = site.uploads(options.transports)
        self._state = site.state
        self._repository = repository
        self._connection = connection
        self._point = point
        self._options = options
        self._progress = progress
        self._patience = engine.Patience()
        self._host_id = connection.find_host(options.host).id if options.host else None
        self._end_left_open()

    # New disks and VMs.

    @contextlib.contextmanager
    def new_disks(self, keep_ids: bool) -> Iterator[list[Placed]]:
        """
        Make and write new disks, side by side; they are there when the block begins.

        keep_ids: they get the ids that the point's disks had. All are removed when the block fails, or one of them
        does, unless they are to be kept.
        """
        wanted = self._new_disks(keep_ids)
        made: list[tuple[engine.NewDisk, Record]] = []
        ended: list[Placed] = []
        with contextlib.ExitStack() as stack:
            records = {new.id: stack.enter_context(unfinished.alone(self._state, new.id)) for _, new in wanted}

            def make(disk: DiskManifest, new: engine.NewDisk, stop: copying.Stop) -> Placed:
                self._progress.step(f"Disk {disk.alias}: making disk {new.id}")
                record = records[new.id]
                record.begun(new, made_as=new.description)
                self._connection.make_disk(new, self._patience)
                made.append((new, record))
                made_as = None if self._options.keep_partial else new.description

                def opened(transfer_id: str) -> None:
                    record.begun(new, made_as, transfer_id)

                with self._writing(new, self._options.keep_partial, opened) as transfer:
                    placed = self._write(disk, new.id, transfer, stop, only_differences=False)
                record.written(new)
                ended.append(placed)
                return placed

            try:
                yield self._side_by_side(wanted, make)
            except BaseException:
                self._leave(made)
                if self._options.keep_partial:
                    _tell_gaps(ended, self._progress)
                raise
            for record in records.values():
                record.ended()

    def check_free(self, vm: NewVm) -> None:
        """Raises Conflict when the new VM's name, or an id that it shall keep, is taken."""
        if self._connection.vm_exists(vm.name):
            raise errors.Conflict(f"The engine has a VM '{vm.name}' already.", "Give the new VM another name.")
        if not vm.keep_ids:
            return
        if self._connection.vm_exists(self._point.vm.id):
            raise errors.Conflict(
                f"The engine still has VM {self._point.vm.id}, whose id the new VM shall keep.",
                "Leave out --keep-ids to make it beside the old one, or remove that one first.",
            )
        for disk in self.disks:
            if self._connection.disk_exists(disk.id):
                raise errors.Conflict(
                    f"The engine still has disk {disk.id} ('{disk.alias}'), whose id the new one shall keep.",
                    "Leave out --keep-ids, or remove that disk first.",
                )

    def new_vm(self, vm: NewVm, cluster_id: str, ovf: str, placed: Sequence[Placed]) -> engine.Vm:
        """Make the VM, and attach what the engine did not attach by itself. Nothing of it stays when this raises."""
        self._progress.step(f"VM {vm.name}: making it from the configuration of {self._point.id}")
        ids = {disk.source_id: disk.disk_id for disk in placed}
        made = self._connection.make_vm(configuration.with_disks(ovf, ids), vm.name, cluster_id, vm.keep_ids)
        try:
            attached = {disk.id for disk in self._connection.disks(made)}
            for disk in self.disks:
                if ids[disk.id] not in attached:
                    self._connection.attach_disk(made, ids[disk.id], disk.interface, disk.bootable)
        except BaseException:
            with self._aside():
                self._connection.remove_vm(made)
            raise
        return made

    def _new_disks(self, keep_ids: bool) -> list[tuple[DiskManifest, engine.NewDisk]]:
        """Say what disks are to be made. Raises NotFound, Ambiguous, RestoreError."""
        domains = Domains(
            self._connection.storage_domains(),
            configuration.storage_domains(self._repository.ovf(self._point)) if self._point.ovf else {},
            self._options.storage_domain,
            self._options.storage_map,
        )
        return [(disk, self._new_disk(disk, domains, keep_ids)) for disk in self.disks]

    def _new_disk(self, disk: DiskManifest, domains: Domains, keep_ids: bool) -> engine.NewDisk:
        raw = self._options.format == "raw"
        space = disk.size if raw else volumes.qcow2_space(self._repository.disk(self._point, disk.id))
        domain = domains.take(disk, space)
        return engine.NewDisk(
            id=disk.id if keep_ids else str(uuid.uuid4()),
            alias=disk.alias,
            size=disk.size,
            initial_size=space,
            format="raw" if raw else "cow",
            # Block storage has no thin raw disks.
            sparse=not raw or domain.is_file,
            storage_domain_id=domain.id,
            # By the last word it is told from one that another controller makes of the same point, with the same id.
            description=f"Restored by Blockferry from {self._point.id}, {secrets.token_hex(4)}",
        )

    def _leave(self, made: Sequence[tuple[engine.NewDisk, Record]]) -> None:
        """Remove the disks that were made before something failed, or say that they stay."""
        for disk, record in made:
            if self._options.keep_partial:
                self._progress.warn(f"Disk {disk.alias} stays in the engine as it is now: {disk.id}.")
                if record.open is not None and record.open.made_as is not None:
                    # There is nothing to end, and the next restore would remove it.
                    record.ended()
            else:
                with self._aside():
                    self._connection.remove_disk(disk.id)
                    record.ended()

    # In place.

    def target_vm(self) -> engine.Vm:
        """Return the point's VM. Raises NotFound, and Conflict when it cannot be written to."""
        try:
            vm = self._connection.find_vm(self._point.vm.id)
        except errors.NotFound:
            raise errors.NotFound(
                f"VM {self._point.vm.name} ({self._point.vm.id}) is not there any more.",
                "Restore it as a new one with --new-vm.",
            ) from None
        if vm.status != "down":
            raise errors.Conflict(f"VM {vm.name} is {vm.status}: its disks are in use.", "Shut it down first.")
        if self._connection.has_snapshots(vm):
            raise errors.Conflict(
                f"VM {vm.name} has snapshots, and the engine lets no disk be written whose data is in several layers.",
                "Delete the snapshots, or restore with --new-disk or --new-vm.",
            )
        return vm

    def targets(self, vm: engine.Vm) -> list[tuple[DiskManifest, engine.Disk]]:
        """Return the VM's disks that are to be written. Raises NotFound, Conflict."""
        found = {disk.id: disk for disk in self._connection.disks(vm)}
        return [(disk, _target(disk, found.get(disk.id), vm.name)) for disk in self.disks]

    def check_sound(self) -> None:
        """
        Raises Damaged when it is known that a disk cannot be restored: nothing was written to any of them then.

        With skip_damaged that is an index; without, a chunk that a verification marked, too.
        """
        for disk in self.disks:
            self._repository.check_disk(self._point, disk.id, chunks=not self._options.skip_damaged)

    def overwrite(self, targets: Sequence[tuple[DiskManifest, engine.Disk]]) -> list[Placed]:
        """Write what differs, all disks side by side."""
        begun: set[str] = set()
        ended: list[Placed] = []

        def write(disk: DiskManifest, target: engine.Disk, stop: copying.Stop) -> Placed:
            with unfinished.alone(self._state, target.id) as record:

                def opened(transfer_id: str) -> None:
                    begun.add(disk.id)
                    record.begun(target, transfer_id=transfer_id)

                record.begun(target)
                try:
                    # Whatever happens, the disk is kept: else the engine would remove it.
                    with self._writing(target, True, opened) as transfer:
                        placed = self._write(disk, target.id, transfer, stop, only_differences=True)
                except BaseException as error:
                    if disk.id in begun:
                        self._progress.warn(
                            f"Disk {disk.alias} may be neither what it was nor what it shall be: restore it again."
                        )
                    elif isinstance(error, errors.Error) and not isinstance(error, errors.EngineUnreachable):
                        # The engine has refused; otherwise there may be a transfer that nobody knows of.
                        record.ended()
                    raise
                record.ended()
            ended.append(placed)
            return placed

        try:
            return self._side_by_side(targets, write)
        except BaseException:
            for placed in ended:
                self._progress.warn(f"Disk {placed.alias} is what it was at {self._point.id}, unlike the others.")
            _tell_gaps(ended, self._progress)
            for disk in self.disks:
                if disk.id not in begun:
                    self._progress.warn(f"Disk {disk.alias}: this restore has written nothing to it.")
            raise

    # Both.

    def _end_left_open(self) -> None:
        """End what restores that were killed, or could not reach the engine at their end, left open there."""
        for record in unfinished.left(self._state):
            disk = record.open
            assert disk is not None
            self._progress.step(f"Disk {disk.alias}: ending what an earlier restore left open")
            try:
                if disk.written:
                    self._name(disk)
                elif disk.made_as is not None:
                    self._connection.remove_unfinished_disk(disk.id, disk.made_as)
                elif disk.transfer_id is not None:
                    self._connection.end_writing(disk.transfer_id, disk)
                else:
                    self._name_uploads(disk)
            except errors.EngineUnreachable:
                raise
            except errors.Error as error:
                self._progress.warn(f"{error.message} {error.hint}".strip())
                if disk.made_as is not None and not isinstance(error, errors.NotFound):
                    # It is there still: the next restore tries again.
                    continue
            record.ended()

    def _name_uploads(self, disk: unfinished.OpenDisk) -> None:
        """Say what writes to a disk whose restore was killed while it asked for that: it may be somebody else's."""
        for transfer_id in self._connection.open_uploads(disk.id):
            self._progress.warn(
                f"Disk {disk.alias} ({disk.id}) is locked by transfer {transfer_id}, perhaps of a restore that was "
                "killed. If nobody writes to the disk, finalize that transfer in the engine; do not cancel it: the "
                "engine would remove the disk."
            )

    def _name(self, disk: unfinished.OpenDisk) -> None:
        """Say that a disk of a restore that was killed is there: somebody may use it by now."""
        if self._connection.disk_exists(disk.id):
            self._progress.warn(
                f"Disk {disk.alias} ({disk.id}), from a restore that was killed, is complete and stays: "
                "use it, or remove it in the engine."
            )

    def _side_by_side(
        self,
        disks: Sequence[tuple[DiskManifest, T]],
        act: Callable[[DiskManifest, T, copying.Stop], Placed],
    ) -> list[Placed]:
        """Act on all disks at once. The first error stops the others and is the one raised."""
        stop = copying.Stop()
        with futures.ThreadPoolExecutor(MAX_DISKS_AT_ONCE, thread_name_prefix="disk") as threads:
            under_way = [threads.submit(act, disk, target, stop) for disk, target in disks]
            try:
                for done in futures.as_completed(under_way):
                    done.result()
            except BaseException:
                stop.stop()
                self._patience.end()
                for waiting in under_way:
                    waiting.cancel()
                raise
        return [done.result() for done in under_way]

    def _writing(
        self, disk: engine.Transferred, keep: bool, opened: Callable[[str], None]
    ) -> AbstractContextManager[engine.Transfer]:
        return self._connection.writing(disk, keep, opened, self._patience, self._host_id)

    def _write(
        self,
        disk: DiskManifest,
        disk_id: str,
        transfer: engine.Transfer,
        stop: copying.Stop,
        only_differences: bool,
    ) -> Placed:
        """Write the content of one disk through a transfer that is open."""
        started = time.monotonic()
        terms = upload.Terms(
            window=self._repository.settings.window,
            compress=self._options.compression == "zstd",
            key=disk_id,
            label=disk.alias,
            only_differences=only_differences,
            skip_damaged=self._options.skip_damaged,
        )
        with naming(disk.alias):
            written = upload.write(
                Ladder(self._transports, target_of(transfer), stop.pause),
                self._repository.disk(self._point, disk.id),
                terms,
                stop,
                self._progress,
            )
        return _placed(disk, disk_id, only_differences, written, time.monotonic() - started)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Clean up after an error, which stays the one that is raised: what goes wrong here is told."""
        try:
            yield
        except errors.Error as second:
            self._progress.warn(f"{second.message} {second.hint}".strip())


def _tell_gaps(disks: Iterable[Placed], progress: Progress) -> None:
    """Say what became zeros on disks whose restore has no result, as something else failed."""
    for disk in disks:
        for gap in disk.gaps:
            progress.warn(gap.told_of(disk.alias))


def _placed(disk: DiskManifest, disk_id: str, compared: bool, written: Written, seconds: float) -> Placed:
    return Placed(
        source_id=disk.id,
        disk_id=disk_id,
        alias=disk.alias,
        size=disk.size,
        compared=disk.size if compared else 0,
        data=written.data,
        zeros=written.zeros,
        seconds=seconds,
        carriers=written.carriers,
        gaps=written.gaps,
    )


def _target(disk: DiskManifest, target: engine.Disk | None, vm_name: str) -> engine.Disk:
    """Return the disk that is to be written. Raises NotFound, and Conflict when it cannot hold what the point has."""
    if target is None:
        raise errors.NotFound(
            f"VM {vm_name} does not have disk '{disk.alias}' ({disk.id}) any more.",
            "Restore it with --new-disk, and attach that.",
        )
    if target.storage_type != "image" or target.content_type != "data" or target.shareable:
        raise errors.Conflict(
            f"Disk '{target.alias}' cannot be written in place: {target.obstacle}.", "Restore it with --new-disk."
        )
    if target.size != disk.size:
        than = "smaller" if target.size < disk.size else "larger"
        raise errors.Conflict(
            f"Disk '{target.alias}' has {target.size} bytes, {than} than the {disk.size} that it had at the point.",
            "Restore it with --new-disk, and attach that instead.",
        )
    return target
