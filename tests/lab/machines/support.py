"""
Whether this machine can run others.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile

from tests.lab import processes, reaper
from tests.lab.errors import LabError
from tests.lab.machines import control_group

PROGRAMS = ("systemd-nspawn", "mmdebstrap", "unshare", "nsenter", "ip", "tc", "ssh")

# All that a machine needs from the kernel, in namespaces that end with it. $1: a directory where machines would be.
PROBE = """
mkdir "$1/lower" "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link add bridge type bridge
ip link add port type veth peer name eth0
tc qdisc add dev eth0 root tbf rate 1mbit burst 64kb latency 100ms
"""


@functools.cache
def unavailable() -> str | None:
    """Why machines cannot run here, as a sentence; None when they can."""
    if os.geteuid() != 0:
        return "Machines cannot run here: only root may boot them"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"Machines cannot run here, programs are missing: {', '.join(missing)}; run `sh tests/setup`"
    try:
        group = control_group.hierarchy()
        if not os.access(group, os.W_OK):
            return f"Machines cannot run here: {group} cannot be written"
        with tempfile.TemporaryDirectory(prefix="probe-", dir=reaper.ROOT) as directory:
            processes.run(
                *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"),
                *("sh", "-euc", PROBE, "sh", directory),
            )
    except LabError as error:
        return f"Machines cannot run here: {error}"
    return None
