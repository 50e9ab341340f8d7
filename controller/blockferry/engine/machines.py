"""
VMs: making them from their configurations, starting and removing them.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import inventory
from blockferry.engine.model import Vm
from blockferry.engine.session import Session


def make(session: Session, ovf: str, name: str, cluster_id: str, keep_ids: bool) -> Vm:
    """
    Make a VM from a configuration, whose name must be free; see Connection.make_vm.

    When the answer is lost, the VM is looked for by its name.
    """
    wanted = types.Vm(
        name=name,
        cluster=types.Cluster(id=cluster_id),
        initialization=types.Initialization(
            configuration=types.Configuration(data=ovf, type=types.ConfigurationType.OVF),
            regenerate_ids=not keep_ids,
        ),
    )
    task = f"make VM '{name}'"

    def add(api: Any) -> str:
        return str(api.vms_service().add(wanted).id)

    try:
        vm_id = session.call(task, add)
    except errors.EngineUnreachable:
        with contextlib.suppress(errors.NotFound):
            return inventory.find_vm(session, name)
        vm_id = session.call(task, add)
    return inventory.find_vm(session, vm_id)


def has_snapshots(session: Session, vm: Vm) -> bool:
    """Return whether the VM has snapshots, beside the active one that is none."""
    found = session.ask(
        f"list the snapshots of VM '{vm.name}'",
        lambda api: _service(api, vm).snapshots_service().list(),
    )
    return any(snapshot.snapshot_type != types.SnapshotType.ACTIVE for snapshot in found)


def start(session: Session, vm: Vm) -> None:
    """Start a VM. Does not wait until it runs."""
    session.call(f"start VM '{vm.name}'", lambda api: _service(api, vm).start())


def remove(session: Session, vm: Vm) -> None:
    """Remove a VM; its disks stay, floating. One that is gone already is fine."""
    with contextlib.suppress(errors.NotFound):
        session.call(f"remove VM '{vm.name}'", lambda api: _service(api, vm).remove(detach_only=True))


def _service(api: Any, vm: Vm) -> Any:
    return api.vms_service().vm_service(vm.id)
