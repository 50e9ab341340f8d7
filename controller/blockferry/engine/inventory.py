"""
Looking things up: VMs, disks, checkpoints, hosts, the VM's configuration.
"""

from __future__ import annotations

import difflib
import re
import urllib.parse
from typing import Any

from blockferry import errors
from blockferry.engine import faults, polling, records
from blockferry.engine.model import Checkpoint, Disk, Host, Vm
from blockferry.engine.session import Session

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def version(session: Session) -> str:
    """
    Return the engine's version, for example "4.5.7-1.el9".

    Raises EngineUnreachable when what answers is not the API of an engine.
    """
    try:
        api = session.call("tell its version", lambda api: api.get())
    except errors.NotFound as error:
        raise faults.not_an_engine(session.place, "there is no API") from error
    product = api.product_info
    if product is None or product.version is None or not product.version.full_version:
        raise faults.not_an_engine(session.place, "it does not tell its version")
    return str(product.version.full_version)


# VMs.


def find_vm(session: Session, name: str) -> Vm:
    """
    Return the VM of exactly this name, or of this id.

    Raises NotFound with the names that come near, Ambiguous with the ids when data centers share the name.
    """
    if _UUID.fullmatch(name) and (vm := _vm_by_id(session, name)):
        return vm
    found = _vms_named(session, name)
    if not found:
        raise _no_such_vm(session, name)
    if len(found) > 1:
        places = ", ".join(f"{vm.id} (cluster {_cluster_name(session, vm.cluster_id)})" for vm in found)
        raise errors.Ambiguous(f"There are {len(found)} VMs of the name '{name}': {places}.", "Give the id instead.")
    return found[0]


def exists(session: Session, name: str) -> bool:
    """Return whether there is a VM of this name or id."""
    return bool(_vms_named(session, name)) or (
        _UUID.fullmatch(name) is not None and _vm_by_id(session, name) is not None
    )


def vm_status(session: Session, vm: Vm) -> str:
    """Return the VM's status as it is now."""
    found = session.ask(f"read VM '{vm.name}'", lambda api: api.vms_service().vm_service(vm.id).get())
    return _text(found.status)


def search_text(name: str) -> str | None:
    """
    Return the engine's search for one name; None when its language cannot say it.

    It has no escape for a quote, and `*` always is a wildcard.
    """
    return None if re.search(r'["*]', name) else f'name="{name}"'


def _vms_named(session: Session, name: str) -> list[Vm]:
    # Without a search the engine lists all VMs; the comparison here decides in any case.
    search = search_text(name)
    found = session.call(f"find VM '{name}'", lambda api: api.vms_service().list(search=search, case_sensitive=True))
    return [_vm(vm) for vm in found if vm.name == name]


def _vm_by_id(session: Session, vm_id: str) -> Vm | None:
    try:
        return _vm(session.call(f"find VM {vm_id}", lambda api: api.vms_service().vm_service(vm_id).get()))
    except errors.NotFound:
        return None


def _no_such_vm(session: Session, name: str) -> errors.NotFound:
    names = sorted({vm.name for vm in session.call("list VMs", lambda api: api.vms_service().list())})
    near = near_names(name, names)
    return errors.NotFound(
        f"The engine has no VM '{name}' that this user may see.",
        f"Near to it: {', '.join(near)}." if near else "Check the name (upper and lower case differ) and the rights.",
    )


def near_names(name: str, names: list[str]) -> list[str]:
    """Return up to five of `names` that somebody who typed `name` may have meant, the nearest first."""
    by_folded = {other.casefold(): other for other in names}
    return [by_folded[folded] for folded in difflib.get_close_matches(name.casefold(), by_folded, n=5)]


def _cluster_name(session: Session, cluster_id: str) -> str:
    try:
        cluster = session.call("read a cluster", lambda api: api.clusters_service().cluster_service(cluster_id).get())
    except errors.Error:  # a user without rights on it: the id must do
        return cluster_id
    return str(cluster.name)


