"""Bad days with what a disk is read through: Image I/O, the tickets, the VM, and what serves the disk."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.component import nbd_servers
from tests.e2e.bad_days.scene import DISKS, Scene
from tests.e2e.bad_days.valve import Valve
from tests.lab import processes
from tests.lab.host import Host

pytestmark = pytest.mark.lab

TRANSPORTS = ("grpc", "imageio")

# What an NBD server says until a client reads.
HANDSHAKE = nbd_servers.handshake(DISKS[0].size, bitmap=True)


# Which it is depends on whether a connection waits for an answer or has just got one.
HUNG_UP = "(hung up in the middle of the disk|refuses the ticket of transfer)"


# Tickets and Image I/O.


def test_transfer_is_cancelled_in_mid_disk(scene: Scene) -> None:
    """The engine stops the disk's server then."""
    with scene.held_backup() as held:
        scene.engine.image_transfers_service().image_transfer_service(scene.open_transfers()[0].id).cancel()
        result = held.end()
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk1: .*NBD server", "transfer ended")


def test_ticket_is_cancelled_in_mid_disk(scene: Scene) -> None:
    """Image I/O forgets it when nobody uses it any more, and lets nobody use it until then."""
    with scene.held_backup("--transport", "imageio", "--no-fallback") as held:
        ticket_id = scene.open_transfers()[0].transfer_url.rpartition("/")[2]
        removal = threading.Thread(target=scene.lab.host.remove_ticket, args=(ticket_id,))
        removal.start()
        processes.wait_for("cancelling of the ticket", lambda: is_cancelled(scene.lab.host, ticket_id))
        held.open()
        result = held.end()
        removal.join()
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk1: .*Image I/O on host host1 {HUNG_UP}", "run .*again")


def test_ticket_goes_before_the_disk_is_opened(scene: Scene) -> None:
    def forget(ticket: dict[str, Any]) -> None:
        ticket["timeout"] = 0

    scene.on_ticket = forget
    result = scene.backup()
    scene.on_ticket = None
    says = "No transport reaches the disk on host host1 .*grpc: The ticket of transfer .* has expired"
    scene.assert_survived(result, 7, says, "imageio: Image I/O on host host1 refuses the ticket")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_imageio_restarts_in_mid_disk(scene: Scene, transport: str) -> None:
    """It forgets all tickets, and the engine ends the transfer when it sees that."""
    with scene.held_backup("--transport", transport) as held:
        scene.lab.host.restart_imageio()
        result = held.end()
    where = {"grpc": "NBD server at", "imageio": f"Image I/O on host host1 ({HUNG_UP}|does not answer)"}[transport]
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk[12]: .*{where}")


# The VM and its disk.


@pytest.mark.parametrize(
    ("transport", "end", "next_read"),
    [
        ("grpc", Host.destroy_vm, "incremental"),
        ("imageio", Host.destroy_vm, "incremental"),
        # Its bitmaps were never stored.
        ("grpc", Host.kill_vm, "full"),
    ],
)
def test_vm_stops_in_mid_disk(scene: Scene, transport: str, end: Callable[[Host, str], None], next_read: str) -> None:
    """Which of the disks notices it first is not known."""
    scene.write()
    scene.lab.host.start_vm(scene.vm.id)
    with scene.held_backup("--transport", transport) as held:
        end(scene.lab.host, scene.vm.id)
        result = held.end()
    says = {"grpc": "See whether the VM stopped", "imageio": "Image I/O on host host1 answered 500"}[transport]
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk[12]: .*{says}", next_read=next_read)


def test_vm_stops_in_mid_disk_of_a_hybrid_backup(scene: Scene) -> None:
    """The backup is of a snapshot, which needs no VM."""
    scene.write()
    scene.lab.host.start_vm(scene.vm.id)
    with scene.held_backup("--mode", "hybrid", "--json") as held:
        scene.lab.host.destroy_vm(scene.vm.id)
        held.open()
        result = held.end()
    scene.assert_went_on(result)
    assert result.document["mode"] == "hybrid"


@pytest.mark.parametrize(
    ("transport", "script"),
    [
        ("grpc", b"HTTP/1.1 200 OK\r\n\r\n" * 99),
        ("grpc", HANDSHAKE + bytes(4096)),
        ("imageio", HANDSHAKE + bytes(4096)),
    ],
)
def test_disk_is_served_by_nonsense(scene: Scene, transport: str, script: bytes) -> None:
    with nbd_servers.scripted(scene.lab.host.directory / "run/vdsm/nbd", script) as address:
        scene.on_ticket = lambda ticket: ticket.update(url=f"nbd:unix:{address.path}")
        result = scene.backup("--transport", transport, "--disk", scene.vm.disks[0].id)
        scene.on_ticket = None
    says = {"grpc": f"NBD server at {address.path} ", "imageio": "Image I/O on host host1 answered 500"}[transport]
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk1: .*{says}")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_storage_fails(scene: Scene, transport: str) -> None:
    """The disk's own server, behind one that fails every read."""
    with contextlib.ExitStack() as servers:

        def put_before(ticket: dict[str, Any]) -> None:
            path = scene.socket()
            server = ticket["url"].removeprefix("nbd:unix:")
            command = ["nbdkit", "--foreground", "--exit-with-parent", f"--unix={path}", "--filter=error", "nbd"]
            command += [f"socket={server}", "error-pread=EIO", "error-pread-rate=100%"]
            servers.enter_context(nbd_servers.served(command, nbd_servers.Address(str(path), "")))
            ticket["url"] = f"nbd:unix:{path}"

        scene.on_ticket = put_before
        result = scene.backup("--full", "--transport", transport)
        scene.on_ticket = None
    says = {"grpc": "Input/output error", "imageio": "answered 500"}[transport]
    scene.assert_survived(result, 7, f"Disk {scene.vm.name}_Disk.: .*{says}", "See .* log")


def test_socket_where_the_agent_may_not_look(scene: Scene) -> None:
    with contextlib.ExitStack() as relays:
        # A socket's path has 107 bytes at most: pytest's own directory may be too deep.
        elsewhere = Path(relays.enter_context(tempfile.TemporaryDirectory(prefix="bf-", dir="/tmp")))

        def move(ticket: dict[str, Any]) -> None:
            server = Path(ticket["url"].removeprefix("nbd:unix:"))
            relays.enter_context(contextlib.closing(Valve(elsewhere / server.name, server, limit=sys.maxsize)))
            ticket["url"] = f"nbd:unix:{elsewhere / server.name}"

        scene.on_ticket = move
        result = scene.backup("--json")
        scene.on_ticket = None
    scene.assert_says(result, 0, "goes through imageio. grpc: .*director")
    scene.assert_went_on(result)


def is_cancelled(host: Host, ticket_id: str) -> bool:
    ticket = host.get_ticket(ticket_id)
    return ticket is not None and bool(ticket["canceled"])
