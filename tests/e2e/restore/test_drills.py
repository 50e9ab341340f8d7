"""A VM is destroyed, and its recovery point boots before anything of it is copied."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import boot_disk, processes
from tests.lab.lab import GUEST_MEMORY, Lab, MiB, NewDisk
from tests.lab.operator import Operator

pytestmark = pytest.mark.lab

LETTER = b"Everybody wants restores.\n"
# At boot the guest counts its starts on the disk, and says on the console what the old files hold.
SCRIPT = b"""echo boot >>/mnt/vdb/boots; sync
echo "sign of life: $(md5sum </mnt/vdb/letter) after $(wc -l </mnt/vdb/boots) boots"
"""


@pytest.fixture(scope="module")
def lost(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator of a VM "db01", which boots from its own first disk, and which is destroyed after its backup."""
    operator = Operator(lab, tmp_path_factory.mktemp("operator"))
    disks = (NewDisk(boot_disk.SIZE, content=boot_disk.build("vdb")), NewDisk(24 * MiB))
    vm = lab.new_vm("db01", disks)
    vm.guest.write_file("/mnt/vdb/letter", LETTER)
    vm.guest.write_file("/mnt/vdb/rc.local", SCRIPT)
    operator.do("repository", "init")
    operator.do("backup", "db01", "--mode", "live", "--transport", "imageio")
    lab.host.remove_vm(vm.id)
    yield operator


@pytest.fixture(scope="module")
def sign(lost: Operator, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the guest says when it has found its old files, at its first boot since the backup."""
    path = tmp_path_factory.mktemp("letter") / "letter"
    path.write_bytes(LETTER)
    return f"sign of life: {processes.run('md5sum', path).split()[0]}  - after 1 boots"


def test_the_served_point_of_a_destroyed_vm_boots(lost: Operator, sign: str, tmp_path: Path) -> None:
    """
    Done when: a served point boots. A QEMU that knows nothing of ours has the disks by the URIs that
    `blockferry serve --overlay` says; a second boot from the same server finds what the first one wrote. That the point
    stays as it was, the next test sees.
    """
    with served(lost, "--overlay", str(tmp_path)) as uris:
        say = sign.replace("after 1 boots", "after {} boots")
        for count in (1, 2):
            assert say.format(count) in booted(uris, tmp_path / f"console-{count}", say.format(count))


def test_the_point_of_a_destroyed_vm_boots_in_a_drill(lost: Operator, sign: str) -> None:
    """
    Proves that `verify --boot` boots the guest from its own kernel on the served disk, by BIOS and by UEFI, that the
    guest reads its old files there, and that its agent answers. Each time it is the first boot: what a drill, or a
    client of `serve`, writes is gone with it.
    """
    for firmware in ("bios", "uefi"):
        options = ("--expect", sign, "--guest-agent", "--firmware", firmware, "--memory", "256")
        drill = lost.do("verify", "db01", "latest", "--boot", *options)
        assert drill["alive"]
        assert drill["firmware"] == firmware
        assert sign in Path(drill["log"]).read_text(errors="replace")


def test_a_drill_without_a_sign_of_life_fails(lost: Operator) -> None:
    """With its own exit code, and with what is needed to find out why."""
    options = ("--expect", "login:", "--timeout", "1", "--memory", "256")
    result = lost.run("verify", "db01", "latest", "--boot", *options)
    assert result.status == 11, result.errors
    assert "'login:' on the console did not come" in result.errors
    assert "drills" in result.errors, "where the console is"


@contextlib.contextmanager
def served(operator: Operator, *options: str) -> Iterator[list[str]]:
    """Serve the newest point; the disks' URIs, in their order."""
    with operator.start("serve", "db01", "latest", *options, "--json", "--quiet") as server:
        try:
            assert server.stdout is not None
            yield [export["uri"] for export in json.loads(server.stdout.readline())]
        finally:
            server.terminate()
            assert server.wait(30) == 0


def booted(uris: list[str], console: Path, text: str) -> str:
    """Boot the disks, and return what came on the console when the text, and what was written, are there."""
    words = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg", "-no-reboot"]
    words += ["-m", f"{GUEST_MEMORY // MiB}M", "-serial", f"file:{console}"]
    for uri in uris:
        words += ["-drive", f"if=virtio,format=raw,file={uri}"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as qemu:
        try:
            processes.wait_for(
                f"'{text}'", lambda: console.exists() and text in console.read_text(errors="replace"), 60
            )
            return console.read_text(errors="replace")
        finally:
            qemu.terminate()
            qemu.wait(30)