def ovf(session: Session, vm: Vm) -> str:
    """
    Return the VM's configuration, an OVF document of oVirt's kind; it may hold secrets (cloud-init, TPM).

    The engine leaves it out, without an error, while a disk is locked; so ask for it before a backup starts.
    Raises Conflict when it stays out, at once when another backup is the reason.
    """
    for _ in polling.ticks(session.deadlines.ovf):
        found = session.call(
            f"read the configuration of VM '{vm.name}'",
            lambda api: api.vms_service().vm_service(vm.id).get(all_content=True),
        )
        initialization = found.initialization
        if initialization and initialization.configuration and initialization.configuration.data:
            return str(initialization.configuration.data)
        records.refuse_other(session, vm)
    raise errors.Conflict(
        f"The engine does not give out the configuration (OVF) of VM '{vm.name}'{_locks(session, vm)}.",
        "Wait until snapshots, disk operations and other backups of the VM have ended, then run again.",
    )


def _locks(session: Session, vm: Vm) -> str:
    locked = [
        attachment.disk.alias or attachment.disk.id
        for attachment in _attachments(session, vm)
        if _text(attachment.disk.status) == "locked"
    ]
    return f": locked disks are {', '.join(locked)}" if locked else ""


# Disks and checkpoints.


def disks(session: Session, vm: Vm) -> list[Disk]:
    """Return all disks of a VM, also those that cannot be backed up (see Disk.obstacle)."""
    return [_disk(attachment) for attachment in _attachments(session, vm)]


def checkpoints(session: Session, vm: Vm) -> list[Checkpoint]:
    """Return the VM's checkpoints, the oldest first."""
    found = session.ask(
        f"list the checkpoints of VM '{vm.name}'",
        lambda api: api.vms_service().vm_service(vm.id).checkpoints_service().list(),
    )
    return [
        Checkpoint(
            id=checkpoint.id,
            parent_id=checkpoint.parent_id,
            created=checkpoint.creation_date,
            description=checkpoint.description or "",
            # Engines before 4.4.7.5 have no states.
            state=_text(checkpoint.state) or "created",
        )
        for checkpoint in found
    ]


_GONE = "doesn't exist"
"""How the engine's refusal to remove a checkpoint ends when it has none (any more): ovirt-facts, "Delete"."""


def delete_checkpoint(session: Session, vm: Vm, checkpoint_id: str) -> None:
    """
    Remove a checkpoint and its bitmaps; wait until it is gone. One that is not there is fine.

    Raises Conflict when the VM is neither up nor down: engines before 4.5.7 would damage the disks of a paused VM.
    """
    task = f"remove checkpoint {checkpoint_id} of VM '{vm.name}'"
    for _ in polling.ticks(session.deadlines.checkpoint):
        if checkpoint_id not in {checkpoint.id for checkpoint in checkpoints(session, vm)}:
            return
        status = vm_status(session, vm)
        if status not in ("up", "down"):
            raise errors.Conflict(
                f"Checkpoint {checkpoint_id} stays, because VM '{vm.name}' is {status}.",
                "Checkpoints are removed only while the VM is up or down: the next backup will do it.",
            )
        try:
            session.call(
                task,
                lambda api: (
                    api.vms_service().vm_service(vm.id).checkpoints_service().checkpoint_service(checkpoint_id).remove()
                ),
            )
        except (faults.Occupied, errors.EngineUnreachable, errors.NotFound) as error:
            # The removal that an earlier round started is under way, something else locks the VM, or it is done.
            last: errors.Error | None = error
        except faults.Refused as error:
            # It may have gone between the list and the request.
            if not error.detail.endswith(_GONE):
                raise
            last = error
        else:
            last = None
    raise last or errors.EngineError(
        f"Checkpoint {checkpoint_id} of VM '{vm.name}' is still there {session.deadlines.checkpoint:g} s after its"
        " removal was asked for.",
        "See the VM's events in the engine.",
    )


# Hosts.


def host(session: Session, host_id: str) -> Host:
    """Return a host by its id."""
    return _host(session.ask("read a host", lambda api: api.hosts_service().host_service(host_id).get()))


