"""
What bad days have in common: a VM with recovery points, its operator, and what must be so when something went wrong.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ovirtsdk4
from ovirtsdk4 import types

from tests.e2e.bad_days.valve import Valve
from tests.lab import processes
from tests.lab.lab import Lab, MiB, NewDisk
from tests.lab.operator import Operator, Result

# Without file systems: no guest comes so far as to use them.
DISKS = (NewDisk(24 * MiB, ext4=False), NewDisk(3 * MiB + 512, format="raw", bus="virtio-scsi", ext4=False))

# What `Scene.write` writes, and how much of it a valve lets pass: more than an agent reads ahead, so that some of it has
# come to the controller.
WRITTEN = 16 * MiB
PASSED = 12 * MiB

# Seconds within which a command ends that has only to say no, or to clean up in an engine that answers.
SOON = 120

FINAL_PHASES = ("succeeded", "failed", "finished_success", "finished_failure", "finished_cleanup")


class Scene:
    """
    A VM that is down unless a test starts it, and an operator with an agent and at least one recovery point of it.

    points: the ids of all recovery points that the operator has of the VM, the newest first.
    on_ticket: called with each ticket before Image I/O has it; may change its url.
    """

    def __init__(self, lab: Lab, directory: Path, *, agent: bool = True) -> None:
        self.lab = lab
        self.operator = Operator(lab, directory)
        self.vm = lab.new_vm(disks=DISKS, start=False)
        self.points: list[str] = []
        self.on_ticket: Callable[[dict[str, Any]], None] | None = None
        self._tickets: set[str] = set()
        self._names = itertools.count()
        self._sdk = ovirtsdk4.Connection(
            url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca), timeout=30
        )
        self.engine = self._sdk.system_service()
        lab.host.before_ticket = self._see_ticket
        self.operator.do("repository", "init")
        if agent:
            self.operator.do("agent", "deploy", lab.host.name)
        self.write()
        self.assert_next_succeeds("full")

    def close(self) -> None:
        self.lab.host.before_ticket = None
        self.operator.run("agent", "remove", self.lab.host.name)
        self.lab.host.remove_vm(self.vm.id)
        with contextlib.suppress(ovirtsdk4.Error):
            self._sdk.close()

    def write(self) -> None:
        """Write new random data to the first disk of the VM, which is down."""
        path = self.operator.directory / "random"
        path.write_bytes(os.urandom(WRITTEN))
        disk = self.vm.disks[0]
        processes.run("qemu-io", "-f", disk.format, "-c", f"write -q -s {path} 0 {WRITTEN}", disk.path)
        path.unlink()

    def config(self, **tables: dict[str, Any]) -> tuple[str, str]:
        """
        Return the words for another configuration: keys of some tables replaced, None takes one away.

            scene.run(*scene.config(engine={"url": …}), "backup", …)
        """
        document: dict[str, Any] = tomllib.loads(self.operator.config.read_text())
        for table, keys in tables.items():
            document[table] = document.get(table, {}) | keys
        path = self.operator.directory / f"config-{next(self._names)}.toml"
        path.write_text(_toml(document))
        return "--config", str(path)

    def backup(self, *options: str, config: Sequence[str] = (), vm: str | None = None, timeout: float = SOON) -> Result:
        """Run `blockferry backup` of the VM (live, or cold when it is down), whatever comes of it."""
        return self.operator.run(*config, "backup", vm or self.vm.name, "--mode", "live", *options, timeout=timeout)

    @contextlib.contextmanager
    def held_backup(self, *options: str, config: Sequence[str] = ()) -> Iterator[Held]:
        """Start an incremental backup of new data, and hold it in the middle of its first disk."""
        if self.lab.host.vm_state(self.vm.id) == "down":
            self.write()
        with contextlib.ExitStack() as stack:
            valves = stack.enter_context(self._valves())
            process = self.operator.start(*config, "backup", self.vm.name, "--mode", "live", *options)
            held = stack.enter_context(Held(process, valves))
            held.wait_until(lambda: any(valve.is_shut for valve in valves))
            yield held

    @contextlib.contextmanager
    def stuck_backup(self, phase: str, *, before: str) -> Iterator[Held]:
        """Start a backup that stays in phase `before`, because `phase` does not come until the block ends."""
        self.lab.engine.faults.stick(phase)
        try:
            with Held(self.operator.start("backup", self.vm.name, "--mode", "live")) as held:
                held.wait_until(lambda: [backup.phase.value for backup in self.open_backups()] == [before])
                yield held
        finally:
            self.lab.engine.faults.release(phase)

    @contextlib.contextmanager
    def _valves(self) -> Iterator[list[Valve]]:
        """Put a valve before the server of each transfer of the first disk."""
        valves: list[Valve] = []

        def put(ticket: dict[str, Any]) -> None:
            if self.lab.engine.disk_of(str(ticket["transfer_id"])) == self.vm.disks[0].id:
                path = self.socket()
                server = re.sub("^nbd:unix:|:exportname=.*", "", ticket["url"])
                valves.append(Valve(path, Path(server), PASSED))
                ticket["url"] = ticket["url"].replace(server, str(path))

        self.on_ticket = put
        try:
            yield valves
        finally:
            self.on_ticket = None
            for valve in valves:
                valve.close()

    def socket(self) -> Path:
        """A new path for an NBD server's socket, where the agent may open it."""
        return self.lab.host.directory / "run/vdsm/nbd" / f"test-{next(self._names)}.sock"

    @property
    def agent_pid(self) -> int:
        return int((self.lab.host.directory / "agent/run/agent.pid").read_text())

    def open_backups(self) -> list[types.Backup]:
        """The VM's backups in the engine that have not ended."""
        backups = self.engine.vms_service().vm_service(self.vm.id).backups_service().list()
        return [backup for backup in backups if backup.phase.value not in FINAL_PHASES]

    def open_transfers(self) -> list[types.ImageTransfer]:
        """The transfers of the VM's disks that have not ended, the first disk's first."""
        disks = [disk.id for disk in self.vm.disks]
        found = [
            transfer
            for transfer in self.engine.image_transfers_service().list()
            if transfer.image.id in disks and transfer.phase.value not in FINAL_PHASES
        ]
        return sorted(found, key=lambda transfer: disks.index(transfer.image.id))

    # What must be so afterwards.

    def assert_survived(self, result: Result, status: int, *says: str, next_read: str = "incremental") -> None:
        """
        A command failed as it should, and nothing was lost.

        says: patterns of what it must say.  next_read: how the next backup must read the first disk.
        """
        self.assert_says(result, status, *says)
        self.assert_engine_is_clean()
        self.assert_next_succeeds(next_read)

    def assert_says(self, result: Result, status: int, *says: str) -> None:
        """A command ended with a status, and with sentences that hold no secret."""
        told = f"status {result.status}:\n{result.errors}"
        assert result.status == status, told
        for pattern in says:
            assert re.search(pattern, result.errors), f"{pattern!r} is not in what it said, {told}"
        everything = result.output + result.errors
        assert "Traceback" not in everything, told
        for secret in (self.lab.password, *self._tickets):
            assert secret not in everything, told

    def assert_engine_is_clean(self) -> None:
        """No backup of the VM, no transfer and no lock of its disks is open in the engine."""
        for found in (*self.open_backups(), *self.open_transfers()):
            raise AssertionError(f"{found.id} is open, a {type(found).__name__} in phase {found.phase}")
        attachments = self.engine.vms_service().vm_service(self.vm.id).disk_attachments_service().list(follow="disk")
        statuses = [attachment.disk.status.value for attachment in attachments]
        assert set(statuses) == {"ok"}, f"disks are locked: {statuses}"

    def assert_starts_and_stops(self) -> None:
        """The VM, which is down, can be started and stopped through the engine."""
        service = self.engine.vms_service().vm_service(self.vm.id)
        service.start()
        self._wait_for_status("up")
        service.stop()
        self._wait_for_status("down")

    def assert_went_on(self, result: Result) -> None:
        """A backup that was asked for with --json made a recovery point all the same."""
        self.assert_says(result, 0)
        self.points.insert(0, result.document["id"])
        self.assert_engine_is_clean()
        self.assert_next_succeeds()

    def assert_next_succeeds(self, read: str = "incremental") -> dict[str, Any]:
        """The next backup makes the next recovery point, and the only one since the last good day."""
        point: dict[str, Any] = self.operator.do("backup", self.vm.name, "--mode", "live", timeout=60)
        disk = next(disk for disk in point["disks"] if disk["id"] == self.vm.disks[0].id)
        assert disk["backup_mode"] == read
        listed = [found["id"] for found in self.operator.do("list", self.vm.name)]
        assert listed == [point["id"], *self.points]
        self.points = listed
        return point

    def _wait_for_status(self, status: str) -> None:
        service = self.engine.vms_service().vm_service(self.vm.id)
        processes.wait_for(f"status {status} of the VM", lambda: service.get().status == types.VmStatus(status), 20)

    def _see_ticket(self, ticket: dict[str, object]) -> None:
        self._tickets.add(str(ticket["uuid"]))
        if self.on_ticket is not None:
            self.on_ticket(ticket)


class Held:
    """
    A backup that waits in the middle of a disk, or for the engine.

    process: of the command.
    """

    def __init__(self, process: subprocess.Popen[str], valves: Sequence[Valve] = ()) -> None:
        self.process = process
        self._valves = valves

    def wait_until(self, held: Callable[[], bool]) -> None:
        """Wait until it has come so far."""

        def alive_and_held() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the backup ended before it was held: {self.process.communicate()}")
            return held()

        processes.wait_for("holding of the backup", alive_and_held, 60)

    def open(self) -> None:
        """Let the data flow again."""
        for valve in self._valves:
            valve.open()

    def end(self, timeout: float = SOON) -> Result:
        """Wait for the end of the command. timeout: seconds."""
        output, errors = self.process.communicate(timeout=timeout)
        return Result(self.process.returncode, output, errors)

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def _toml(document: dict[str, Any]) -> str:
    """Return a document of plain values and tables of them as TOML, whose strings and lists are JSON's."""
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in document.items() if key not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None)]
    return "\n".join(lines) + "\n"
