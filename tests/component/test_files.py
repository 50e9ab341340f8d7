"""
Single files out of a recovery point, with a real libguestfs: ext4 and XFS on LVM, FAT and NTFS in partitions.

The disk is that of a guest: its root has an /etc/fstab that mounts the others.
"""

from __future__ import annotations

import inspect
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockferry import errors
from blockferry.jobs import files
from blockferry.jobs.files import Guest
from blockferry.jobs.progress import Silent
from blockferry.repository import Manifest, Repository, layout
from blockferry_agent.blocks import Block
from blockferry_agent.units import KiB, MiB
from tests.lab import cache, guestfish
from tests.unit import repository_images as images

WINDOW = 256 * KiB
LETTER = "Nobody wants backups, everybody wants restores.\n"
MOMENT = 1_700_000_000
ODD = b"a b'c\"d\ne\xff"
ODD_QUOTED = "".join(f"\\x{byte:02x}" for byte in ODD)
SPARSE = 40 * MiB
NOISE = random.Random(7).randbytes(4 * WINDOW)

SCRIPT = rf"""
sparse {{image}} 460M
run
part-init /dev/sda gpt
part-add /dev/sda p 2048 67583
part-add /dev/sda p 67584 901119
part-add /dev/sda p 901120 -2048
mkfs vfat /dev/sda1 label:EFI
mkfs ntfs /dev/sda3 label:data
pvcreate /dev/sda2
vgcreate vg0 /dev/sda2
lvcreate root vg0 60
lvcreate home vg0 320
mkfs ext4 /dev/vg0/root
mkfs xfs /dev/vg0/home
mount /dev/vg0/root /
mkdir /etc
mkdir /bin
mkdir /home
mkdir /boot
write /etc/fstab "/dev/vg0/root / ext4 defaults 0 1\n/dev/vg0/home /home xfs defaults 0 2\nLABEL=EFI /boot vfat ro 0 0\n"
write /etc/os-release "ID=debian\nVERSION_ID=\"12\"\n"
write /etc/shadow "root:!:1::::::\n"
chmod 0600 /etc/shadow
mount /dev/vg0/home /home
mkdir /home/ann
write /home/ann/letter "{LETTER.strip()}\n"
chown 1000 1001 /home/ann/letter
chmod 0640 /home/ann/letter
utimens /home/ann/letter {MOMENT} 0 {MOMENT} 500000000
write "/home/ann/{ODD_QUOTED}" "odd"
upload {{noise}} /home/ann/noise
ln-s /etc/shadow /home/ann/link
ln /home/ann/letter /home/ann/same
mkdir /home/ann/closed
chmod 02750 /home/ann/closed
write /home/ann/closed/inside "inside"
touch /home/ann/sparse
truncate-size /home/ann/sparse {SPARSE}
fallocate64 /home/ann/preallocated {MiB}
chown 1000 1001 /home/ann
umount-all
mount /dev/sda1 /
mkdir-p /EFI/BOOT
write /EFI/BOOT/BOOTX64.EFI "loader"
umount-all
mount /dev/sda3 /
write /report.txt "figures"
umount-all
"""


class Site(NamedTuple):
    """A repository with a point of the disk. installed: guestfish."""

    repository: Repository
    point: Manifest
    directory: Path
    installed: guestfish.Installed


@pytest.fixture(scope="module")
def disk() -> Path:
    """The disk, which takes twenty seconds to make, once for all runs."""

    def build(directory: Path) -> None:
        with guestfish.installed() as installed:
            image, noise = installed.temporary / "disk", installed.temporary / "noise"
            noise.write_bytes(NOISE)
            guestfish.run_script(SCRIPT.format(image=image, noise=noise))
            subprocess.run(["cp", "--sparse=always", image, directory / "disk"], check=True)

    return cache.entry("files-disk", [SCRIPT.encode(), inspect.getsource(build).encode()], build) / "disk"


