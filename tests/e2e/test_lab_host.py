"""
The lab's host and guest, by themselves: what every other test of the lab takes for granted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NewVm
from tests.lab import cache, errors, exports, processes, reaper, storage
from tests.lab.backups import BackupDisk, CheckpointSpec, Mode
from tests.lab.domains import DiskSpec
from tests.lab.host import Host
from tests.lab.lab import KiB, Lab, MiB, NewDisk, Vm

pytestmark = pytest.mark.lab

SMALL = (NewDisk(32 * MiB), NewDisk(16 * MiB + 5 * 512, bus="virtio-scsi"), NewDisk(16 * MiB, format="raw"))
GRAIN = 64 * KiB


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def host(lab: Lab) -> Host:
    return lab.host


@pytest.fixture
def small_vm(new_vm: NewVm) -> Vm:
    return new_vm(disks=SMALL)


@pytest.fixture
def transfer(host: Host) -> Iterator[str]:
    """The id of a transfer whose NBD server ends with the test."""
    transfer_id = new_id()
    yield transfer_id
    host.stop_nbd(transfer_id)


class LiveBackup:
    """A live backup of all disks of a VM."""

    def __init__(self, host: Host, vm: Vm, since: str | None = None) -> None:
        self.id, self.checkpoint = new_id(), new_id()
        self._host, self._vm = host, vm
        disks = []
        for disk in vm.disks:
            scratch = host.volume_path(disk.id, f"scratch-{self.id}")
            host.create_volume(scratch, "qcow2", disk.size)
            if disk.format == "raw":
                disks.append(BackupDisk(disk.id, checkpoint=False, mode="full", scratch=scratch))
            else:
                mode: Mode = "incremental" if since else "full"
                disks.append(BackupDisk(disk.id, checkpoint=True, mode=mode, scratch=scratch))
        self.urls = host.start_backup(
            vm.id, self.id, disks, from_checkpoint=since, to_checkpoint=self.checkpoint, require_consistency=True
        )

    def stop(self) -> None:
        self._host.stop_backup(self._vm.id, self.id)


def write_block(vm: Vm, file: str) -> None:
    """Have the guest write 64 KiB of new random bytes to a file, on the disk."""
    vm.guest.run(f"dd if=/dev/urandom of={file} bs=64k count=1 conv=notrunc; sync {file}")


def dirty_bytes(url: str) -> int:
    return sum(entry.length for entry in exports.dirty(url))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_digest(url: str, directory: Path) -> str:
    copy = directory / new_id()
    exports.copy(url, copy)
    try:
        return digest(copy)
    finally:
        copy.unlink()


def qcow2_disks(vm: Vm) -> list[DiskSpec]:
    return [disk for disk in vm.disks if disk.format == "qcow2"]


def test_default_vm_has_file_systems_on_qcow2_and_raw_disks(vm: Vm) -> None:
    mounts = vm.guest.run("mount")
    assert [(disk.format, disk.target) for disk in vm.disks] == [("qcow2", "vda"), ("qcow2", "sda"), ("raw", "vdb")]
    for disk in vm.disks:
        assert f"/dev/{disk.target} on /mnt/{disk.target} type ext4" in mounts
        sectors = vm.guest.run(f"cat /sys/block/{disk.target}/size")
        assert int(sectors) * 512 == disk.size
    assert vm.disks[1].size % GRAIN


def test_guest_command_that_fails_says_why(small_vm: Vm) -> None:
    with pytest.raises(errors.LabError, match=r"/nowhere.*No such file"):
        small_vm.guest.run("cat /nowhere")


def test_power_button_leaves_clean_file_systems(small_vm: Vm, host: Host, tmp_path: Path) -> None:
    small_vm.guest.write_file("/mnt/vda/note", b"kept")
    small_vm.power_off()

    raw = tmp_path / "vda.raw"
    processes.run("qemu-img", "convert", "-O", "raw", small_vm.disks[0].path, raw)
    assert "needs_recovery" not in processes.run("dumpe2fs", "-h", raw)
    assert processes.run("debugfs", "-R", "cat /note", raw) == "kept"


def test_trim_gives_space_back(small_vm: Vm, host: Host) -> None:
    disk = small_vm.disks[2]
    small_vm.guest.run(f"dd if=/dev/urandom of=/mnt/{disk.target}/big bs=1M count=8; sync")
    full = host.volume(disk.path).allocated
    small_vm.guest.run(f"rm /mnt/{disk.target}/big")
    small_vm.guest.trim()
    assert host.volume(disk.path).allocated <= full - 7 * MiB


def test_live_backup_is_a_point_in_time_of_a_frozen_guest(small_vm: Vm, host: Host, tmp_path: Path) -> None:
    write_block(small_vm, "/mnt/vda/a")
    backup = LiveBackup(host, small_vm)
    assert small_vm.guest.run("cat /run/freezes") == "freeze\nthaw\n"
    disk = small_vm.disks[0]
    assert backup.urls[disk.id].endswith(f"run/vdsm/backup/{backup.id}:exportname=vda")
    assert exports.contexts(backup.urls[disk.id]) == ["base:allocation"]

    before = export_digest(backup.urls[disk.id], tmp_path)
    write_block(small_vm, "/mnt/vda/a")
    assert export_digest(backup.urls[disk.id], tmp_path) == before

    backup.stop()
    with pytest.raises(errors.HostError) as refused:
        host.stop_backup(small_vm.id, backup.id)
    assert refused.value.code == errors.NO_SUCH_BACKUP


def test_incremental_live_backup_exports_what_changed(small_vm: Vm, host: Host) -> None:
    write_block(small_vm, "/mnt/vda/a")
    full = LiveBackup(host, small_vm)
    full.stop()
    write_block(small_vm, "/mnt/vda/a")
    incremental = LiveBackup(host, small_vm, since=full.checkpoint)

    vda, sda, raw = small_vm.disks
    assert "qemu:dirty-bitmap:backup-vda" in exports.contexts(incremental.urls[vda.id])
    assert "qemu:dirty-bitmap:backup-sda" in exports.contexts(incremental.urls[sda.id])
    assert exports.contexts(incremental.urls[raw.id]) == ["base:allocation"]
    # The block (not aligned to a grain), and the file system's own.
    assert GRAIN <= dirty_bytes(incremental.urls[vda.id]) <= 12 * GRAIN
    incremental.stop()

    assert host.list_checkpoints(small_vm.id) == [full.checkpoint, incremental.checkpoint]
    small_vm.power_off()
    for disk in qcow2_disks(small_vm):
        bitmaps = host.volume(disk.path).bitmaps
        assert bitmaps == {full.checkpoint: {"auto"}, incremental.checkpoint: {"auto"}}


def test_checkpoint_is_redefined_after_a_restart(small_vm: Vm, host: Host) -> None:
    full = LiveBackup(host, small_vm)
    full.stop()
    small_vm.power_off()
    small_vm.start()
    assert host.list_checkpoints(small_vm.id) == []

    disk_ids = tuple(disk.id for disk in qcow2_disks(small_vm))
    for _ in range(2):  # once more is no error
        host.redefine_checkpoint(small_vm.id, CheckpointSpec(full.checkpoint, int(time.time()), disk_ids))
    assert host.list_checkpoints(small_vm.id) == [full.checkpoint]
    LiveBackup(host, small_vm, since=full.checkpoint).stop()
    host.delete_checkpoint(small_vm.id, full.checkpoint)
    assert full.checkpoint not in host.list_checkpoints(small_vm.id)
    host.delete_checkpoint(small_vm.id, full.checkpoint)


def test_bitmap_of_a_killed_vm_is_refused(small_vm: Vm, host: Host, transfer: str) -> None:
    full = LiveBackup(host, small_vm)
    full.stop()
    small_vm.power_off()  # stores the bitmaps
    small_vm.start()
    host.kill_vm(small_vm.id)
    assert host.vm_state(small_vm.id) == "down"

    disk = small_vm.disks[0]
    assert host.volume(disk.path).bitmaps == {full.checkpoint: {"auto", "in-use"}}
    with pytest.raises(errors.HostError, match="Bitmap in use"):
        host.start_nbd(transfer, disk.path, disk.format, bitmap=full.checkpoint)

    small_vm.start()
    with pytest.raises(errors.HostError, match="checkpoint inconsistent") as refused:
        host.redefine_checkpoint(small_vm.id, CheckpointSpec(full.checkpoint, 0, (disk.id,)))
    assert refused.value.code == errors.INCONSISTENT_CHECKPOINT


def test_hybrid_backup_of_a_running_vm(small_vm: Vm, host: Host, transfer: str, tmp_path: Path) -> None:
    full = LiveBackup(host, small_vm)
    full.stop()
    write_block(small_vm, "/mnt/vda/a")

    disks = {disk.id: disk for disk in small_vm.disks}
    snapshot = new_id()
    frozen = host.create_snapshot(small_vm.id, {disk_id: new_id() for disk_id in disks}, snapshot)
    assert frozen == {disk_id: disk.path for disk_id, disk in disks.items()}
    vda = small_vm.disks[0]
    assert vda.path != frozen[vda.id]
    assert vda.volume_id == vda.path.name

    url = host.start_nbd(transfer, frozen[vda.id], "qcow2", bitmap=full.checkpoint)
    assert f"qemu:dirty-bitmap:{full.checkpoint}" in exports.contexts(url)
    before, changed = export_digest(url, tmp_path), exports.dirty(url)
    assert GRAIN <= sum(entry.length for entry in changed) <= 12 * GRAIN
    write_block(small_vm, "/mnt/vda/b")
    assert (export_digest(url, tmp_path), exports.dirty(url)) == (before, changed)
    host.stop_nbd(transfer)

    host.merge_snapshot(small_vm.id, list(disks))
    assert {disk.id: disk for disk in small_vm.disks} == disks
    assert not vda.path.exists()
    write_block(small_vm, "/mnt/vda/c")  # still writable
    small_vm.power_off()
    assert host.volume(disks[vda.id].path).bitmaps == {full.checkpoint: {"auto"}, snapshot: {"auto"}}
    url = host.start_nbd(transfer, disks[vda.id].path, "qcow2", bitmap=snapshot)
    assert GRAIN <= dirty_bytes(url) < 2 * MiB


def test_hybrid_backup_survives_that_the_vm_starts_and_stops(stopped_vm: Vm, host: Host, transfer: str) -> None:
    before = {disk.id: disk.path for disk in stopped_vm.disks}
    first, second = new_id(), new_id()
    for disk in qcow2_disks(stopped_vm):
        host.add_bitmap(disk.path, first)
    host.create_snapshot(stopped_vm.id, {disk_id: new_id() for disk_id in before}, second)
    stopped_vm.start()
    stopped_vm.guest.write_file("/mnt/vda/note", b"while the backup was open")
    stopped_vm.guest.write_file("/mnt/vdb/note", b"on the raw disk too")
    stopped_vm.power_off()
    host.merge_snapshot(stopped_vm.id, list(before))

    assert {disk.id: disk.path for disk in stopped_vm.disks} == before
    path = stopped_vm.disks[0].path
    assert host.volume(path).bitmaps == {first: {"auto"}, second: {"auto"}}
    for bitmap in (first, second):
        url = host.start_nbd(transfer, path, "qcow2", bitmap=bitmap)
        assert dirty_bytes(url) >= GRAIN
        host.stop_nbd(transfer)
    stopped_vm.start()
    assert stopped_vm.guest.run("cat /mnt/vda/note") == "while the backup was open"
    assert stopped_vm.guest.run("cat /mnt/vdb/note") == "on the raw disk too"


def test_bitmap_of_several_layers_is_served_as_one(host: Host, transfer: str, tmp_path: Path) -> None:
    disk_id, bitmap = new_id(), new_id()
    base, top = (host.volume_path(disk_id, name) for name in ("base", "top"))
    host.create_volume(base, "qcow2", 10 * MiB)
    host.add_bitmap(base, bitmap)
    processes.run("qemu-io", "-c", "write -P 1 1M 64k", base)
    host.create_volume(top, "qcow2", 10 * MiB, backing=base)
    with pytest.raises(errors.HostError, match="Bitmap is missing in"):
        host.start_nbd(transfer, top, "qcow2", bitmap=bitmap)
    host.add_bitmap(top, bitmap)
    processes.run("qemu-io", "-c", "write -P 2 5M 64k", top)

    url = host.start_nbd(transfer, top, "qcow2", bitmap=bitmap)
    assert [(entry.start, entry.length) for entry in exports.dirty(url)] == [(1 * MiB, GRAIN), (5 * MiB, GRAIN)]
    assert not list((host.directory / "transient_disks").iterdir())


def test_nbd_refuses_bitmaps_that_cannot_be_served(stopped_vm: Vm, host: Host, transfer: str) -> None:
    disk, _, raw = stopped_vm.disks
    with pytest.raises(errors.HostError, match=f"Bitmap does not exist in {disk.path}") as refused:
        host.start_nbd(transfer, disk.path, "qcow2", bitmap=new_id())
    assert refused.value.code == errors.BITMAP_DOES_NOT_EXIST
    with pytest.raises(errors.HostError, match="RAW volume"):
        host.start_nbd(transfer, raw.path, "raw", bitmap=new_id())


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_writable_nbd(host: Host, transfer: str, tmp_path: Path, format: storage.Format) -> None:
    path = host.volume_path(new_id(), new_id())
    host.create_volume(path, format, 2 * MiB)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (2 * MiB // 256))
    url = host.start_nbd(transfer, path, format, readonly=False)
    processes.run("nbdcopy", "--flush", source, exports.nbd_uri(url))
    host.stop_nbd(transfer)
    assert export_digest(host.start_nbd(transfer, path, format), tmp_path) == digest(source)


def test_pause_and_resume(small_vm: Vm, host: Host) -> None:
    host.pause_vm(small_vm.id)
    assert host.vm_state(small_vm.id) == "paused"
    host.resume_vm(small_vm.id)
    assert host.vm_state(small_vm.id) == "up"
    assert small_vm.guest.answers()


def test_ticket_downloads_over_https_until_it_is_removed(
    stopped_vm: Vm, lab: Lab, transfer: str, tmp_path: Path
) -> None:
    host, disk = lab.host, stopped_vm.disks[1]
    url = host.start_nbd(transfer, disk.path, disk.format)
    ticket_id = new_id()
    ticket = {"uuid": ticket_id, "timeout": 300, "inactivity_timeout": 60, "size": disk.size, "url": url}
    ticket |= {"transfer_id": transfer, "sparse": True, "dirty": False, "ops": ["read"]}
    host.add_ticket(ticket)
    seen = host.get_ticket(ticket_id)
    assert seen is not None
    assert seen["url"] == url

    image = f"https://{host.address}:{host.imageio_port}/images/{ticket_id}"
    tls = ssl.create_default_context(cafile=str(lab.ca))
    with urllib.request.urlopen(image, context=tls) as response:
        assert hashlib.sha256(response.read()).hexdigest() == export_digest(url, tmp_path)

    host.remove_ticket(ticket_id)
    host.remove_ticket(ticket_id)
    assert host.get_ticket(ticket_id) is None
    host.add_ticket(ticket)
    host.restart_imageio()
    assert host.get_ticket(ticket_id) is None


def test_root_logs_in_over_ssh_and_finds_an_old_python(host: Host) -> None:
    known = processes.run("ssh-keyscan", "-p", str(host.ssh_port), "-t", "ed25519", host.address)
    assert host.ssh_public_key in known
    program = "import ssl, zipfile, ctypes, sys; print(sys.version_info[:2])"
    assert processes.run(*host.ssh_command(f'id -u; {host.python} -c "{program}"')) == "0\n(3, 9)\n"


def test_removed_vm_leaves_no_volumes(lab: Lab) -> None:
    vm = lab.new_vm(disks=SMALL[:1], start=False)
    path = vm.disks[0].path
    lab.host.remove_vm(vm.id)
    assert not path.parent.exists()
    with pytest.raises(errors.HostError) as refused:
        lab.host.vm_state(vm.id)
    assert refused.value.code == errors.NO_SUCH_VM


OWNER = """
import signal, subprocess
from tests.lab.lab import Lab, NewDisk
with Lab.up() as lab:
    vm = lab.new_vm(disks=[NewDisk(8 << 20)], start=False)
    lab.host.start_vm(vm.id)
    subprocess.Popen(lab.host.ssh_command("sleep 1000 & setsid sleep 1000 & echo started; wait"))
    print(lab.directory, flush=True)
    signal.pause()
