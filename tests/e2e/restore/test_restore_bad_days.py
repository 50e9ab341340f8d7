"""Restores that something happens to."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import ovirtsdk4
import pytest
from ovirtsdk4 import types

from blockferry.jobs import unfinished
from blockferry_agent.nbd import Address
from tests.component import nbd_servers
from tests.e2e.bad_days.scene import Held
from tests.e2e.restore.scene import Scene
from tests.lab import processes
from tests.lab.lab import Lab, MiB

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def module_scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(lab, tmp_path_factory.mktemp("operator"))
    yield made
    made.close()


@pytest.fixture
def scene(module_scene: Scene) -> Iterator[Scene]:
    """The module's scene. Whatever happens in a test, nothing that it made stays in the engine."""
    before = module_scene.disk_ids()
    yield module_scene
    module_scene.lab.engine.faults.reset()
    left = module_scene.disk_ids() - before
    for disk_id in left:
        with contextlib.suppress(ovirtsdk4.Error):
            module_scene.engine.disks_service().disk_service(disk_id).remove()
    assert not left
    module_scene.assert_engine_is_clean()


@pytest.fixture
def images(scene: Scene, tmp_path: Path) -> dict[str, Path]:
    """What the newest point holds."""
    return scene.images(tmp_path / "images")


def test_the_agent_is_killed(scene: Scene, images: dict[str, Path]) -> None:
    """Another way takes over in the middle of a disk."""
    with scene.held_restore("--new-disk", "--json") as held:
        os.kill(scene.agent_pid, signal.SIGKILL)
        held.open()
        result = held.end()
    scene.operator.do("agent", "deploy", scene.lab.host.name)
    scene.assert_says(result, 0, r"goes (on )?through imageio\. grpc broke at \d+\.\d MiB: The agent at")
    for disk in result.document["disks"]:
        scene.assert_holds(disk["disk_id"], images[disk["source_id"]])
    (disk,) = (disk for disk in result.document["disks"] if disk["source_id"] == scene.vm.disks[0].id)
    assert disk["carriers"][-1]["transport"] == "imageio"
    assert disk["data"] + disk["zeros"] == disk["size"], "nothing is counted twice"
    scene.remove_disks(result.document)


def test_the_engine_is_restarted(scene: Scene, images: dict[str, Path]) -> None:
    with scene.held_restore("--new-disk", "--json") as held:
        locks = [path.read_text() for path in (scene.operator.directory / "repository" / "locks").rglob("*.json")]
        assert any("restore of point" in lock for lock in locks), "a collection would take what it reads"
        scene.lab.engine.faults.restart(1)
        held.open()
        result = held.end()
    scene.assert_says(result, 0)
    for disk in result.document["disks"]:
        scene.assert_holds(disk["disk_id"], images[disk["source_id"]])
    scene.remove_disks(result.document)


def test_a_transfer_that_is_lost_takes_the_new_disks_with_it(scene: Scene) -> None:
    """The ticket goes away under the restore: no way is left."""
    with scene.held_restore("--new-disk") as held:
        for transfer in filter(lambda transfer: transfer.transfer_url, scene.transfers()):
            scene.lab.host.remove_ticket(transfer.transfer_url.rpartition("/")[2])
            scene.lab.host.stop_nbd(transfer.id)
        held.open()
        scene.assert_says(held.end(), 7, "Disk .*No transport carries the disk any further")


def test_a_restore_that_is_stopped_removes_what_it_made(scene: Scene) -> None:
    with scene.held_restore("--new-vm", "half") as held:
        held.process.send_signal(signal.SIGTERM)
        # The disk's server still hangs.
        scene.assert_says(held.end(), 130, "Stopped by a signal")
    assert not scene.engine.vms_service().list(search="name=half")


