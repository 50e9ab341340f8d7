"""
The engine simulator: what oVirt's engine does between its REST API and vdsm, in one process with the lab.

    client ─ HTTPS ─▶ server ─▶ routes ─▶ vms, disks, backups, checkpoints, transfers ─▶ Host (real libvirt, QEMU, …)
                        │                     │        ▲
                       sso                 database    workers (one thread per command)

One lock, the database's: nothing that takes time happens while it is held. `faults` lists what a test can break.
What it knows about the engine is in ../shared/ovirt-facts.md, sections 0 to 3, 4.4 and 4.5.
"""

from tests.lab.engine.simulator import EngineSimulator

__all__ = ["EngineSimulator"]
