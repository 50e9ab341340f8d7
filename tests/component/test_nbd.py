"""The NBD client against real servers, and against what libnbd's tools see."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from blockferry_agent import blocks, errors, nbd, reader
from blockferry_agent.nbd import Address
from blockferry_agent.source import Extent
from blockferry_agent.units import KiB, MiB
from tests.component import nbd_servers
from tests.component.nbd_servers import GRAIN

BITMAP = "c0ffee00-0000-4000-8000-000000000001"
CONTEXT = f"qemu:dirty-bitmap:{BITMAP}"

# No multiple of a grain, a cluster or a request.
ODD_SIZE = 5 * MiB + 512 * 3


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A qcow2 image with data, holes, zeros and changes since its bitmap was made."""
    path = nbd_servers.qcow2(tmp_path / "disk.qcow2", ODD_SIZE)
    nbd_servers.write(path, "write -P 0x41 0 1M", f"write -P 0x42 {3 * MiB} 128k", f"write -P 0x46 {5 * MiB} 1536")
    nbd_servers.add_bitmap(path, BITMAP)
    nbd_servers.write(
        path,
        "write -P 0x43 64k 64k",
        "write -z 256k 128k",
        f"write -P 0x44 {3 * MiB + 64 * KiB} 256k",
        f"write -P 0x45 {5 * MiB} 512",
        f"discard {512 * KiB} 128k",
    )
    return path


def nbd_map(address: Address, context: str) -> list[tuple[int, int, int]]:
    """What nbdinfo says: start, length, state."""
    done = subprocess.run(
        ["nbdinfo", "--json", f"--map={context}", nbd_servers.uri(address)], check=True, capture_output=True
    )
    return [(entry["offset"], entry["length"], entry["type"]) for entry in json.loads(done.stdout)]


def flag_at(runs: list[tuple[int, int, int]], position: int, flag: int) -> bool:
    return any(start <= position < start + length and state & flag for start, length, state in runs)


@pytest.mark.parametrize("incremental", [False, True])
def test_extents_are_those_that_nbdinfo_sees(image: Path, tmp_path: Path, incremental: bool) -> None:
    with nbd_servers.qemu_nbd(image, tmp_path, f"--bitmap={BITMAP}") as address:
        allocation, dirty = nbd_map(address, "base:allocation"), nbd_map(address, CONTEXT)
        with contextlib.closing(nbd.Connection(address, bitmap=incremental)) as connection:
            assert connection.size == ODD_SIZE
            found = list(connection.extents(0, ODD_SIZE, incremental))
    position = 0
    for extent in found:
        assert extent.start == position
        for probe in range(extent.start, extent.end, 512):
            assert extent.zero == flag_at(allocation, probe, 2)
            assert extent.dirty == (not incremental or flag_at(dirty, probe, 1))
        position = extent.end
    assert position == ODD_SIZE
    assert any(extent.zero for extent in found)
    assert not all(extent.zero for extent in found)
    if incremental:
        assert any(extent.dirty and extent.zero for extent in found)
        assert not all(extent.dirty for extent in found)


def test_extents_of_a_part(image: Path, tmp_path: Path) -> None:
    with (
        nbd_servers.qemu_nbd(image, tmp_path, f"--bitmap={BITMAP}") as address,
        contextlib.closing(nbd.Connection(address, bitmap=True)) as connection,
    ):
        assert list(connection.extents(96 * KiB, 64 * KiB, True)) == [
            Extent(96 * KiB, 32 * KiB, dirty=True, zero=False),
            Extent(128 * KiB, 32 * KiB, dirty=False, zero=False),
        ]


@pytest.mark.parametrize("plugin", ["qemu-nbd", "nbdkit"])
def test_a_whole_disk_reads_as_nbdcopy_reads_it(image: Path, tmp_path: Path, plugin: str) -> None:
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    server = (
        nbd_servers.qemu_nbd(image, tmp_path)
        if plugin == "qemu-nbd"
        else nbd_servers.nbdkit(tmp_path, "file", str(raw))
    )
    with server as address:
        expected = nbd_servers.copy(address, tmp_path / "copy.raw")
        request = blocks.ReadRequest(0, ODD_SIZE, False, 1 * MiB)
        found = bytearray(ODD_SIZE)
        for block in reader.read(functools.partial(nbd.Connection, address), request, workers=2):
            found[block.start : block.end] = block.data or bytes(block.length)
    assert bytes(found) == expected == raw.read_bytes()


@pytest.mark.parametrize(
    ("start", "length"),
    [
        pytest.param(0, 1, id="one byte"),
        pytest.param(511, 3, id="not aligned"),
        pytest.param(64 * KiB - 1, 256 * KiB + 2, id="a request and a bit"),
        pytest.param(0, ODD_SIZE, id="more requests than may be in flight"),
        pytest.param(ODD_SIZE - 1, 1, id="the last byte"),
        pytest.param(5, 0, id="nothing"),
    ],
)
def test_readinto_fills_the_buffer(image: Path, tmp_path: Path, start: int, length: int) -> None:
    with nbd_servers.qemu_nbd(image, tmp_path) as address:
        expected = nbd_servers.copy(address, tmp_path / "copy.raw")
        with contextlib.closing(nbd.Connection(address)) as connection:
            buffer = bytearray(b"\xff" * length)
            connection.readinto(start, buffer)
            assert buffer == expected[start : start + length]


