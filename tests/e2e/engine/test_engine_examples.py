"""
Clients that nobody here wrote, run unchanged against the engine simulator: the examples that the SDK is published with.

What they download is compared with what nbdcopy reads from an export of the same backup.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import ovirtsdk4
import pytest
from ovirtsdk4 import types

from tests.e2e.engine.conftest import wait_for
from tests.lab import cache, certificates, exports
from tests.lab.engine import EngineSimulator
from tests.lab.lab import MiB, NewDisk, Vm

pytestmark = pytest.mark.lab

SDK = "ovirt-engine-sdk-python"
DISKS = (
    NewDisk(32 * MiB + 3 * 64 * 1024 + 512),
    NewDisk(16 * MiB, format="raw", bus="virtio-scsi"),
)


def fetch_examples() -> Path:
    """The directory of the examples, from the source distribution of the installed SDK."""
    version = importlib.metadata.version(SDK)

    def build(directory: Path) -> None:
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
                *("--no-deps", "--no-build-isolation", "--no-binary", SDK),
                *("--dest", directory, f"{SDK}=={version}"),
            ],
            check=True,
        )
        (archive,) = directory.glob("*.tar.gz")
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", directory], check=True)

    (examples,) = cache.entry("sdk-examples", [version.encode()], build).glob("*/examples")
    return examples


@dataclasses.dataclass(frozen=True)
class Examples:
    """
    Runs examples as a user would: with a configuration in their home. home: their working directory as well.
    """

    engine: EngineSimulator
    home: Path
    cafile: Path

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        (self.home / ".config").mkdir(exist_ok=True)
        (self.home / ".config/ovirt.conf").write_text(
            "[lab]\n"
            f"engine_url = {self.engine.url.removesuffix('/ovirt-engine/api')}\n"
            f"username = {self.engine.username}\n"
            f"password = {self.engine.password}\n"
            f"cafile = {self.cafile}\n"
        )
        return subprocess.Popen(
            [sys.executable, fetch_examples() / name, "-c", "lab", *arguments],
            cwd=self.home,
            env=os.environ | {"HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> str:
        """What it printed. Fails when it failed."""
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, output
        return output

    def run(self, name: str, *arguments: str) -> str:
        return self.finish(self.start(name, *arguments))


@pytest.fixture
def examples(lab, engine, tmp_path) -> Examples:
    return Examples(engine, tmp_path, lab.ca)


@pytest.fixture
def older_examples(lab, tmp_path) -> Iterator[Examples]:
    """An engine whose cluster has level 4.6, on the same host: it backs up live and cold."""
    (tmp_path / "ca").mkdir()
    ca = certificates.Authority(tmp_path / "ca")
    both = tmp_path / "both.pem"
    both.write_bytes(ca.pem.read_bytes() + lab.ca.read_bytes())
    engine = EngineSimulator(tmp_path, ca, [lab.host], "admin@internal", "secret%", cluster_level="4.6")
    engine.start()
    yield Examples(engine, tmp_path, both)
    engine.stop()


@pytest.fixture
def example_vm(new_vm) -> Vm:
    return new_vm(disks=DISKS)


def write(vm: Vm, seed: str) -> None:
    """Change files on both disks."""
    for target in (disk.target for disk in vm.disks):
        vm.guest.run(
            f"yes {seed} | head -c 700000 >/mnt/{target}/{seed}; rm -f /mnt/{target}/old; touch /mnt/{target}/old"
        )
    vm.guest.sync()


def back_up(examples: Examples, lab, vm: Vm, *arguments: str) -> str:
    """
    Run the example, and read every disk of its backup independently meanwhile. A running guest writes on.

    Returns the id of the new checkpoint. What was read is in <disk id>.raw, what the example says in its output.
    """
    connection = ovirtsdk4.Connection(
        url=examples.engine.url,
        username=examples.engine.username,
        password=examples.engine.password,
        ca_file=str(examples.cafile),
        timeout=60,
    )
    backups = connection.system_service().vms_service().vm_service(vm.id).backups_service()
    finished = {backup.id for backup in backups.list()}
    frozen = {disk.id: disk for disk in vm.disks}
    process = examples.start("backup_vm.py", *arguments, vm.id)

    def ready():
        assert process.poll() is None, examples.finish(process)
        return [
            backup for backup in backups.list() if backup.id not in finished and backup.phase == types.BackupPhase.READY
        ]

    wait_for(ready)
    (backup,) = ready()
    if lab.host.vm_state(vm.id) == "up":
        write(vm, "later")
    for disk in frozen.values():
        copy = examples.home / f"{disk.id}.raw"
        copy.unlink(missing_ok=True)
        if backup.host is not None:
            url = f"nbd:unix:{lab.host.directory}/run/vdsm/backup/{backup.id}:exportname={disk.target}"
            exports.copy(url, copy)
        else:
            server = str(uuid.uuid4())
            exports.copy(lab.host.start_nbd(server, disk.path, disk.format), copy)
            lab.host.stop_nbd(server)
    examples.finish(process)
    connection.close()
    return backup.to_checkpoint_id


def assert_downloaded(examples: Examples, vm: Vm, checkpoint_id: str) -> dict[str, str]:
    """Every disk's file equals what was read independently. Returns each disk's mode as the file's name tells it."""
    modes = {}
    for disk in vm.disks:
        (path,) = examples.home.glob(f"*.{checkpoint_id}.{disk.id}.*.qcow2")
        subprocess.run(
            ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, examples.home / f"{disk.id}.raw"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        modes[disk.format] = path.name.split(".")[3]
    return modes


def full_then_incremental_then_powered_off(examples: Examples, lab, vm: Vm) -> None:
    write(vm, "one")
    first = back_up(examples, lab, vm, "full")
    assert assert_downloaded(examples, vm, first) == {"qcow2": "full", "raw": "full"}

    write(vm, "two")
    second = back_up(examples, lab, vm, "incremental", "--from-checkpoint-uuid", first)
    assert assert_downloaded(examples, vm, second) == {"qcow2": "incremental", "raw": "full"}

    write(vm, "three")
    vm.power_off()
    third = back_up(examples, lab, vm, "incremental", "--from-checkpoint-uuid", second)
    assert assert_downloaded(examples, vm, third) == {"qcow2": "incremental", "raw": "full"}


def test_backup_example_hybrid(examples, lab, example_vm) -> None:
    full_then_incremental_then_powered_off(examples, lab, example_vm)


def test_backup_example_live_and_cold(older_examples, lab, example_vm) -> None:
    older_examples.engine.add_vm(example_vm.spec, lab.host)
    full_then_incremental_then_powered_off(older_examples, lab, example_vm)


def test_backup_example_step_by_step(examples, small_vm) -> None:
    started = examples.run("backup_vm.py", "start", "--description", "by hand", small_vm.id)
    backup_id = started.rpartition("Backup '")[2].partition("'")[0]
    # The snapshot of the hybrid backup is the lower one of two layers.
    layers = json.loads(examples.run("list_disk_snapshots.py", small_vm.disks[0].id))
    assert [layer["parent"] for layer in layers] == [None, layers[0]["id"]]
    assert layers[1]["id"] == small_vm.disks[0].volume_id
    examples.run("backup_vm.py", "download", "--backup-uuid", backup_id, small_vm.id)
    examples.run("backup_vm.py", "stop", small_vm.id, backup_id)
    assert len(list(examples.home.glob("*.full.qcow2"))) == len(small_vm.disks)
    listed = examples.run("checkpoints.py", "list", small_vm.id)
    assert '"description": "by hand"' in listed
    checkpoint_id = listed.partition('"id": "')[2].partition('"')[0]
    examples.run("checkpoints.py", "remove", small_vm.id, checkpoint_id)
    assert examples.run("checkpoints.py", "list", small_vm.id).strip() == "[]"


def test_backup_example_reports_the_last_event_of_a_failure(examples, engine, small_vm) -> None:
    engine.faults.stick("ready")
    backup_id = str(uuid.uuid4())
    process = examples.start("backup_vm.py", "full", "--skip-download", "--backup-uuid", backup_id, small_vm.id)
    wait_for(lambda: 68 in engine.events.codes(small_vm.id))
    # What a restart does to it; a restart itself may break off the example's request, which it does not survive.
    engine._backups.fail_unmonitored()
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"Backup {backup_id} has failed, last reported event: {{'code': 10814" in output


def test_download_upload_and_checksum_examples(examples, stopped_disk, lab) -> None:
    disk, source = stopped_disk
    examples.run("download_disk.py", disk.id, "copy.qcow2", "--format", "qcow2")
    subprocess.run(["qemu-img", "compare", examples.home / "copy.qcow2", source], check=True)
    new = str(uuid.uuid4())
    examples.run(
        "upload_disk.py", "--disk-format", "qcow2", "--disk-sparse", "--enable-backup",
        "--disk-id", new, "--sd-name", "data1", "copy.qcow2",
    )  # fmt: skip
    checksums = {examples.run("checksum_disk.py", each).partition('"checksum"')[2] for each in (disk.id, new)}
    assert len(checksums) == 1


@pytest.fixture
def stopped_disk(new_vm, tmp_path):
    """A disk of a VM that is down, with its content in a file."""
    vm = new_vm(disks=DISKS[:1], start=False)
    (disk,) = vm.disks
    source = tmp_path / "source.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk.path, source], check=True)
    return disk, source