def find_host(session: Session, name: str) -> Host:
    """
    Return the host of this name, address or id.

    Raises NotFound with the names of all hosts.
    """
    hosts = [_host(found) for found in session.call("list hosts", lambda api: api.hosts_service().list())]
    matches = [found for found in hosts if name in (found.id, found.name, found.address)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        ids = ", ".join(f"{found.id} ({found.name})" for found in matches)
        raise errors.Ambiguous(f"There are {len(matches)} hosts that '{name}' may mean: {ids}.", "Give the id instead.")
    known = ", ".join(sorted(found.name for found in hosts))
    raise errors.NotFound(
        f"The engine has no host '{name}' that this user may see.",
        f"Its hosts are: {known}." if known else "Only administrators see hosts: check the user's role.",
    )


def hosts(session: Session, cluster: str | None) -> list[Host]:
    """Return the hosts of a cluster (name or id), or all, by name. Raises NotFound for a cluster that is not there."""
    cluster_id = find_cluster(session, cluster) if cluster is not None else None
    found = session.call("list hosts", lambda api: api.hosts_service().list())
    chosen = [host for host in found if cluster_id is None or (host.cluster and host.cluster.id == cluster_id)]
    return sorted(map(_host, chosen), key=lambda host: host.name)


def find_cluster(session: Session, name: str) -> str:
    """Return the id of the cluster of this name or id. Raises NotFound with the names of all, Ambiguous."""
    clusters = session.call("list clusters", lambda api: api.clusters_service().list())
    matches = [cluster for cluster in clusters if name in (cluster.id, cluster.name)]
    if not matches:
        known = ", ".join(sorted(cluster.name for cluster in clusters))
        raise errors.NotFound(f"The engine has no cluster '{name}' that this user may see.", f"It has: {known}.")
    if len(matches) > 1:
        ids = ", ".join(cluster.id for cluster in matches)
        raise errors.Ambiguous(f"There are {len(matches)} clusters called '{name}': {ids}.", "Give the id instead.")
    return str(matches[0].id)


def host_of(session: Session, host_id: str | None, transfer_url: str) -> Host:
    """Return the host of a transfer; who may not see hosts gets what the transfer's URL says."""
    if host_id:
        try:
            return host(session, host_id)
        except (errors.NotFound, errors.EngineDenied):
            pass
    address = urllib.parse.urlsplit(transfer_url).hostname or ""
    return Host(id="", name=address, address=address, status="")


# From the SDK's types to ours.


def _attachments(session: Session, vm: Vm) -> list[Any]:
    return list(
        session.call(
            f"list the disks of VM '{vm.name}'",
            lambda api: api.vms_service().vm_service(vm.id).disk_attachments_service().list(follow="disk"),
        )
    )


def _vm(vm: Any) -> Vm:
    return Vm(id=vm.id, name=vm.name, status=_text(vm.status), cluster_id=vm.cluster.id if vm.cluster else "")


def _disk(attachment: Any) -> Disk:
    disk = attachment.disk
    return Disk(
        id=disk.id,
        alias=disk.alias or disk.name or disk.id,
        size=disk.provisioned_size or 0,
        format=_text(disk.format),
        # A type that the SDK does not know becomes None, and cannot be a guest's data.
        content_type=_text(disk.content_type) or "something unknown",
        storage_type=_text(disk.storage_type) or "unknown",
        shareable=bool(disk.shareable),
        active=bool(attachment.active),
        bootable=bool(attachment.bootable),
        interface=_text(attachment.interface),
    )


def _host(found: Any) -> Host:
    ssh = found.ssh
    return Host(
        id=found.id,
        name=found.name,
        address=found.address,
        status=_text(found.status),
        ssh_port=ssh.port if ssh else None,
        ssh_fingerprint=ssh.fingerprint if ssh else None,
        ssh_public_key=ssh.public_key if ssh else None,
    )


def _text(value: Any) -> str:
    """The REST word of one of the SDK's enumerations; empty when there is none or the SDK does not know it."""
    return value.value if value is not None else ""