def test_a_restore_that_waits_for_the_engine_can_be_stopped(scene: Scene) -> None:
    scene.lab.engine.faults.stick("transferring")
    with Held(scene.operator.start("restore", scene.vm.name, "latest", "--new-disk")) as held:
        held.wait_until(lambda: [transfer.phase.value for transfer in scene.transfers()] == ["initializing"] * 2)
        held.process.send_signal(signal.SIGTERM)
        scene.assert_says(held.end(30), 130, "Stopped by a signal")


def test_a_vm_that_does_not_start_is_there(scene: Scene, images: dict[str, Path]) -> None:
    reason = "Cannot run VM. There is no host that satisfies current scheduling constraints."
    scene.lab.engine.faults.refuse("/start", 409, reason)
    result = scene.restore("--new-vm", "cold", "--start")
    scene.assert_says(result, 4, rf"VM cold \(.*\) is there with its disks, but does not start: .*{reason}")
    (vm,) = scene.engine.vms_service().list(search="name=cold")
    service = scene.engine.vms_service().vm_service(vm.id)
    assert len(service.disk_attachments_service().list()) == len(images)
    service.remove()


def test_partial_disks_are_kept_when_asked(scene: Scene) -> None:
    before = scene.disk_ids()
    with scene.held_restore("--new-disk", "--keep-partial") as held:
        held.process.send_signal(signal.SIGTERM)
        held.open()
        scene.assert_says(held.end(), 130, "stays in the engine as it is now")
    kept = scene.disk_ids() - before
    assert kept
    for disk_id in kept:
        service = scene.engine.disks_service().disk_service(disk_id)
        assert service.get().status.value == "ok"
        service.remove()


def test_killed_restores_are_ended_by_the_next_one(scene: Scene, images: dict[str, Path]) -> None:
    """A VM's disk that stayed locked is free again, a new disk is removed, one that was complete is named."""
    before = scene.disk_ids()
    scene.qemu_io("write -P 0x77 0 12M")
    with scene.held_restore("--in-place") as held:
        held.process.kill()
        held.end()
    assert scene.open_transfers()
    records = scene.operator.directory / "state" / "restoring"
    with scene.held_restore("--new-disk") as held:
        # The other disk is smaller than what the valves let pass.
        held.wait_until(lambda: any('"written":true' in path.read_text() for path in records.glob("*.json")))
        held.process.kill()
        held.end()
    assert not scene.open_transfers()
    assert len(scene.disk_ids() - before) == 2
    result = scene.restore("--in-place")
    scene.assert_says(result, 0, "ending what an earlier restore left open")
    (complete,) = scene.disk_ids() - before
    scene.assert_says(result, 0, rf"{complete}\), from a restore that was killed, is complete and stays")
    scene.assert_holds(complete, images[scene.vm.disks[1].id])
    scene.engine.disks_service().disk_service(complete).remove()
    for disk_id, image in images.items():
        scene.assert_holds(disk_id, image)


def test_a_restore_that_is_killed_before_it_writes(scene: Scene) -> None:
    """It has made its disks, and no transfer: the next one removes them, but for one that a VM has by now."""
    before = scene.disk_ids()
    scene.lab.engine.faults.delay("/imagetransfers", 5)
    with Held(scene.operator.start("restore", scene.vm.name, "latest", "--new-disk")) as held:
        held.wait_until(lambda: len(scene.disk_ids() - before) == 2)
        for disk_id in scene.disk_ids() - before:
            scene.wait_for_disk(disk_id)
        held.process.kill()
        held.end()
    scene.lab.engine.faults.reset()
    used = min(scene.disk_ids() - before)
    attachments = scene.engine.vms_service().vm_service(scene.vm.id).disk_attachments_service()
    attachment = types.DiskAttachment(disk=types.Disk(id=used), interface=types.DiskInterface.VIRTIO, active=True)
    attachments.add(attachment)
    try:
        scene.assert_says(scene.restore("--in-place"), 0, "ending what an earlier restore left open")
        assert scene.disk_ids() == before | {used}
    finally:
        attachments.attachment_service(used).remove(detach_only=False)
        processes.wait_for("the disk's end", lambda: scene.disk_ids() == before)


