"""A full backup of a running VM into a local directory: the whole command, ours beside virtnbdbackup's."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench import stage
from tests.bench.race import Contender, Unavailable
from tests.lab import processes
from tests.lab.lab import Lab, NewDisk, Vm
from tests.lab.operator import Operator

VIRTNBDBACKUP = "virtnbdbackup"
PLAIN = f"{VIRTNBDBACKUP}, not compressed"
COMPRESSED = f"{VIRTNBDBACKUP}, compressed (lz4)"
CONVERT = "qemu-img convert to a file (no backup, nothing checked)"
TIMEOUT = 600.0


def all_of(lab: Lab, kind: str, size: int) -> list[Contender]:
    """Return those that back up a running VM with one disk of `size` bytes of data."""
    vm = _new_vm(lab, kind, size)
    operator = Operator(lab, lab.directory / "bench")
    _allow_clear_text(operator)
    operator.do("agent", "deploy", lab.host.name)
    return [
        Contender(CONVERT, lambda: _convert(lab, vm)),
        Contender(PLAIN, lambda: _virtnbdbackup(lab, vm)),
        Contender(COMPRESSED, lambda: _virtnbdbackup(lab, vm, "--compress")),
        # virtnbdbackup reads a local socket, without TLS: clear text is like for like.
        Contender("ours, clear text (netcat), not compressed", _ours(operator, vm, "netcat", "none"), 2.5, PLAIN),
        Contender(
            "ours, clear text (netcat), compressed (zstd)", _ours(operator, vm, "netcat", "zstd"), 2.5, COMPRESSED
        ),
        Contender("ours, TLS (grpc), not compressed", _ours(operator, vm, "grpc", "none"), 2.5, PLAIN),
        Contender("ours, TLS (grpc), compressed (zstd)", _ours(operator, vm, "grpc", "zstd"), 2.5, COMPRESSED),
    ]


def _allow_clear_text(operator: Operator) -> None:
    """Have `netcat` go without TLS, which the operator must ask for by name."""
    text = operator.config.read_text()
    port = processes.free_port()
    operator.config.write_text(
        text.replace("[agent]", f'[agent]\nnetcat_ports = "{port}-{port + 5}"\nnetcat_clear_text = true')
    )


def _new_vm(lab: Lab, kind: str, size: int) -> Vm:
    """Make the VM, with a qcow2 disk: virtnbdbackup takes checkpoints of no other."""
    vm = lab.new_vm(disks=[NewDisk(size, ext4=False)], start=False)
    path = vm.disks[0].path
    raw = path.with_suffix(".data")
    stage.DATA[kind](raw, size)
    processes.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
    raw.unlink()
    shutil.chown(path, processes.USER, processes.GROUP)
    vm.start()
    return vm


def _virtnbdbackup(lab: Lab, vm: Vm, *options: str) -> float:
    if shutil.which(VIRTNBDBACKUP) is None:
        raise Unavailable("virtnbdbackup is not installed")
    target = lab.directory / "virtnbdbackup"
    shutil.rmtree(target, ignore_errors=True)
    # It insists on a name and a password for a socket of one's own; libvirt does not ask for them.
    command = [VIRTNBDBACKUP, "-U", lab.host.libvirt_uri, "--user=nobody", "--password=none"]
    command += ["-d", vm.id, "-l", "copy", "--noprogress", "-o", str(target), *options]
    return _timed(command)


def _convert(lab: Lab, vm: Vm) -> float:
    """Copy the disk as it is, beside the running VM: what the storage alone takes."""
    target = lab.directory / "converted.raw"
    took = _timed(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", vm.disks[0].path, target])
    target.unlink()
    return took


def _ours(operator: Operator, vm: Vm, transport: str, compression: str) -> Callable[[], float]:
    """Return what backs up into a new repository, so that nothing is there already."""

    def run() -> float:
        shutil.rmtree(operator.directory / "repository", ignore_errors=True)
        operator.do("repository", "init", "--compression", compression)
        began = time.monotonic()
        operator.do("backup", vm.name, "--mode", "live", "--fresh", "--transport", transport, "--no-fallback")
        return time.monotonic() - began

    return run


def _timed(command: Sequence[str | Path]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if done.returncode:
        raise Unavailable(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return time.monotonic() - began
