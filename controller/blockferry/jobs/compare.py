"""
Compare the transports on the operator's own hosts: the same extents through each of them, in rounds, measured.

    one backup ─▶ for each disk: transfers ─▶ rounds, in each all transports, one at a time, the first changing
    ─▶ end the backup ─▶ remove its checkpoint

No recovery point is made. The checkpoint goes because it would cost the VM a bitmap: QEMU merges that into the one
before, so the next backup finds its base as it was (ovirt-facts, 3.8). A run that is killed leaves what a killed backup
leaves; the next backup, or comparison, of the VM ends it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from blockferry import __version__, engine, errors
from blockferry.config import AskedMode, TransportName
from blockferry.jobs import backup as backup_job
from blockferry.jobs import base, journal, measurement
from blockferry.jobs.measurement import Checking, HostCost, Round, Sink
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site
from blockferry.repository import Repository, Vm
from blockferry.transport.disk import Target, Transport
from blockferry.transport.imageio import ImageioTransport
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import ReadRequest


class Options(NamedTuple):
    """
    What the operator asked for.

    mode: of the engine's backup.  transports: names.  rounds: how often each transport reads, 1 or more.
    disks: ids or aliases; empty means all that can be backed up.  limit: bytes that are read of each disk, 0: all.
    incremental: read what changed since the newest point, instead of everything.
    store: write what is read into a repository beside the real one, which is removed afterwards.
    """

    mode: AskedMode
    transports: Sequence[TransportName]
    rounds: int = 3
    disks: Sequence[str] = ()
    limit: int = 0
    incremental: bool = False
    store: bool = False


class Carried(msgspec.Struct, frozen=True):
    """What one transport did. remark: what every report must say of it, such as "clear text"; empty for nothing."""

    transport: str
    remark: str
    rounds: list[Round]


class Absent(msgspec.Struct, frozen=True):
    """A transport that could not read everything, and why."""

    transport: str
    reason: str


class EngineTime(msgspec.Struct):
    """Seconds that the engine took: until the backup was ready, for each transfer, and to end the backup."""

    start: float = 0.0
    transfers: list[float] = []
    finalize: float = 0.0


class Comparison(msgspec.Struct, kw_only=True):
    """
    What was measured.

    backup_mode: what was read, "full" or "incremental".  mode: which backup the engine made.
    controller_peak: most memory that this process has had, in bytes.  stored: blocks went into a repository.
    host_figures: why there are none of the host, empty when there are.
    """

    vm_name: str
    vm_id: str
    mode: str
    backup_mode: str
    stored: bool
    window: int
    machine: str
    version: str
    engine: EngineTime
    carried: list[Carried]
    absent: list[Absent]
    host_figures: str
    controller_peak: int


def run(site: Site, vm_name: str, options: Options, progress: Progress) -> Comparison:
    """
    Measure, and return the figures.

    Raises TransportError when no transport could read everything; any other of our errors.
    """
    repository = site.repository()
    with site.engine() as connection:
        vm = connection.find_vm(vm_name)
        with journal.opened(site.state, vm.id) as log:
            backup_job.end_left_open(connection, log, progress)
            return _Job(site, repository, connection, vm, options, log, progress).run()


class _Job:
    """The comparison on one VM, whose journal is open."""

    def __init__(
        self,
        site: Site,
        repository: Repository,
        connection: engine.Connection,
        vm: engine.Vm,
        options: Options,
        log: journal.Journal,
        progress: Progress,
    ) -> None:
        self._site = site
        self._repository = repository
        self._connection = connection
        self._vm = vm
        self._options = options
        self._log = log
        self._progress = progress
        self._engine_time = EngineTime()
        self._absent: dict[str, str] = {}
        self._carried: dict[str, Carried] = {}
        self._host_figures = ""

    def run(self) -> Comparison:
        transports = self._transports()
        disks = backup_job.possible_disks(self._connection, self._vm, self._options.disks, self._progress)
        since = self._since(disks)
        began = time.monotonic()
        backup: engine.Backup | None = None
        try:
            with self._connection.backup(
                self._vm,
                disks,
                since=since,
                mode=self._options.mode,
                description=backup_job.description(self._repository),
                journal=self._log.record,
            ) as backup:
                self._engine_time.start = time.monotonic() - began
                for part in backup.disks:
                    self._compare_disk(backup, part, transports)
                began = time.monotonic()
            self._engine_time.finalize = time.monotonic() - began
            self._log.ended(self._log.open[-1])
        finally:
            # A comparison that is stopped has a checkpoint, too: the engine makes it whatever becomes of the blocks.
            if backup is not None:
                self._drop_checkpoint(backup.to_checkpoint_id)
        return self._result(backup.mode)

    def _transports(self) -> list[Transport]:
        """Return the transports to compare; note those that the configuration gives no means for."""
        found = []
        for name in self._options.transports:
            try:
                found += self._site.transports([name])
            except errors.ConfigError as error:
                self._absent[name] = measurement.why(error)
        return found

    def _since(self, disks: Sequence[engine.Disk]) -> str | None:
        """Return the checkpoint that an incremental comparison starts from. Raises NotFound when there is none."""
        if not self._options.incremental:
            return None
        points = self._repository.points(self._vm.id, lambda unreadable: self._progress.warn(unreadable.reason))
        checkpoints = {point.id for point in self._connection.checkpoints(self._vm) if point.usable}
        chosen = base.choose(points, checkpoints, [disk.id for disk in disks])
        if chosen.checkpoint_id is None:
            raise errors.NotFound(
                f"VM {self._vm.name} has no recovery point whose checkpoint the engine still has.",
                "Run `blockferry backup` first, or compare without --incremental.",
            )
        return chosen.checkpoint_id

    def _compare_disk(self, backup: engine.Backup, part: engine.BackupDisk, transports: Sequence[Transport]) -> None:
        """Read one disk through all transports. One disk at a time: an idle transfer would be cancelled."""
        length = min(self._options.limit or part.size, part.size)
        request = ReadRequest(0, length, part.incremental and self._options.incremental, self._window)
        for readings in _by_transfer(_order(transports, self._options.rounds)):
            began = time.monotonic()
            with backup.transfer(part) as transfer:
                self._engine_time.transfers.append(time.monotonic() - began)
                target = backup_job.target_of(transfer)
                for number, transport in readings:
                    if transport.name not in self._absent:
                        self._read(transport, target, request, part, number)

    def _read(
        self, transport: Transport, target: Target, request: ReadRequest, part: engine.BackupDisk, number: int
    ) -> None:
        self._progress.step(f"Disk {part.alias}: round {number} of {self._options.rounds} through {transport.name}")
        try:
            with self._sink(part) as sink:
                measured = measurement.measure(
                    transport, target, sink, request, lambda: self._ask_host(target), disk=part.alias, number=number
                )
        except (errors.RepositoryError, agent_errors.BitmapMissing):
            raise
        except (errors.TransportError, errors.NotFound, agent_errors.Error) as error:
            if isinstance(error, (errors.EngineError, errors.Interrupted)):
                raise
            self._absent[transport.name] = measurement.why(error)
            self._carried.pop(transport.name, None)
            self._progress.warn(f"{transport.name} is left out: {error.message}")
            return
        carried = self._carried.setdefault(transport.name, Carried(transport.name, measured.remark, []))
        carried.rounds.append(measured)

    @contextlib.contextmanager
    def _sink(self, part: engine.BackupDisk) -> Iterator[Sink]:
        if not self._options.store:
            yield Checking()
            return
        vm = Vm(self._vm.id, self._vm.name)
        durability = self._site.config.repository.durability
        with self._repository.scratch(durability) as scratch, scratch.new_point(vm) as draft:
            yield draft.disk(part.id, part.size, "full")

    def _ask_host(self, target: Target) -> HostCost | None:
        """Return what the agent on the host tells; None, with the reason noted, when there is none."""
        try:
            record = self._site.agents().registry.find(target.host_address)
            with self._site.agent(record) as agent:
                told = agent.describe()
        except (errors.NotFound, errors.TransportError) as error:
            self._host_figures = f"No agent on {target.host_name} tells of its processors and memory: {error.message}"
            return None
        return HostCost(told.cpu_seconds, told.imageio_cpu_seconds, told.resident_bytes)

    def _drop_checkpoint(self, checkpoint_id: str | None) -> None:
        if checkpoint_id is None:
            return
        try:
            self._connection.delete_checkpoint(self._vm, checkpoint_id)
        except errors.Error as error:
            self._progress.warn(
                f"The checkpoint of this comparison stays for now: {error.message} The next backup removes it."
            )

    @property
    def _window(self) -> int:
        return self._repository.settings.window

    def _result(self, mode: str) -> Comparison:
        if not self._carried:
            reasons = " ".join(f"{name}: {reason}" for name, reason in self._absent.items())
            raise errors.TransportError(
                f"No transport could read the disks of VM {self._vm.name}. {reasons}",
                "Deploy the agent (blockferry agent deploy), or allow Image I/O's port from here.",
            )
        return Comparison(
            vm_name=self._vm.name,
            vm_id=self._vm.id,
            mode=mode,
            backup_mode="incremental" if self._options.incremental else "full",
            stored=self._options.store,
            window=self._window,
            machine=f"{platform.node()}, {os.cpu_count()} processors, Linux {platform.release()}",
            version=__version__,
            engine=self._engine_time,
            carried=list(self._carried.values()),
            absent=[Absent(name, reason) for name, reason in self._absent.items()],
            host_figures=self._host_figures,
            controller_peak=measurement.own_peak(),
        )


def _order(transports: Sequence[Transport], rounds: int) -> Iterator[tuple[int, Transport]]:
    """Generate the readings, each with its round. Nobody is always the first, who may find the host's caches cold."""
    for number in range(rounds):
        shift = number % max(1, len(transports))
        for transport in (*transports[shift:], *transports[:shift]):
            yield number + 1, transport


def _by_transfer(readings: Iterable[tuple[int, Transport]]) -> Iterator[list[tuple[int, Transport]]]:
    """
    Generate the readings that share a transfer.

    The engine ends a transfer that has been read to its end through Image I/O, though not one that agents read
    (ovirt-facts, 4.5): so nothing comes behind a reading through `imageio`.
    """
    together: list[tuple[int, Transport]] = []
    for number, transport in readings:
        together.append((number, transport))
        if transport.name == ImageioTransport.name:
            yield together
            together = []
    if together:
        yield together
