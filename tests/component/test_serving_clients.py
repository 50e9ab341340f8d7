"""
Served points and the clients that people use: nbdinfo, nbdcopy, nbdsh, qemu-img, guestfish; over a unix socket and TLS.

A booting QEMU is another one: `tests/e2e/restore/test_drills.py`.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from blockferry.jobs import serve
from blockferry.jobs.serve import TcpPort, UnixSocket
from blockferry.repository import Manifest, Repository
from blockferry_agent.units import MiB
from tests.component.served import nbdsh
from tests.lab import guestfish, processes
from tests.unit import repository_images

LETTER = b"Nobody wants backups, everybody wants restores.\n" * 1000


class Way(NamedTuple):
    """How the disk is reached. uri: for libnbd.  image: for qemu-img, as options."""

    uri: str
    image: str


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file system with a letter of user 1000, in a raw file."""
    directory = tmp_path_factory.mktemp("image")
    tree = directory / "tree"
    tree.mkdir()
    (tree / "letter").write_bytes(LETTER)
    (tree / "noise").write_bytes(random.Random(3).randbytes(5 * MiB))
    path = directory / "disk.raw"
    processes.run("mke2fs", "-q", "-t", "ext4", "-E", "root_owner=1000:1000", "-d", tree, path, "24M")
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.init(str(tmp_path_factory.mktemp("served") / "repository"))


@pytest.fixture(scope="module")
def point(repository: Repository, image: Path) -> Manifest:
    return repository_images.full(repository, image.read_bytes())


@pytest.fixture(params=["unix", "tls"])
def way(request: pytest.FixtureRequest, repository: Repository, point: Manifest, tmp_path: Path) -> Iterator[Way]:
    if request.param == "unix":
        place = UnixSocket(tmp_path / "nbd.sock")
        with serve.serving(repository, point, [], place, None, 8 * MiB, 4 * MiB) as (only,):
            yield Way(only.uri, f"driver=nbd,server.type=unix,server.path={place.path},export={only.export}")
        return
    authority = trustme.CA()
    server, client = (certificates(tmp_path / role, authority, role) for role in ("server", "client"))
    with serve.serving(repository, point, [], TcpPort("127.0.0.1", 0, server), None, 8 * MiB, 4 * MiB) as (only,):
        port = only.uri.split("/")[2].split(":")[1]
        where = f"server.type=inet,server.host=127.0.0.1,server.port={port}"
        yield Way(
            f"{only.uri}?tls-certificates={client}",
            f"driver=nbd,{where},export={only.export},tls-creds=tls,dir={client}",
        )


def certificates(directory: Path, authority: trustme.CA, role: str) -> Path:
    directory.mkdir()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(directory / "ca-cert.pem")
    issued.cert_chain_pems[0].write_to_path(directory / f"{role}-cert.pem")
    issued.private_key_pem.write_to_path(directory / f"{role}-key.pem")
    return directory


def qemu_img(verb: str, way: Way, *words: str | Path) -> str:
    image, _, directory = way.image.partition(",dir=")
    secret = ("--object", f"tls-creds-x509,id=tls,endpoint=client,dir={directory}") if directory else ()
    return processes.run("qemu-img", verb, *secret, "--image-opts", image, *words)


def test_nbdinfo(way: Way, image: Path) -> None:
    (export,) = json.loads(processes.run("nbdinfo", "--json", way.uri))["exports"]
    assert (export["export-size"], export["is_read_only"]) == (image.stat().st_size, True)
    extents = json.loads(processes.run("nbdinfo", "--json", "--map", way.uri))
    assert sum(extent["length"] for extent in extents) == image.stat().st_size
    assert {extent["type"] for extent in extents} == {0, 3}


def test_nbdcopy(way: Way, image: Path, tmp_path: Path) -> None:
    processes.run("nbdcopy", way.uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()


def test_nbdsh(way: Way, image: Path) -> None:
    nbdsh(
        way.uri,
        f"""
content = open({str(image)!r}, "rb").read()
assert h.get_size() == len(content)
for start in range(0, len(content), 1234567):
    length = min(54321, len(content) - start)
    assert h.pread(length, start) == content[start : start + length]
parts = []
whole = h.pread_structured(1 << 20, 0, lambda data, start, kind, error: parts.append(start), nbd.CMD_FLAG_DF)
assert (whole, parts) == (content[: 1 << 20], [0])
""",
    )


def test_qemu_img(way: Way, image: Path, tmp_path: Path) -> None:
    raw = f"driver=raw,file.driver=file,file.filename={image}"
    qemu_img("compare", way, raw)
    qemu_img("convert", way, "-O", "qcow2", tmp_path / "copy.qcow2")
    processes.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", tmp_path / "copy.qcow2", image)
    mapped = json.loads(qemu_img("map", way, "--output=json"))
    data = sum(extent["length"] for extent in mapped if extent["data"])
    assert data < 24 * MiB
    for extent in mapped:
        if extent["zero"]:
            with image.open("rb") as file:
                file.seek(extent["start"])
                assert not any(file.read(extent["length"]))


def test_guestfish(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    """Finds the file system, its files and their owners. Clear text on loopback, because it is in a root of its own."""
    with serve.serving(repository, point, [], TcpPort("127.0.0.1", 0, None), None, 8 * MiB, 4 * MiB) as (only,):
        commands = ("cat", "/letter", ":", "statns", "/", ":", "checksum", "md5", "/noise")
        said = guestfish.run("--ro", "--format=raw", "-a", only.uri, "-m", "/dev/sda", *commands)
    noise = subprocess.run(["md5sum"], input=random.Random(3).randbytes(5 * MiB), capture_output=True, check=True)
    assert said.startswith(LETTER.decode())
    assert "st_uid: 1000\n" in said
    assert said.rstrip().endswith(noise.stdout.decode().split()[0])
