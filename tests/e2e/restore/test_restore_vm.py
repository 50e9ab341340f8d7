"""VMs and disks that come back as new ones."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.restore.scene import Scene
from tests.lab import processes
from tests.lab.lab import Lab, MiB, NewDisk
from tests.lab.operator import PROGRAM

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(lab, tmp_path_factory.mktemp("operator"))
    yield made
    made.close()


def test_a_vm_is_destroyed_and_comes_back(lab: Lab, scene: Scene) -> None:
    """Done when: as a running guest, whose files are the old ones; and it is backed up again."""
    vm = lab.new_vm("lost", disks=(NewDisk(24 * MiB), NewDisk(20 * MiB, format="raw", bus="virtio-scsi")))
    vm.guest.write_file("/mnt/vda/letter", b"Nobody wants backups.\n")
    vm.guest.run("mkdir /mnt/sda/d && seq 100000 >/mnt/sda/d/numbers && ln /mnt/sda/d/numbers /mnt/sda/same && sync")
    digests = vm.guest.run("md5sum /mnt/*/* /mnt/*/*/* 2>/dev/null | sort; ls -lR /mnt | grep -v total")
    scene.operator.do("backup", "lost", "--mode", "live")
    lost = {disk.id for disk in vm.disks}

    service = scene.engine.vms_service().vm_service(vm.id)
    macs = scene.macs(vm.id)
    service.stop()
    vm.wait_until_down()
    service.remove()
    assert not scene.disk_ids() & lost

    result = scene.operator.do("restore", "lost", "latest", "--new-vm", "lost", "--keep-ids", "--start")
    assert (result["vm_id"], result["vm_name"], result["started"]) == (vm.id, "lost", True)
    assert {disk["disk_id"] for disk in result["disks"]} == {disk["source_id"] for disk in result["disks"]}
    assert scene.macs(vm.id) == macs
    guest = lab.host.guest(vm.id)
    guest.wait_until_up()
    assert guest.run("md5sum /mnt/*/* /mnt/*/*/* 2>/dev/null | sort; ls -lR /mnt | grep -v total") == digests

    point = scene.operator.do("backup", "lost", "--mode", "live")
    assert point["parent_checkpoint_id"] is None, "new disks have no checkpoints"
    assert sum(disk["bytes"]["moved"] for disk in point["disks"]) < 4 * MiB, "what is stored is not moved again"

    service.stop()
    processes.wait_for("the end of the VM", lambda: lab.host.vm_state(vm.id) == "down")
    service.remove()


def test_a_vm_beside_the_old_one(lab: Lab, scene: Scene, tmp_path: Path) -> None:
    """Under new ids, with new MAC addresses, in another cluster and storage domain, without the agent."""
    domain = lab.engine.add_storage_domain("data2")
    cluster = lab.engine.add_cluster("Other")
    images = scene.images(tmp_path)
    refused = scene.restore("--new-vm", scene.vm.name)
    scene.assert_says(refused, 6, f"has a VM '{scene.vm.name}' already")
    refused = scene.restore("--new-vm", "twin", "--keep-ids")
    scene.assert_says(refused, 6, f"still has VM {scene.vm.id}.*--keep-ids")
    refused = scene.restore("--new-vm", "twin", "--cluster", "Elsewhere")
    scene.assert_says(refused, 5, "no cluster 'Elsewhere'.*It has: Default, Other")

    # The import lacks a disk, of which only an event tells.
    lab.engine.faults.fail_attach()
    options = ("--cluster", "Other", "--storage-map", "data1=data2", "--transport", "imageio", "--no-fallback")
    result = scene.restored("--new-vm", "twin", *options)
    assert result["vm_id"] != scene.vm.id
    assert scene.engine.vms_service().vm_service(result["vm_id"]).get().cluster.id == cluster
    assert len(scene.macs(result["vm_id"]) - scene.macs(scene.vm.id)) == 1
    attachments = scene.engine.vms_service().vm_service(result["vm_id"]).disk_attachments_service().list(follow="disk")
    by_id = {attachment.disk.id: attachment for attachment in attachments}
    assert set(by_id) == {disk["disk_id"] for disk in result["disks"]}
    for disk in result["disks"]:
        assert {carrier["transport"] for carrier in disk["carriers"]} == {"imageio"}
        found = by_id[disk["disk_id"]]
        assert found.disk.storage_domains[0].id == domain
        assert (found.disk.format.value, found.disk.backup.value) == ("cow", "incremental")
        assert found.disk.provisioned_size == disk["size"]
        assert found.bootable == (disk["source_id"] == scene.vm.disks[0].id)
        scene.assert_holds(disk["disk_id"], images[disk["source_id"]])
    assert lab.engine.events.codes(result["vm_id"]) == [175]
    scene.remove_disks(result)


def test_new_disks(scene: Scene, tmp_path: Path) -> None:
    """Raw ones, through the agent, side by side; then only one of them, through SSH."""
    images = scene.images(tmp_path)
    before = scene.disk_ids()
    made = scene.restored("--new-disk", "--format", "raw", "--storage-domain", "data1")
    assert {disk["disk_id"] for disk in made["disks"]} == scene.disk_ids() - before
    for disk in made["disks"]:
        found = scene.engine.disks_service().disk_service(disk["disk_id"]).get()
        assert (found.format.value, found.sparse) == ("raw", True)
        scene.assert_holds(disk["disk_id"], images[disk["source_id"]])
    scene.remove_disks(made)

    first = scene.vm.disks[0].id
    options = ("--storage-domain", "data1", "--transport", "ssh", "--no-fallback")
    made = scene.restored("--new-disk", "--disk", first, *options)
    (disk,) = made["disks"]
    assert [carrier["transport"] for carrier in disk["carriers"]] == ["ssh"]
    scene.assert_holds(disk["disk_id"], images[first])
    scene.remove_disks(made)
    assert scene.disk_ids() == before


def test_to_standard_output(scene: Scene, tmp_path: Path) -> None:
    images = scene.images(tmp_path / "images")
    raw = scene.vm.disks[1].id
    refused = scene.restore("--to", "-")
    scene.assert_says(refused, 5, "Standard output takes one disk, and these are 2: .*--disk")
    with (tmp_path / "out").open("wb") as file:
        words = [str(PROGRAM), "--config", str(scene.operator.config), "restore", scene.vm.name, "latest", "--to", "-"]
        subprocess.run([*words, "--disk", raw], stdout=file, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "out").read_bytes() == images[raw].read_bytes()