"""


@pytest.fixture
def other_lab() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The owner and the directory of a second lab, with a VM and an SSH session."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    try:
        lines = {owner.stdout.readline().strip(), owner.stdout.readline().strip()}
        (directory,) = lines - {"started"}
        yield owner, Path(directory)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def processes_of(directory: Path) -> dict[int, str]:
    """The command lines that name a lab, by process id: another look than the reaper's own."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in command:
                found[int(entry.name)] = command
    return found


def test_reaper_clears_up_after_a_killed_owner(other_lab: tuple[subprocess.Popen[str], Path]) -> None:
    owner, directory = other_lab
    assert any("qemu-system" in command for command in processes_of(directory).values())
    owner.send_signal(signal.SIGKILL)
    processes.wait_for("reaping", lambda: not directory.exists(), timeout=30)
    processes.wait_for("end of the reaper", lambda: not processes_of(directory))


def test_sweep_clears_up_when_the_reaper_was_killed_too(
    other_lab: tuple[subprocess.Popen[str], Path],
) -> None:
    owner, directory = other_lab
    (keeper,) = (pid for pid, command in processes_of(directory).items() if "tests.lab.reaper" in command)
    reaper.sweep()
    assert directory.exists(), "it has an owner"
    os.kill(keeper, signal.SIGKILL)
    owner.kill()
    owner.wait()
    reaper.sweep()
    # Another session of tests may have begun to sweep it away just before: then ours leaves it to that one.
    processes.wait_for("the lab to be gone", lambda: not directory.exists(), 20)
    assert not processes_of(directory)


