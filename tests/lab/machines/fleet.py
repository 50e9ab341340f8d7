"""
The hosts of a lab as machines of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

from tests.lab import certificates
from tests.lab.host import Host
from tests.lab.machines import hypervisor, roots
from tests.lab.machines.hypervisor import Hypervisor
from tests.lab.machines.machine import Machine
from tests.lab.machines.network import Network
from tests.lab.machines.roots import Release


def boot(directory: Path, releases: Sequence[Release], client_key: Path, volumes: Path) -> list[Machine]:
    """Boot a machine of each release, called host1, host2 …; returns when all are up."""
    roots.build_all(releases)
    volumes.mkdir()
    os.chown(volumes, *hypervisor.OWNERS["vdsm"])
    network = Network(directory, directory)
    machines = []
    # They boot side by side.
    for number, release in enumerate(releases, 1):
        name = f"host{number}"
        files = directory / name
        files.mkdir()
        binds = hypervisor.binds(files, volumes)
        machines.append(Machine(directory / f"{name}-root", release, network, client_key, directory, name, binds))
    for machine in machines:
        machine.wait()
    return machines


def hosts(directory: Path, machines: Sequence[Machine], volumes: Path, ca: certificates.Authority) -> list[Host]:
    """Make hosts of machines that are up, all at once."""

    def host(machine: Machine) -> Host:
        place = Hypervisor(machine, directory / machine.name, volumes)
        return Host(machine.name, place, machine, volumes, ca)

    with futures.ThreadPoolExecutor() as pool:
        return list(pool.map(host, machines))
