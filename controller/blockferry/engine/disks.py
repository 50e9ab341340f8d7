"""
Disks: making, writing, attaching and removing them.

A disk is made under an id that is ours to choose, so a request whose answer was lost is looked for by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import backups, events, faults, polling, transfers
from blockferry.engine.model import NewDisk, StorageDomain, Transfer, Transferred, Vm
from blockferry.engine.session import Session


def domains(session: Session) -> list[StorageDomain]:
    """Return the domains that hold disks, by their names."""
    found = session.ask("list storage domains", lambda api: api.storage_domains_service().list())
    return sorted(
        (
            StorageDomain(
                id=domain.id,
                name=domain.name,
                type=domain.storage.type.value if domain.storage and domain.storage.type else "unknown",
                available=domain.available,
            )
            for domain in found
            if domain.type == types.StorageDomainType.DATA
        ),
        key=lambda domain: domain.name,
    )


def exists(session: Session, disk_id: str) -> bool:
    """Return whether there is a disk of this id."""
    try:
        _find(session, disk_id)
    except errors.NotFound:
        return False
    return True


def make(session: Session, new: NewDisk, patience: polling.Patience | None = None) -> None:
    """
    Make a floating disk, and wait until it can be written. Nothing of it stays when this raises.

    Raises EngineError when the engine does not want it, or cannot make it as it is wanted; Interrupted when the
    patience ends.
    """
    correlation_id = events.new_correlation_id()
    # A refusal leaves nothing; it may even be that a disk of this id was there before.
    _ask_for(session, new, correlation_id)
    try:
        _wait_until_ok(session, new, correlation_id, patience)
        _check_size(new, _find(session, new.id).provisioned_size or 0)
    except BaseException:
        with backups.aside():
            remove(session, new.id)
        raise


def remove(session: Session, disk_id: str) -> None:
    """
    Remove a disk and wait until it is gone; one that is gone already is fine.

    Raises Conflict when it stays locked or belongs to a VM that runs.
    """
    last: errors.Error | None = None
    for _ in polling.ticks(session.deadlines.conflict):
        if not exists(session, disk_id):
            return
        try:
            session.call("remove a disk", lambda api: _service(api, disk_id).remove())
        except (faults.Occupied, errors.EngineUnreachable) as error:
            last = error  # it is still locked, or its removal is under way
        except errors.NotFound:
            return
    raise last or errors.EngineError(
        f"Disk {disk_id} is still there {session.deadlines.conflict:g} s after its removal was asked for.",
        "See the engine's events, and remove it there.",
    )


def remove_unfinished(session: Session, disk_id: str, description: str) -> None:
    """
    Remove a disk that a process that is gone began to make, and end what writes to it.

    Only one of this description that belongs to no VM: any other is somebody else's, or of use to somebody by now.

    Raises Conflict when it stays locked.
    """
    found = session.ask(
        "look for a disk", lambda api: api.disks_service().list(search=f"id={disk_id} and number_of_vms=0")
    )
    if [disk.description for disk in found] != [description]:
        return
    for transfer_id in transfers.open_uploads(session, [disk_id]):
        transfers.cancel(session, transfer_id)
    remove(session, disk_id)


def attach(session: Session, vm: Vm, disk_id: str, interface: str, bootable: bool) -> None:
    """Attach a floating disk to a VM that is down. Raises Conflict when the VM runs or has a bootable disk already."""
    attachment = types.DiskAttachment(
        disk=types.Disk(id=disk_id),
        interface=types.DiskInterface(interface),
        bootable=bootable,
        active=True,
    )
    session.call(
        f"attach a disk to VM '{vm.name}'",
        lambda api: api.vms_service().vm_service(vm.id).disk_attachments_service().add(attachment),
    )


@contextlib.contextmanager
def writing(
    session: Session,
    disk: Transferred,
    keep: bool,
    opened: Callable[[str], None],
    patience: polling.Patience | None = None,
    host_id: str | None = None,
) -> Iterator[Transfer]:
    """
    Open the way to write a disk; leaving the block ends it, and waits until the engine has accepted the disk.

    keep, opened, patience, host_id: see Connection.writing.
    """
    correlation_id = events.new_correlation_id()
    transfer_id = transfers.request_upload(session, disk, correlation_id, host_id)
    try:
        opened(transfer_id)
        yield transfers.wait_for_ticket(session, transfer_id, disk, correlation_id, patience)
    except BaseException:
        with backups.aside():
            if keep:
                transfers.finalize_upload(session, transfer_id, disk, correlation_id)
            else:
                transfers.cancel(session, transfer_id)
        raise
    transfers.finalize_upload(session, transfer_id, disk, correlation_id)
    _wait_until_ok(session, disk, correlation_id)


def _ask_for(session: Session, new: NewDisk, correlation_id: str) -> None:
    disk = types.Disk(
        id=new.id,
        name=new.alias,
        description=new.description,
        content_type=types.DiskContentType.DATA,
        provisioned_size=new.size,
        initial_size=new.initial_size if new.format == "cow" else None,
        format=types.DiskFormat(new.format),
        sparse=new.sparse,
        backup=types.DiskBackup.INCREMENTAL if new.format == "cow" else types.DiskBackup.NONE,
        storage_domains=[types.StorageDomain(id=new.storage_domain_id)],
    )
    task = f"make disk '{new.alias}'"

    def add(api: Any) -> None:
        api.disks_service().add(disk, query={"correlation_id": correlation_id})

    try:
        session.call(task, add)
    except errors.EngineUnreachable:
        if not exists(session, new.id):
            session.call(task, add)


def _wait_until_ok(
    session: Session, disk: Transferred, correlation_id: str, patience: polling.Patience | None = None
) -> None:
    status = ""
    for _ in polling.ticks(session.deadlines.ready, patience):
        try:
            found = _find(session, disk.id, patience)
        except errors.NotFound:
            raise errors.EngineError(
                f"Disk '{disk.alias}' is gone: the engine could not complete it, and removed it."
                f"{events.explanation(session, correlation_id)}",
                "See the engine's events and, on the host that manages storage (SPM), the log of vdsm.",
            ) from None
        status = found.status.value if found.status else "unknown"
        if status == "ok":
            return
        if status == "illegal":
            break
    raise errors.EngineError(
        f"Disk '{disk.alias}' cannot be used: its status is '{status}'.{events.explanation(session, correlation_id)}",
        "See the engine's events and, on the host that manages storage (SPM), the log of vdsm.",
    )


def _check_size(disk: Transferred, size: int) -> None:
    """A guest must find the disk as it was, and a transfer's ticket is for the size that was asked for."""
    if size != disk.size:
        raise errors.EngineError(
            f"The engine made disk '{disk.alias}' with {size} bytes instead of {disk.size}.",
            "Restore to another storage domain: this one cannot hold a disk of that size.",
        )


def _find(session: Session, disk_id: str, patience: polling.Patience | None = None) -> Any:
    return session.ask("read a disk", lambda api: _service(api, disk_id).get(), patience)


def _service(api: Any, disk_id: str) -> Any:
    return api.disks_service().disk_service(disk_id)
