"""
A VM that is down, with recovery points of random data, and an operator who restores them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovirtsdk4 import types

from tests.e2e.bad_days import scene
from tests.e2e.bad_days.scene import FINAL_PHASES, Held
from tests.e2e.bad_days.valve import Valve
from tests.lab import processes, witness
from tests.lab.lab import MiB
from tests.lab.operator import Result

# How much of what a restore writes a valve lets pass.
PASSED = 6 * MiB


class Scene(scene.Scene):
    """As for backups; all is about its newest recovery point, whose first disk holds 16 MiB of random data."""

    def restore(self, *options: str, config: Sequence[str] = ()) -> Result:
        """Run `blockferry restore` of the newest point, whatever comes of it."""
        return self.operator.run(*config, "restore", self.vm.name, "latest", *options)

    def restored(self, *options: str) -> dict[str, Any]:
        """Restore the newest point into oVirt, which must succeed; return what was done."""
        document: dict[str, Any] = self.operator.do("restore", self.vm.name, "latest", *options)
        return document

    @contextlib.contextmanager
    def held_restore(self, *options: str) -> Iterator[Held]:
        """Start a restore, and hold it in the middle of the first disk that it writes."""
        with contextlib.ExitStack() as stack:
            valves = stack.enter_context(self._write_valves())
            process = self.operator.start("restore", self.vm.name, "latest", *options)
            held = stack.enter_context(Held(process, valves))
            held.wait_until(lambda: any(valve.is_shut for valve in valves))
            yield held

    @contextlib.contextmanager
    def _write_valves(self) -> Iterator[list[Valve]]:
        """Put a valve before the server of each upload."""
        valves: list[Valve] = []

        def put(ticket: dict[str, Any]) -> None:
            if ticket["ops"] == ["write"]:
                path = self.socket()
                server = re.sub("^nbd:unix:|:exportname=.*", "", ticket["url"])
                valves.append(Valve(path, Path(server), PASSED, written=True))
                ticket["url"] = ticket["url"].replace(server, str(path))

        self.on_ticket = put
        try:
            yield valves
        finally:
            self.on_ticket = None
            for valve in valves:
                valve.close()

    # What is on disks.

    def images(self, directory: Path) -> dict[str, Path]:
        """Restore the newest point to files, which is another way than the one under test; by the disks' ids."""
        restored = self.operator.do("restore", self.vm.name, "latest", "--to", str(directory), "--force")
        return {image["disk_id"]: Path(image["path"]) for image in restored}

    def assert_holds(self, disk_id: str, image: Path) -> None:
        """A disk in the engine, which nobody writes to, holds what is in a raw file."""
        copy = self.operator.directory / "copy.raw"
        volume = self.volume(disk_id)
        processes.run("qemu-img", "convert", "-f", self._format(volume), "-O", "raw", volume, copy)
        assert witness.equal(copy, image), f"disk {disk_id} does not hold what is in {image.name}"
        copy.unlink()

    def volume(self, disk_id: str) -> Path:
        """The one volume of a disk."""
        found = self.engine.disks_service().disk_service(disk_id).get()
        return self.lab.host.volume_path(disk_id, found.image_id)

    def qemu_io(self, *commands: str, number: int = 0) -> None:
        """Change a disk of the VM, which is down."""
        disk = self.vm.disks[number]
        words = [word for command in commands for word in ("-c", command)]
        processes.run("qemu-io", "--discard=unmap", "-f", disk.format, *words, disk.path)

    # What is in the engine.

    def transfers(self) -> list[types.ImageTransfer]:
        """All that have not ended, of whatever disk."""
        found = self.engine.image_transfers_service().list()
        return [transfer for transfer in found if transfer.phase.value not in FINAL_PHASES]

    def macs(self, vm_id: str) -> set[str]:
        """The MAC addresses of a VM's network interfaces."""
        return {nic.mac.address for nic in self.engine.vms_service().vm_service(vm_id).nics_service().list()}

    def disk_ids(self) -> set[str]:
        return {disk.id for disk in self.engine.disks_service().list()}

    def wait_for_disk(self, disk_id: str) -> None:
        service = self.engine.disks_service().disk_service(disk_id)
        processes.wait_for(f"status ok of disk {disk_id}", lambda: service.get().status == types.DiskStatus.OK, 20)

    def remove_disks(self, result: dict[str, Any]) -> None:
        """Remove what a restore has made."""
        if result["vm_id"] is not None:
            self.engine.vms_service().vm_service(result["vm_id"]).remove(detach_only=True)
        for disk in result["disks"]:
            self.engine.disks_service().disk_service(disk["disk_id"]).remove()

    @staticmethod
    def _format(volume: Path) -> str:
        described = json.loads(processes.run("qemu-img", "info", "--output=json", volume))
        return str(described["format"])
