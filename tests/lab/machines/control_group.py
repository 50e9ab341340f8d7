"""
The control groups of a lab's machines: every process of a machine is in its group, whatever became of its parents.

    /sys/fs/cgroup[/unified]/lab-var-tmp-bf-xxxxxxxx/<machine>/{supervisor,payload/…}

So a machine loses its power in one write, and a lab that is gone leaves no process behind.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.lab import processes
from tests.lab.errors import LabError


def hierarchy() -> Path:
    """Where this machine has version 2 of the control groups.  Raises LabError when it has not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _device, mount_point, kind, *_options = line.split()
        if kind == "cgroup2":
            return Path(mount_point)
    raise LabError("This machine has no control groups of version 2 (a file system of type cgroup2)")


def of_machine(lab: Path, name: str) -> Path:
    """Make the group of a machine."""
    group = _of_lab(lab) / name
    group.mkdir(parents=True)
    return group


def kill(group: Path) -> None:
    """
    SIGKILL to every process in a group and below, and remove it; fine when it is not there.

    It cannot be used again: Linux 6.18 kills whoever is born into a group that was killed before.
    """
    if not group.exists():
        return
    (group / "cgroup.kill").write_text("1")
    processes.wait_for(f"the end of {group}", lambda: _is_empty(group), timeout=30)
    # The kernel may need a moment more before it lets a group go whose last process has ended.
    processes.wait_for(f"the removal of {group}", lambda: _try_to_remove(group))


def remove(lab: Path) -> None:
    """Kill what is left of a lab's machines, and remove their groups; fine when there are none."""
    try:
        group = _of_lab(lab)
    except LabError:
        return  # no machine ever ran here
    kill(group)


def _of_lab(lab: Path) -> Path:
    return hierarchy() / f"lab{str(lab).replace('/', '-')}"


def _is_empty(group: Path) -> bool:
    return "populated 0" in (group / "cgroup.events").read_text()


def _try_to_remove(group: Path) -> bool:
    try:
        for directory, _below, _files in os.walk(group, topdown=False):
            Path(directory).rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
