"""
Keep a lab up for playing.

    python -m tests.lab up      start it, with one VM, and say how to reach everything
    python -m tests.lab status  say it again
    python -m tests.lab down    stop it and remove everything

Each takes --directory to tell several labs apart.  The lab runs in a process of its own (`serve`), which ends on SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab import configuration, processes, reaper
from tests.lab.errors import LabError
from tests.lab.lab import Lab

REPOSITORY_ROOT = Path(__file__).parents[2]
STATE = "lab.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__.strip().splitlines()[0])
    parser.add_argument("command", choices=["up", "status", "down", "serve"])
    parser.add_argument("--directory", type=Path, default=reaper.ROOT / f"{reaper.PREFIX}lab")
    arguments = parser.parse_args()
    commands = {"up": up, "status": status, "down": down, "serve": serve}
    try:
        commands[arguments.command](arguments.directory)
    except LabError as error:
        sys.exit(f"lab: {error}")


def up(directory: Path) -> None:
    """Start a supervisor and wait until its lab is complete."""
    reaper.sweep()
    if directory.exists():
        raise LabError(f"A lab is up already in {directory}: see `python -m tests.lab status`")
    with _log(directory).open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "tests.lab", "serve", "--directory", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=REPOSITORY_ROOT,
            start_new_session=True,
        )

    def complete() -> bool:
        if supervisor.poll() is not None:
            raise LabError(f"The lab did not come up:\n{_log(directory).read_text().strip()}")
        return (directory / STATE).exists()

    print("lab: starting (the first time this fetches a kernel and a Python)", flush=True)
    try:
        processes.wait_for("start of the lab", complete, timeout=300)
    except (LabError, KeyboardInterrupt):
        supervisor.terminate()
        supervisor.wait()
        raise
    status(directory)


def status(directory: Path) -> None:
    """Print how to reach everything."""
    for name, value in _state(directory)["reach"].items():
        print(f"{name:15} {value}")


def down(directory: Path) -> None:
    """Stop the supervisor, and with it the lab."""
    reaper.sweep()
    if not directory.exists():
        _log(directory).unlink(missing_ok=True)
        print("lab: not up")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(_state(directory)["supervisor"], signal.SIGTERM)
    processes.wait_for("the end of the lab", lambda: not directory.exists(), timeout=60)
    _log(directory).unlink(missing_ok=True)


def serve(directory: Path) -> None:
    """Be the supervisor: run a lab until SIGTERM."""
    # As an exception it leaves the with statement below, so that the lab is taken down in order.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with Lab.up(directory) as lab:
        vm = lab.new_vm("db01")
        reach = {
            "directory": str(lab.directory),
            "engine": lab.engine.url,
            "CA": str(lab.ca),
            "user": lab.username,
            "password file": str(lab.password_file),
            "VM": f"{vm.name} {vm.id}",
            "host, as root": shlex.join(lab.host.ssh_command()),
            "virsh": f"virsh -c 'qemu+unix:///session?socket={lab.host.libvirt_socket}'",
            "configuration": str(configuration.write(lab)),
        }
        state = lab.directory / f"{STATE}.new"
        state.write_text(json.dumps({"supervisor": os.getpid(), "reach": reach}))
        state.rename(lab.directory / STATE)
        while True:
            signal.pause()


def _log(directory: Path) -> Path:
    """Beside the lab's directory, because it must be there before and after it."""
    return directory.with_suffix(".log")


def _state(directory: Path) -> dict:  # type: ignore[type-arg]
    try:
        return json.loads((directory / STATE).read_text())  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise LabError("No lab is up: start one with `python -m tests.lab up`") from None


if __name__ == "__main__":
    main()
