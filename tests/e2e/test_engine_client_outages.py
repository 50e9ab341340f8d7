"""An engine that goes away in the middle: nothing is lost, and nothing is left open."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import ovirtsdk4
import pytest

from blockferry import engine, errors
from blockferry.engine import Connection, Deadlines, JournalEntry
from tests.lab.lab import Lab, MiB, NewDisk, Vm

pytestmark = pytest.mark.lab

DISK = NewDisk(16 * MiB)
DEADLINES = Deadlines(conflict=20, ready=20, transfer=20, transfer_end=20, finalize=40, give_up=40, outage=20)


class Wire:
    """
    A relay in front of the engine that loses what the engine sends, once, from a moment that a test chooses.

    cut_when: asked before anything is passed to the client; when true, this connection breaks instead.
    """

    def __init__(self, port: int) -> None:
        self._engine = ("127.0.0.1", port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._server]
        self.cut_when: Callable[[], bool] | None = None
        self.cuts = 0
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in self._sockets:
            _break(end)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                try:
                    upstream = socket.create_connection(self._engine)
                except ConnectionRefusedError:
                    _break(client)
                    continue
                self._sockets.append(upstream)
                threading.Thread(target=self._pass, args=(client, upstream, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(upstream, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.cut_when is not None and self.cut_when():
                    self.cut_when = None
                    self.cuts += 1
                    break
                target.sendall(data)
        _break(source)
        _break(target)


def _break(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    wire = Wire(int(lab.engine.url.split(":")[2].split("/")[0]))
    yield wire
    wire.close()


@pytest.fixture
def connection(lab: Lab, wire: Wire) -> Iterator[Connection]:
    """A connection over the wire."""
    url = f"https://localhost:{wire.port}/ovirt-engine/api"
    with engine.connect(url, lab.username, lab.password, lab.ca, timeout=10, deadlines=DEADLINES) as connection:
        yield connection
    lab.engine.faults.reset()


@pytest.fixture
def api(lab: Lab) -> Iterator[ovirtsdk4.services.SystemService]:
    """Another client's view, past the wire."""
    sdk = ovirtsdk4.Connection(
        url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca), timeout=30
    )
    yield sdk.system_service()
    with contextlib.suppress(ovirtsdk4.Error):
        sdk.close()


@pytest.fixture(scope="module")
def running_vm(lab: Lab) -> Iterator[Vm]:
    """
    A VM whose guest is up: when a guest boots during a backup of more than a few seconds, libvirt 9.0 misses the end
    of QEMU's backup job now and then.
    """
    vm = lab.new_vm(disks=(DISK,))
    yield vm
    lab.host.remove_vm(vm.id)


@pytest.fixture
def vm(lab: Lab, running_vm: Vm) -> Vm:
    """A VM with one disk, of whose earlier backups and transfers the engine remembers nothing."""
    usual = lab.engine.settings.succeeded_backup_cleanup, lab.engine.settings.succeeded_transfer_cleanup
    lab.engine.settings.succeeded_backup_cleanup = lab.engine.settings.succeeded_transfer_cleanup = 0
    lab.engine.cleanup.run()
    lab.engine.settings.succeeded_backup_cleanup, lab.engine.settings.succeeded_transfer_cleanup = usual
    return running_vm


def phases(api: ovirtsdk4.services.SystemService, vm: Vm) -> list[str]:
    """The phases of all backups and transfers that the engine remembers of a VM."""
    backups = api.vms_service().vm_service(vm.id).backups_service().list()
    disks = [disk.id for disk in vm.disks]
    transfers = [found for found in api.image_transfers_service().list() if found.image.id in disks]
    return sorted(found.phase.value for found in [*backups, *transfers])


