"""
Hosts that are machines of their own: the engine tells how to reach them, and clients that know only the engine read backups
from each.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import ovirtsdk4
import pytest
from ovirt_imageio import client
from ovirtsdk4 import services, types

from tests.e2e.fleet.conftest import Fleet
from tests.lab import processes, witness

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def connection(fleet: Fleet) -> Iterator[ovirtsdk4.Connection]:
    lab = fleet.lab
    connection = ovirtsdk4.Connection(
        url=lab.engine.url, username=lab.username, password=lab.password, ca_file=str(lab.ca)
    )
    with contextlib.closing(connection):
        yield connection


def test_engine_tells_how_to_reach_each_host(fleet: Fleet, connection: ovirtsdk4.Connection) -> None:
    told = {host.name: host for host in connection.system_service().hosts_service().list()}
    assert set(told) == {"host1", "host2"}
    for host, machine in zip(fleet.hosts, fleet.machines, strict=True):
        assert told[host.name].address == machine.address
        assert told[host.name].ssh.port == machine.ssh_port
        assert told[host.name].ssh.public_key == machine.ssh_public_key
        assert told[host.name].ssh.fingerprint == machine.ssh_fingerprint
    # One of them manages the storage.
    assert sorted(host.spm.status.value for host in told.values()) == ["none", "spm"]


def test_hosts_of_a_cluster(fleet: Fleet, connection: ovirtsdk4.Connection) -> None:
    hosts = connection.system_service().hosts_service()
    fleet.engine.move_host(fleet.hosts[1], "Edge")
    try:
        assert [host.name for host in hosts.list(search="cluster=Default")] == ["host1"]
        assert [host.name for host in hosts.list(search="cluster=Edge")] == ["host2"]
        clusters = connection.system_service().clusters_service().list()
        assert {cluster.name for cluster in clusters} == {"Default", "Edge"}
    finally:
        fleet.engine.move_host(fleet.hosts[1], "Default")
    fleet.engine.set_host_status(fleet.hosts[0], "maintenance")
    try:
        assert [host.name for host in hosts.list(search="status=up")] == ["host2"]
    finally:
        fleet.engine.set_host_status(fleet.hosts[0], "up")


def test_owners_and_modes_are_those_of_an_ovirt_host(fleet: Fleet) -> None:
    for machine in fleet.machines:
        listed = machine.run(
            *("stat", "--format", "%n %U:%G %a"),
            *("/run/vdsm", "/run/vdsm/backup", "/run/vdsm/nbd", "/run/ovirt-imageio", "/run/ovirt-imageio/sock"),
        )
        assert listed.splitlines() == [
            "/run/vdsm vdsm:kvm 755",
            "/run/vdsm/backup vdsm:kvm 770",
            "/run/vdsm/nbd vdsm:kvm 755",
            "/run/ovirt-imageio ovirtimg:ovirtimg 750",
            "/run/ovirt-imageio/sock ovirtimg:ovirtimg 660",
        ]
        assert "@/org/ovirt/imageio" in machine.run("ss", "--listening", "--unix")


@pytest.mark.parametrize("number", [0, 1])
def test_backup_is_read_through_image_io_of_its_host(
    fleet: Fleet, connection: ovirtsdk4.Connection, number: int, tmp_path: Path
) -> None:
    backed_up(fleet, connection, number, tmp_path)


def test_host_comes_back_from_a_loss_of_power(fleet: Fleet, connection: ovirtsdk4.Connection, tmp_path: Path) -> None:
    host, machine, vm = fleet.hosts[1], fleet.machines[1], fleet.vms[1]
    machine.lose_power()
    machine.start()
    machine.wait()
    host.wait()
    assert host.vm_state(vm.id) == "down"
    vm.start()
    backed_up(fleet, connection, 1, tmp_path)


def backed_up(fleet: Fleet, connection: ovirtsdk4.Connection, number: int, directory: Path) -> None:
    """Back a VM's disks up with the SDK and Image I/O's client, from its own host, and compare with nbdcopy's copies."""
    vm, host, machine = fleet.vms[number], fleet.hosts[number], fleet.machines[number]
    system = connection.system_service()
    backups = system.vms_service().vm_service(vm.id).backups_service()
    disks = [types.Disk(id=disk.id) for disk in vm.disks]
    # The mode that asks most of a host: QEMU, its socket, libvirt.
    backup = backups.add(types.Backup(disks=disks), query={"legacy": "true"})
    service = backups.backup_service(backup.id)
    processes.wait_for("the backup", lambda: service.get().phase == types.BackupPhase.READY)
    try:
        socket = machine.root / "run/vdsm/backup" / backup.id
        assert stat.S_IMODE(socket.stat().st_mode) & 0o020, "groups of an agent could not write to it"
        with witness.watching(fleet.lab, directory) as copies:
            for disk in vm.disks:
                path = directory / f"{disk.id}.read"
                transfer = system.image_transfers_service().add(
                    types.ImageTransfer(
                        disk=types.Disk(id=disk.id),
                        backup=types.Backup(id=backup.id),
                        direction=types.ImageTransferDirection.DOWNLOAD,
                        format=types.DiskFormat.RAW,
                    )
                )
                ticket = system.image_transfers_service().image_transfer_service(transfer.id)
                transfer = transferring(ticket)
                assert transfer.host.id == host.id
                assert urlsplit(transfer.transfer_url).hostname == machine.address
                client.download(transfer.transfer_url, str(path), str(fleet.lab.ca), fmt="raw")
                ticket.finalize()
            taken = copies.take()
        assert set(taken) == {disk.id for disk in vm.disks}
        for disk in vm.disks:
            assert witness.equal(taken[disk.id], directory / f"{disk.id}.read")
    finally:
        service.finalize()
    processes.wait_for("the backup's end", lambda: service.get().phase == types.BackupPhase.SUCCEEDED)


def transferring(ticket: services.ImageTransferService) -> types.ImageTransfer:
    """A transfer once it can be used."""
    processes.wait_for("the transfer", lambda: ticket.get().phase == types.ImageTransferPhase.TRANSFERRING)
    return ticket.get()
