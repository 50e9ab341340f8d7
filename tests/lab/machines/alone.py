"""
Machines without a lab around them: no engine, no VMs.

    with alone.up(["bullseye", "trixie"]) as [old, new]:
        old.run("python3", "--version")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from tests.lab import reaper, sshd
from tests.lab.errors import LabError
from tests.lab.machines import roots, support
from tests.lab.machines.machine import Machine
from tests.lab.machines.network import Network
from tests.lab.machines.roots import Release


@contextlib.contextmanager
def up(releases: Sequence[Release]) -> Iterator[list[Machine]]:
    """Run one machine of each release, named by it, on one network.  Raises LabError when they cannot run here."""
    if reason := support.unavailable():
        raise LabError(reason)
    reaper.sweep()
    keeper = reaper.Reaper()
    try:
        lab = keeper.directory
        client_key = sshd.new_key(lab / "client_key")
        roots.build_all(releases)
        network = Network(lab, lab)
        # They boot side by side.
        machines = [Machine(lab / release, release, network, client_key, lab) for release in releases]
        for machine in machines:
            machine.wait()
        yield machines
    finally:
        keeper.release()