@pytest.fixture(scope="module")
def site(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("files")
    repository = Repository.init(str(directory / "r"), WINDOW)
    point = images.back_up(repository, blocks(disk), disk.stat().st_size)
    (directory / "config.toml").write_text(f"""
state = "{directory}/state"
[engine]
url = "https://localhost:1/ovirt-engine/api"
username = "admin@internal"
ca_file = "ca.pem"
[repository]
url = "r"
""")
    with guestfish.installed() as installed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{installed.path}:{os.environ['PATH']}")
        patch.setattr(tempfile, "tempdir", str(installed.temporary))
        yield Site(repository, point, directory, installed)


@pytest.fixture(scope="module")
def guest(site: Site) -> Iterator[Guest]:
    """
    One look into the point, with what the guest mounts: both take long without KVM. Whoever mounts something else comes
    later.
    """
    with files.opened(site.repository, site.point, [], Silent()) as guest:
        guest.mount(None)
        yield guest


def blocks(path: Path) -> Iterator[Block]:
    """Generate the blocks of a sparse file."""
    with path.open("rb") as file:
        size, position = path.stat().st_size, 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            except OSError:
                start = end = size
            if start > position:
                yield images.zero(position, start - position)
            while start < end:
                length = min(end, (start // WINDOW + 1) * WINDOW) - start
                yield images.data(start, os.pread(file.fileno(), length, start))
                start += length
            position = end


def test_file_systems_are_found_and_where_the_guest_mounts_them(guest: Guest) -> None:
    found = {place.name: (place.kind, place.label, place.path) for place in guest.places()}
    assert found == {
        "/dev/sda1": ("vfat", "EFI", "/boot"),
        "/dev/sda3": ("ntfs", "data", None),
        "/dev/vg0/root": ("ext4", "", "/"),
        "/dev/vg0/home": ("xfs", "", "/home"),
    }
    assert {place.name: place.size for place in guest.places()}["/dev/vg0/root"] == 60 * MiB


def test_a_directory_is_listed(guest: Guest) -> None:
    listed = {entry.name: entry for entry in guest.listing("/home/ann")}
    assert set(listed) == {
        "letter",
        "same",
        "link",
        "closed",
        "sparse",
        "preallocated",
        "noise",
        os.fsdecode(ODD),
    }
    letter = listed["letter"]
    assert (letter.mode, letter.uid, letter.gid, letter.size) == ("-rw-r-----", 1000, 1001, len(LETTER))
    assert letter.mtime == MOMENT + 0.5
    assert (listed["link"].mode[0], listed["link"].target) == ("l", "/etc/shadow")
    assert listed["closed"].mode == "drwxr-s---"
    assert listed["sparse"].size == SPARSE
    assert [entry.name for entry in guest.listing("home/ann/letter")] == ["letter"]
    assert [entry.name for entry in guest.listing("/home/../boot/EFI")] == ["BOOT"]


def test_a_directory_comes_back_as_it_was(guest: Guest, tmp_path: Path) -> None:
    fetched = guest.fetch("/home/ann", tmp_path / "out")
    ann = tmp_path / "out/ann"
    assert fetched.path == str(ann)
    assert list((tmp_path / "out").iterdir()) == [ann]
    assert (ann.stat().st_uid, ann.stat().st_gid) == (1000, 1001)
    letter = ann / "letter"
    assert letter.read_text() == LETTER
    status = letter.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o640)
    assert status.st_mtime == MOMENT + 0.5
    assert (ann / "same").samefile(letter)
    assert (ann / "link").readlink() == Path("/etc/shadow")
    assert stat.S_IMODE((ann / "closed").stat().st_mode) == 0o2750
    assert (ann / "closed/inside").read_text() == "inside"
    assert (ann / os.fsdecode(ODD)).read_text() == "odd"
    assert (ann / "sparse").stat().st_size == SPARSE
    assert (ann / "preallocated").read_bytes() == bytes(MiB)


def test_a_file_and_a_link_come_back_as_they_were(guest: Guest, tmp_path: Path) -> None:
    guest.fetch("/home/ann/letter", tmp_path)
    status = (tmp_path / "letter").stat()
    assert (tmp_path / "letter").read_text() == LETTER
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o640)
    assert status.st_mtime == MOMENT + 0.5
    guest.fetch("/home/ann/link", tmp_path)
    assert (tmp_path / "link").readlink() == Path("/etc/shadow"), "the link, not what it means here or there"
    for name in ("letter", "link"):
        with pytest.raises(errors.Conflict, match="is there already"):
            guest.fetch(f"/home/ann/{name}", tmp_path)
    with pytest.raises(errors.NotFound, match="has no /home/bob"):
        guest.fetch("/home/bob", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter", "link"]


def test_an_archive_has_owners_modes_and_times(guest: Guest) -> None:
    output = io.BytesIO()
    guest.archive("/home/ann", output)
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        letter = next(member for member in archive if member.isreg() and member.size == len(LETTER))
        assert (letter.uid, letter.gid, letter.mode) == (1000, 1001, 0o640)
    output = io.BytesIO()
    guest.archive("/home/ann/letter", output)
    assert len(output.getvalue()) % tarfile.RECORDSIZE == 0, "tar would hang up at the end of the record before"
    output.seek(0)
    with tarfile.open(fileobj=output) as archive:
        (letter,) = archive
        assert (letter.name, letter.uid, letter.mtime) == ("letter", 1000, MOMENT + 0.5)
        content = archive.extractfile(letter)
        assert content is not None
        assert content.read() == LETTER.encode()


def test_what_cannot_be_looked_into_is_said(guest: Guest) -> None:
    with pytest.raises(errors.NotFound, match="has no /nowhere"):
        guest.listing("/nowhere")
    with pytest.raises(errors.NotFound):
        guest.listing("/a\0b")
    with pytest.raises(errors.NotFound, match="no file system /dev/sdz1"):
        guest.mount("/dev/sdz1")


@pytest.mark.parametrize(
    ("name", "path", "content"),
    [("/dev/sda1", "/EFI/BOOT/BOOTX64.EFI", "loader"), ("/dev/sda3", "report.txt", "figures")],
    ids=["FAT", "NTFS"],
)
def test_one_file_system_alone(guest: Guest, tmp_path: Path, name: str, path: str, content: str) -> None:
    guest.mount(name)
    assert Path(guest.fetch(path, tmp_path).path).read_text() == content


def test_as_it_is_typed(site: Site, tmp_path: Path) -> None:
    """And a damaged chunk: what needs it does not come back, and nothing of it is left."""

    def blockferry(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).parent / "blockferry", "--config", site.directory / "config.toml", *words],
            env={**os.environ, "TMPDIR": str(site.installed.temporary)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    # One by its name: to find out what the guest mounts takes long without KVM.
    own = ("--filesystem", "/dev/vg0/home", "-q")
    done = blockferry("files", "get", "web", "latest", "/ann/letter", "--to", str(tmp_path), *own)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"/ann/letter is in {tmp_path}/letter.\n", "")
    assert (tmp_path / "letter").read_text() == LETTER

    image = b"".join(
        bytes(piece.length) if piece.data is None else bytes(piece.data)
        for piece in site.repository.disk(site.point, images.DISK).read()
    )
    # A window of nothing but the file's content.
    place = image.find(NOISE[:512]) // WINDOW * WINDOW + 2 * WINDOW
    (entry,) = site.repository.disk(site.point, images.DISK).entries(place, 1)
    chunk = Path(site.repository.url, layout.chunk(entry.chunk))
    content = chunk.read_bytes()
    chunk.write_bytes(content[:-1])
    try:
        done = blockferry("files", "get", "web", "latest", "/ann/noise", "--to", str(tmp_path / "new"), *own)
    finally:
        chunk.write_bytes(content)
    assert done.returncode == 9
    assert "/ann/noise cannot be read: Chunk" in done.stderr
    assert chunk.name in done.stderr
    assert not list((tmp_path / "new").glob("*"))


def test_without_guestfish_it_is_said_how_to_get_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with (
        pytest.raises(errors.RestoreError, match="apt install guestfish"),
        files.opened(site.repository, site.point, [], Silent()),
    ):
        pass


def test_a_full_target_is_said(guest: Guest) -> None:
    """The last test: it ends the appliance."""

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(errors.RestoreError, match="The archive cannot be written: No space left on device"):
        guest.archive("/", Full())