def test_a_restart_while_disks_are_read(
    connection: Connection, api: ovirtsdk4.services.SystemService, vm: Vm, lab: Lab
) -> None:
    found = connection.find_vm(vm.name)
    with (
        connection.backup(found, connection.disks(found), mode="live") as backup,
        backup.transfer(backup.disks[0]),
    ):
        away = threading.Thread(target=lab.engine.faults.restart, args=(2,))
        away.start()
        while is_up(connection):
            time.sleep(0.01)
    away.join()
    assert phases(api, vm) == ["finished_success", "succeeded"]
    assert [point.id for point in connection.checkpoints(found)] == [backup.to_checkpoint_id]


def is_up(connection: Connection) -> bool:
    try:
        connection.find_host("host1")
    except errors.EngineUnreachable:
        return False
    return True


def test_the_answer_to_the_start_is_lost(
    connection: Connection, api: ovirtsdk4.services.SystemService, vm: Vm, wire: Wire
) -> None:
    found = connection.find_vm(vm.name)

    def arm(entry: JournalEntry) -> None:
        if entry.backup_id is None:
            wire.cut_when = lambda: bool(phases(api, vm))

    with connection.backup(found, connection.disks(found), mode="live", journal=arm) as backup:
        assert backup.mode == "live"
    assert wire.cuts == 1
    assert phases(api, vm) == ["succeeded"]


def test_the_answer_to_a_transfer_is_lost(
    connection: Connection, api: ovirtsdk4.services.SystemService, vm: Vm, wire: Wire
) -> None:
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), mode="live") as backup:
        wire.cut_when = lambda: len(phases(api, vm)) > 1
        with backup.transfer(backup.disks[0]) as transfer:
            assert transfer.disk_id == vm.disks[0].id
    assert wire.cuts == 1
    assert phases(api, vm) == ["finished_success", "succeeded"]


def test_the_answer_to_the_finalize_is_lost(
    connection: Connection, api: ovirtsdk4.services.SystemService, vm: Vm, wire: Wire
) -> None:
    found = connection.find_vm(vm.name)
    with connection.backup(found, connection.disks(found), mode="live"):
        wire.cut_when = lambda: phases(api, vm) != ["ready"]
    assert wire.cuts == 1
    assert phases(api, vm) == ["succeeded"]


def test_an_engine_that_answers_too_late_starts_one_backup(
    lab: Lab, api: ovirtsdk4.services.SystemService, vm: Vm
) -> None:
    def slow_down(entry: JournalEntry) -> None:
        if entry.backup_id is None:
            lab.engine.faults.delay(f"/vms/{vm.id}/backups", 1.5)

    try:
        with engine.connect(
            lab.engine.url, lab.username, lab.password, lab.ca, timeout=1, deadlines=DEADLINES
        ) as connection:
            found = connection.find_vm(vm.name)
            disks = connection.disks(found)
            threading.Timer(2.5, lab.engine.faults.reset).start()
            with connection.backup(found, disks, mode="live", journal=slow_down):
                pass
    finally:
        lab.engine.faults.reset()
    assert phases(api, vm) == ["succeeded"]


def test_an_engine_that_stays_away_is_given_up_once(lab: Lab, vm: Vm, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing can be cleaned then; but nobody waits for each clean-up as long as for the first answer."""
    wire = Wire(int(lab.engine.url.split(":")[2].split("/")[0]))
    url = f"https://localhost:{wire.port}/ovirt-engine/api"
    deadlines = Deadlines(outage=6)
    with (
        pytest.raises(errors.EngineUnreachable, match="Nothing listens at"),
        engine.connect(url, lab.username, lab.password, lab.ca, deadlines=deadlines) as connection,
    ):
        found = connection.find_vm(vm.name)
        with (
            connection.backup(found, connection.disks(found), mode="live") as backup,
            backup.transfer(backup.disks[0]),
        ):
            wire.close()
            began = time.monotonic()
    assert 6 <= time.monotonic() - began < 12
    assert any("Nothing listens at" in message for message in caplog.messages)
    with engine.connect(lab.engine.url, lab.username, lab.password, lab.ca, deadlines=DEADLINES) as connection:
        connection.abandon(vm.id, backup.id)
        assert backup.to_checkpoint_id in [point.id for point in connection.checkpoints(found)]