def test_an_export_without_bitmap(tmp_path: Path) -> None:
    image = nbd_servers.qcow2(tmp_path / "disk.qcow2", 1 * MiB)
    with (
        nbd_servers.qemu_nbd(image, tmp_path) as address,
        contextlib.closing(nbd.Connection(address, bitmap=True)) as connection,
    ):
        assert not connection.has_bitmap
        with pytest.raises(errors.BitmapMissing, match="no dirty bitmap"):
            connection.extents(0, 1 * MiB, incremental=True)
        assert list(connection.extents(0, 1 * MiB, incremental=False)) == [Extent(0, 1 * MiB, dirty=True, zero=True)]


def test_two_bitmaps_are_not_guessed_between(image: Path, tmp_path: Path) -> None:
    """qemu-nbd cannot offer two, the storage daemon can."""
    nbd_servers.add_bitmap(image, "other", "--disable")
    subprocess.run(["qemu-img", "bitmap", "--disable", image, BITMAP], check=True)
    address = Address(str(tmp_path / "two.sock"), "sda")
    command = [
        "qemu-storage-daemon",
        f"--blockdev=driver=qcow2,node-name=disk,read-only=on,file.driver=file,file.filename={image}",
        f"--nbd-server=addr.type=unix,addr.path={address.path}",
        f"--export=type=nbd,id=e,node-name=disk,name=sda,bitmaps.0=other,bitmaps.1={BITMAP}",
    ]
    with nbd_servers.served(command, address), pytest.raises(errors.BitmapMissing, match="2 dirty bitmaps"):
        nbd.Connection(address, bitmap=True)


def test_the_ninth_connection_fails_in_time_and_the_rest_go_on(image: Path, tmp_path: Path) -> None:
    with nbd_servers.qemu_nbd(image, tmp_path) as address, contextlib.ExitStack() as stack:
        eight = [stack.enter_context(contextlib.closing(nbd.Connection(address))) for _ in range(8)]
        started = time.monotonic()
        with pytest.raises(errors.SourceGone, match=r"does not answer.*8 for vdsm"):
            nbd.Connection(address, handshake_timeout=0.3)
        assert time.monotonic() - started < 8
        eight[0].readinto(0, bytearray(GRAIN))


def test_a_storage_that_fails(tmp_path: Path) -> None:
    with (
        nbd_servers.nbdkit(
            tmp_path, "--filter=error", "memory", "10M", "error-pread=EIO", "error-pread-rate=100%"
        ) as address,
        contextlib.closing(nbd.Connection(address)) as connection,
    ):
        with pytest.raises(errors.ReadFailed, match=r"failed at bytes \d+ to \d+: Input/output error"):
            connection.readinto(1 * MiB, bytearray(8 * MiB))
        # All replies were taken in: the connection is where it should be.
        assert list(connection.extents(0, 10 * MiB, incremental=False)) == [Extent(0, 10 * MiB, True, True)]


def test_a_server_that_hangs(tmp_path: Path) -> None:
    with (
        nbd_servers.nbdkit(tmp_path, "--filter=delay", "memory", "1M", "delay-read=5") as address,
        contextlib.closing(nbd.Connection(address, timeout=0.2)) as connection,
        pytest.raises(errors.SourceGone, match="does not answer"),
    ):
        connection.readinto(0, bytearray(512))


def test_a_server_that_vanishes(tmp_path: Path) -> None:
    image = nbd_servers.qcow2(tmp_path / "disk.qcow2", 1 * MiB)
    with nbd_servers.qemu_nbd(image, tmp_path) as address:
        connection = nbd.Connection(address)
    with pytest.raises(errors.SourceGone):
        connection.readinto(0, bytearray(512))
    connection.close()
    connection.close()  # is allowed
    with pytest.raises(errors.SourceGone, match="cannot be reached: No such file"):
        nbd.Connection(address)


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.EACCES, errors.TicketRefused),
        (errno.EPERM, errors.TicketRefused),
        (errno.ECONNREFUSED, errors.SourceGone),
        (errno.ECONNRESET, errors.SourceGone),
    ],
)
def test_a_socket_that_cannot_be_connected(
    monkeypatch: pytest.MonkeyPatch, number: int, cls: type[errors.Error]
) -> None:
    """The kernel's answers; root, who runs the tests, is never denied a socket by its mode."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(cls, match=os.strerror(number)) as caught:
        nbd.Connection(Address("/run/vdsm/backup/x", "sda"))
    assert ("SELinux" in caught.value.hint) == (cls is errors.TicketRefused)


def test_an_export_that_is_not_there(image: Path, tmp_path: Path) -> None:
    with nbd_servers.qemu_nbd(image, tmp_path) as address, pytest.raises(errors.SourceGone, match="no such export"):
        nbd.Connection(address._replace(export="sdb"))


def test_many_small_extents_come_in_pages(tmp_path: Path) -> None:
    """nbdkit's extentlist filter tells of 512-byte extents, 4096 of them."""
    extents = tmp_path / "extents"
    extents.write_text(
        "".join(f"{start} 512 {'hole,zero' if start % 1024 else ''}\n" for start in range(0, 2 * MiB, 512))
    )
    with (
        nbd_servers.nbdkit(tmp_path, "--filter=extentlist", "memory", "2M", f"extentlist={extents}") as address,
        contextlib.closing(nbd.Connection(address)) as connection,
    ):
        found = list(connection.extents(0, 2 * MiB, incremental=False))
    assert found == [Extent(start, 512, True, bool(start % 1024)) for start in range(0, 2 * MiB, 512)]