@pytest.mark.parametrize("transport", ["grpc", "imageio"])
def test_the_storage_is_full(scene: Scene, transport: str) -> None:
    """The disk's own server, behind one that fails every write."""
    with contextlib.ExitStack() as servers:

        def put_before(ticket: dict[str, Any]) -> None:
            if ticket["ops"] == ["write"]:
                path = scene.socket()
                server = ticket["url"].removeprefix("nbd:unix:")
                command = ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={path}", "--filter=error", "nbd"]
                command += [f"socket={server}", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"]
                servers.enter_context(nbd_servers.served(command, Address(str(path), "")))
                ticket["url"] = f"nbd:unix:{path}"

        scene.on_ticket = put_before
        result = scene.restore("--new-disk", "--transport", transport)
        scene.on_ticket = None
    says = {"grpc": "No space left on device", "imageio": "answered 500"}[transport]
    scene.assert_says(result, 7, f"Disk {scene.vm.name}_Disk.: .*{says}")


def test_a_damaged_chunk(scene: Scene) -> None:
    """It is not written; with --skip-damaged it is zeros, and told."""
    chunks = sorted(
        (scene.operator.directory / "repository" / "chunks").rglob("*"), key=lambda path: path.stat().st_size
    )
    damaged = chunks[-1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-9] + bytes(9))
    try:
        refused = scene.restore("--new-disk")
        scene.assert_says(refused, 9, rf"{damaged.name}")
        result = scene.operator.run("restore", scene.vm.name, "latest", "--new-disk", "--skip-damaged", "--json")
        scene.assert_says(result, 9, "could not be read in the repository: there are zeros now")
        (gap,) = (gap for disk in result.document["disks"] for gap in disk["gaps"])
        assert damaged.name in gap["reason"]
        assert 0 < gap["length"] <= MiB
        scene.remove_disks(result.document)
        images = scene.operator.run(
            *("restore", scene.vm.name, "--to", str(scene.operator.directory / "gaps"), "--skip-damaged", "--json")
        )
        scene.assert_says(images, 9, "1 range could not be read")
        assert [gap for image in images.document for gap in image["gaps"]] == [gap]
        # What is known to be damaged is met before a disk of the VM is touched.
        scene.assert_says(scene.operator.run("verify", scene.vm.name), 9, "1 stored object is damaged")
        in_place = scene.restore("--in-place")
        scene.assert_says(in_place, 9, damaged.name)
        assert "restoring" not in in_place.errors
    finally:
        damaged.write_bytes(content)


def test_a_restore_in_place_that_was_killed_while_it_asked(scene: Scene, images: dict[str, Path]) -> None:
    """It had said what it would do, and did not hear of its transfer: nobody knows whose it is, so it is named."""
    disk_id = scene.vm.disks[0].id
    record = unfinished.OpenDisk(disk_id, f"{scene.vm.name}_Disk1", scene.vm.disks[0].size, None)
    records = scene.operator.directory / "state" / "restoring"
    records.mkdir(exist_ok=True)
    (records / f"{disk_id}.json").write_bytes(msgspec.json.encode(record))
    transfers = scene.engine.image_transfers_service()
    transfer = types.ImageTransfer(
        disk=types.Disk(id=disk_id),
        direction=types.ImageTransferDirection.UPLOAD,
        format=types.DiskFormat.RAW,
        timeout_policy=types.ImageTransferTimeoutPolicy.PAUSE,
    )
    transfer = transfers.add(transfer)
    service = transfers.image_transfer_service(transfer.id)
    processes.wait_for("the transfer", lambda: service.get().phase.value == "transferring")
    elsewhere = scene.restore("--new-disk", "--storage-domain", "nowhere")
    scene.assert_says(elsewhere, 5, rf"is locked by transfer {transfer.id}")
    service.finalize()
    processes.wait_for("its end", lambda: not scene.open_transfers())
    result = scene.restore("--in-place")
    scene.assert_says(result, 0)
    assert "is locked" not in result.errors
    for each, image in images.items():
        scene.assert_holds(each, image)
