"""
The Linux in a VM, commanded through its guest agent.
"""

from __future__ import annotations

import base64
import json
import shlex
import time

import libvirt
import libvirt_qemu

from tests.lab import processes
from tests.lab.domains import Domains
from tests.lab.errors import LabError


class Guest:
    """
    The guest of a VM.  Every disk is a file system at /mnt/<target>, such as /mnt/vda.
    """

    def __init__(self, domains: Domains, vm_id: str) -> None:
        self._domains = domains
        self._vm_id = vm_id

    def wait_until_up(self, timeout: float = 60) -> None:
        """Wait until the guest has mounted its disks and takes commands.  timeout: seconds."""
        processes.wait_for(f"boot of VM {self._vm_id}", self.answers, timeout)

    def answers(self) -> bool:
        """Whether the guest's agent answers now."""
        try:
            self._agent("guest-ping")
        except LabError:
            return False
        return True

    def run(self, command: str, timeout: float = 60) -> str:
        """
        Run a shell command in the guest and return what it printed.

        timeout: seconds.  Raises LabError with its error text when it fails.
        """
        return self._execute(command, b"", timeout)

    def write_file(self, path: str, content: bytes) -> None:
        """Write a file and have it on the disk."""
        name = shlex.quote(path)
        self._execute(f"cat >{name} && sync", content, timeout=60)

    def sync(self) -> None:
        """Have everything that was written on the disks."""
        self.run("sync")

    def trim(self) -> None:
        """Give the unused space of every file system back to the host."""
        self.run("sync; for mount in /mnt/*; do fstrim $mount || exit; done")

    def _execute(self, command: str, input: bytes, timeout: float) -> str:
        started = self._agent(
            "guest-exec",
            {
                "path": "/bin/sh",
                "arg": ["-c", command],
                "input-data": base64.b64encode(input).decode(),
                "capture-output": True,
            },
        )
        deadline = time.monotonic() + timeout
        pause = 0.01
        while not (status := self._agent("guest-exec-status", started))["exited"]:
            if time.monotonic() > deadline:
                raise LabError(f"In the guest, {command!r} took longer than {timeout} seconds")
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        if status.get("exitcode") != 0:
            text = _decode(status.get("err-data"))
            raise LabError(f"In the guest, {command!r} failed ({status.get('exitcode')}): {text}")
        return _decode(status.get("out-data"))

    def _agent(self, command: str, arguments: dict[str, object] | None = None) -> dict[str, object]:
        request = json.dumps({"execute": command, "arguments": arguments or {}})
        domain = self._domains.running(self._vm_id)
        try:
            reply = libvirt_qemu.qemuAgentCommand(domain, request, 10, 0)
        except libvirt.libvirtError as error:
            raise LabError(f"The guest of VM {self._vm_id} does not answer: {error}") from error
        result: dict[str, object] = json.loads(reply)["return"]
        return result


def _decode(data: object) -> str:
    return base64.b64decode(str(data or "")).decode(errors="replace")
