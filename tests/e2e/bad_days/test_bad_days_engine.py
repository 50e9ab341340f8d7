"""Bad days with the engine: it is not there, says no, restarts, gets stuck."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import trustme
from ovirtsdk4 import types

from tests.e2e.bad_days.scene import Scene
from tests.lab import processes
from tests.lab.lab import MiB, NewDisk

pytestmark = pytest.mark.lab


# It is not there, or does not let us in.


def test_wrong_password(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong-and-secret\n")
    result = scene.backup(config=scene.config(engine={"password_file": str(tmp_path / "password")}))
    assert "wrong-and-secret" not in result.output + result.errors
    scene.assert_survived(result, 4, "does not let user 'admin@internal' in", "Check the user.*and the password")


def test_no_engine_where_one_should_be(scene: Scene, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other-ca.pem"))
    closed, web = processes.free_port(), scene.lab.host.imageio_port
    days = (
        ({"ca_file": str(tmp_path / "other-ca.pem")}, "other-ca.pem vouches for", "Use the engine's own CA"),
        ({"url": f"https://localhost:{closed}/ovirt-engine/api"}, "Nothing listens at", "Check the address"),
        ({"url": "https://engine.invalid/ovirt-engine/api"}, "engine.invalid.* has no address", "name service"),
        ({"url": f"https://127.0.0.1:{web}/ovirt-engine/api"}, "is not an oVirt engine", "Check the URL"),
        ({"url": scene.lab.engine.url.replace("/api", "/ipa")}, "is not an oVirt engine", "Check the URL"),
    )
    for change, says, next_step in days:
        result = scene.backup(config=scene.config(engine=change), timeout=10)
        scene.assert_says(result, 4, says, next_step)
    scene.assert_survived(result, 4)


def test_engine_that_never_answers(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/ovirt-engine/api"
        result = scene.backup(config=scene.config(engine={"url": url, "timeout": 1}), timeout=10)
    scene.assert_says(result, 4, "did not answer within 1 s", "Check the network")
    scene.lab.engine.faults.delay("/ovirt-engine/api", 3)
    result = scene.backup(config=scene.config(engine={"timeout": 1}), timeout=10)
    scene.lab.engine.faults.reset()
    scene.assert_survived(result, 4, "did not answer within 1 s", "Check the network")


def test_engine_restarts_in_mid_backup(scene: Scene) -> None:
    with scene.held_backup("--json") as held:
        away = threading.Thread(target=scene.lab.engine.faults.restart, args=(2,))
        away.start()
        held.open()
        result = held.end()
        away.join()
    scene.assert_went_on(result)


def test_session_expires_in_mid_backup(scene: Scene) -> None:
    with scene.held_backup("--json") as held:
        scene.lab.engine.faults.expire_sessions()
        held.open()
        result = held.end()
    scene.assert_went_on(result)


# It says no.


def test_vm_that_is_not_there(scene: Scene) -> None:
    name = scene.vm.name
    result = scene.backup(vm=name.upper())
    scene.assert_says(result, 5, f"no VM '{name.upper()}'", f"Near to it: {name}")
    scene.assert_survived(scene.backup(vm="no-such"), 5, "no VM 'no-such'", "Check the name")


def test_two_vms_of_one_name(scene: Scene) -> None:
    twins = [
        scene.lab.new_vm("twin-of-a-bad-day", disks=(NewDisk(1 * MiB, ext4=False),), start=False) for _ in range(2)
    ]
    try:
        result = scene.backup(vm="twin-of-a-bad-day")
        scene.assert_survived(
            result, 5, *(vm.id for vm in twins), "2 VMs of the name 'twin-of-a-bad-day'", "Give the id"
        )
        scene.operator.do("backup", twins[0].id)
        assert {point["vm"]["id"] for point in scene.operator.do("list", "twin-of-a-bad-day")} == {twins[0].id}
    finally:
        for vm in twins:
            scene.lab.host.remove_vm(vm.id)


def test_vm_without_a_disk_for_backups(scene: Scene) -> None:
    empty = scene.lab.new_vm(disks=(), start=False)
    scene.assert_survived(scene.backup(vm=empty.name), 5, f"VM {empty.name} has no disk that can be backed up")


def test_somebody_else_backs_up_the_vm(scene: Scene) -> None:
    backups = scene.engine.vms_service().vm_service(scene.vm.id).backups_service()
    disks = [types.Disk(id=disk.id) for disk in scene.vm.disks]
    other = backups.add(types.Backup(disks=disks, description="other tool"), query={"legacy": "true"})
    service = backups.backup_service(other.id)
    processes.wait_for("backup of another tool", lambda: service.get().phase == types.BackupPhase.READY, 20)
    result = scene.backup(timeout=60)
    assert service.get().phase == types.BackupPhase.READY, "it ended somebody else's backup"
    service.finalize()
    processes.wait_for("end of it", lambda: service.get().phase == types.BackupPhase.SUCCEEDED, 20)
    scene.assert_survived(result, 6, f"VM '{scene.vm.name}'", other.id, "other tool", "Wait for it to end")


def test_paused_vm(scene: Scene) -> None:
    scene.lab.host.start_vm(scene.vm.id)
    scene.lab.host.pause_vm(scene.vm.id)
    result = scene.backup()
    scene.assert_says(result, 6, f"VM '{scene.vm.name}' is paused", "Resume it")
    scene.lab.host.resume_vm(scene.vm.id)
    scene.assert_survived(result, 6)


def test_backup_is_refused(scene: Scene) -> None:
    reason = "Cannot backup VM. The storage domain is in maintenance."
    scene.lab.engine.faults.refuse(f"/vms/{scene.vm.id}/backups", 400, f"[{reason}]")
    scene.assert_survived(scene.backup(), 4, "refused to start a backup", reason)


# It gets stuck.


@pytest.mark.parametrize("phase", ["ready", "transferring"])
def test_phase_that_never_comes(scene: Scene, phase: str) -> None:
    scene.lab.engine.faults.stick(phase)
    result = scene.backup(config=scene.config(backup={"ready_timeout": 1}))
    scene.lab.engine.faults.release(phase)
    what = {"ready": f"Backup .* of VM '{scene.vm.name}'", "transferring": "The transfer of disk '.*_Disk"}[phase]
    scene.assert_survived(result, 4, f"{what}.* did not become ready within 1 s", "See ")
    scene.assert_starts_and_stops()


def test_finalizing_that_never_ends(scene: Scene) -> None:
    scene.lab.engine.faults.stick("succeeded")
    result = scene.backup(config=scene.config(backup={"finalize_timeout": 1}))
    scene.lab.engine.faults.release("succeeded")
    newest = scene.operator.do("list", scene.vm.name)[0]["id"]
    assert newest not in scene.points
    scene.points.insert(0, newest)
    says = f"Recovery point {newest} is complete, but its backup did not end well"
    scene.assert_survived(result, 4, says, "still being finalized after 1 s", "goes on by itself")