def test_lab_for_playing() -> None:
    directory = reaper.ROOT / f"{reaper.PREFIX}{new_id()[:8]}"
    command = (sys.executable, "-m", "tests.lab")
    with pytest.raises(errors.LabError, match="No lab is up"):
        processes.run(*command, "status", "--directory", directory)
    try:
        reach = processes.run(*command, "up", "--directory", directory)
        assert f"{directory}/config.toml" in reach
        assert "db01" in processes.run(*command, "status", "--directory", directory)
        with pytest.raises(errors.LabError, match="up already"):
            processes.run(*command, "up", "--directory", directory)
    finally:
        processes.run(*command, "down", "--directory", directory)
    assert not list(reaper.ROOT.glob(f"{directory.name}*"))
    processes.wait_for("end of the supervisor", lambda: not processes_of(directory))


def test_cache_builds_once_and_keeps_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKFERRY_LAB_CACHE", str(tmp_path))

    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise errors.LabError("broken")

    def build(directory: Path) -> None:
        (directory / "whole").touch()

    with pytest.raises(errors.LabError):
        cache.entry("thing", [b"input"], fail)
    entry = cache.entry("thing", [b"input"], build)
    assert [path.name for path in entry.iterdir()] == ["whole"]
    assert cache.entry("thing", [b"input"], fail) == entry
    assert cache.entry("thing", [b"other"], build) != entry
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == ["thing-", "thing-", "thing."]
