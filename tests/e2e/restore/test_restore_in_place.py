"""In place: what differs is written, nothing else is, and backups go on from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ovirtsdk4 import types

from tests.e2e.restore.scene import Scene
from tests.lab.lab import Lab, MiB

pytestmark = pytest.mark.lab

GRAIN = 64 << 10


@pytest.fixture(scope="module")
def scene(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(lab, tmp_path_factory.mktemp("operator"))
    yield made
    made.close()


def change(scene: Scene) -> None:
    """Change four grains of the first disk, one percent of it, in four ways."""
    scene.qemu_io(
        "write -P 0x11 1M 64k",  # other data
        "write -z 5M 64k",  # zeros over data
        "discard 9M 64k",  # a hole in data
        "write -P 0x22 20M 64k",  # data where zeros were
    )


@pytest.mark.parametrize("transport", ["grpc", "ssh", "imageio"])
def test_only_what_differs_is_written(scene: Scene, tmp_path: Path, transport: str) -> None:
    images = scene.images(tmp_path)
    change(scene)
    result = scene.restored("--in-place", "--transport", transport, "--no-fallback")
    assert result["vm_id"] == scene.vm.id
    first, second = sorted(
        result["disks"], key=lambda disk: [each.id for each in scene.vm.disks].index(disk["disk_id"])
    )
    for disk, known in zip((first, second), scene.vm.disks, strict=True):
        assert disk["compared"] == disk["size"] == known.size
        assert {carrier["transport"] for carrier in disk["carriers"]} <= {transport}
    assert (second["data"], second["zeros"]) == (0, 0), "nothing of it differs"
    assert (first["data"], first["zeros"]) == (3 * GRAIN, GRAIN), "what differs, and zeros not as bytes"
    for disk_id, image in images.items():
        scene.assert_holds(disk_id, image)
    scene.assert_engine_is_clean()

    # The bitmaps have recorded both the changes and the restore.
    point = scene.assert_next_succeeds("incremental")
    (moved,) = (disk["bytes"]["moved"] for disk in point["disks"] if disk["id"] == first["disk_id"])
    assert moved <= 4 * MiB, "the dirty grains, some of them in windows that are read whole"
    for disk_id, image in scene.images(tmp_path / "after").items():
        scene.assert_holds(disk_id, image)
        assert image.read_bytes() == images[disk_id].read_bytes()


def test_one_disk_is_restored_and_the_other_is_left(scene: Scene, tmp_path: Path) -> None:
    images = scene.images(tmp_path)
    change(scene)
    # Not at its start: where that is a hole, QEMU wants a size that is a multiple of 4096, which this one has not.
    scene.qemu_io("write -P 0x33 1M 64k", number=1)
    raw = scene.vm.disks[1]
    (only,) = scene.restored("--in-place", "--disk", raw.id)["disks"]
    assert only["disk_id"] == raw.id
    scene.assert_holds(raw.id, images[raw.id])
    with pytest.raises(AssertionError, match="does not hold"):
        scene.assert_holds(scene.vm.disks[0].id, images[scene.vm.disks[0].id])
    scene.restored("--in-place")
    scene.assert_holds(scene.vm.disks[0].id, images[scene.vm.disks[0].id])


def test_a_running_vm_is_refused(scene: Scene) -> None:
    scene.lab.host.start_vm(scene.vm.id)
    try:
        scene.assert_says(scene.restore("--in-place"), 6, rf"VM {scene.vm.name} is up.*Shut it down")
    finally:
        scene.lab.host.destroy_vm(scene.vm.id)


def test_disks_that_cannot_take_it_are_refused(scene: Scene) -> None:
    """The last test: the VM is another one then."""
    first, raw = scene.vm.disks
    attachments = scene.engine.vms_service().vm_service(scene.vm.id).disk_attachments_service()
    grown = types.DiskAttachment(disk=types.Disk(provisioned_size=25 * MiB))
    attachments.attachment_service(first.id).update(grown)
    scene.wait_for_disk(first.id)
    scene.assert_says(scene.restore("--in-place"), 6, "has 26214400 bytes, larger than the 25165824 .*--new-disk")

    attachments.attachment_service(raw.id).remove()
    scene.assert_says(scene.restore("--in-place", "--disk", raw.id), 5, f"does not have disk .*{raw.id}.*--new-disk")

    (domain,) = scene.engine.storage_domains_service().list()
    scene.engine.disks_service().add(
        types.Disk(
            id=raw.id,
            name="small",
            format=types.DiskFormat.COW,
            provisioned_size=MiB,
            storage_domains=[types.StorageDomain(id=domain.id)],
        )
    )
    scene.wait_for_disk(raw.id)
    interface = types.DiskInterface.VIRTIO_SCSI
    attachments.add(types.DiskAttachment(disk=types.Disk(id=raw.id), interface=interface, active=True))
    scene.assert_says(scene.restore("--in-place", "--disk", raw.id), 6, "'small' has 1048576 bytes, smaller than")
