"""Who reads the disk: ours and its peers, each from the NBD server to where nothing is kept."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence

import xxhash
from ovirt_imageio import client

# What its `download` consists of: with the whole of it the data goes to a file, and that is measured too.
from ovirt_imageio._internal.backends import http as imageio_http
from ovirt_imageio.client import _io as imageio_io

from blockferry_agent import nbd, reader
from blockferry_agent.blocks import Kind, ReadRequest
from blockferry_agent.units import GiB, MiB
from tests.bench.race import Contender, Unavailable
from tests.bench.stage import Stage
from tests.component import nbd_servers
from tests.lab import processes

IMAGEIO = "Image I/O's client to a file"
IMAGEIO_NULL = "Image I/O's client to null"
NBDCOPY = "nbdcopy to null"
OURS = ("netcat, clear text", "netcat", "grpc", "ssh", "imageio")

# Longer than anything takes that does not hang.
TIMEOUT = 300.0


def all_of(stage: Stage) -> list[Contender]:
    """Return those that read a whole disk."""
    uri = nbd_servers.uri(stage.address)
    return [
        Contender(NBDCOPY, lambda: _command("nbdcopy", uri, "null:")),
        Contender("nbdcopy, 4 connections, 64 requests of 256 KiB", lambda: _command(*_tuned_nbdcopy(uri))),
        Contender("qemu-img convert to null", lambda: _command(*_qemu_img(uri, stage.size))),
        Contender("ssh + cat of the raw image", lambda: _ssh_cat(stage)),
        Contender("netcat (nc) of the raw image", lambda: _nc(stage)),
        *(_imageio_contender(stage, IMAGEIO, _download, workers) for workers in (1, 2, 4, 8)),
        *(_imageio_contender(stage, IMAGEIO_NULL, _imageio_client, workers) for workers in (1, 2, 4, 8)),
        Contender("ours: read and hash, in the agent", lambda: _read_and_hash(stage), 0.9, NBDCOPY),
        Contender("ours: netcat, clear text", lambda: _ours(stage, "netcat, clear text"), 0.8, NBDCOPY),
        Contender("ours: netcat", lambda: _ours(stage, "netcat"), 2.5, IMAGEIO_NULL),
        Contender("ours: grpc", lambda: _ours(stage, "grpc"), 2.5, IMAGEIO_NULL),
        Contender("ours: ssh", lambda: _ours(stage, "ssh"), 1.0, IMAGEIO_NULL),
        Contender("ours: imageio", lambda: _ours(stage, "imageio")),
    ]


def incremental(stage: Stage, dirty: int) -> list[Contender]:
    """Return those that read what has changed, `dirty` bytes, of a disk whose export has a bitmap."""
    return [
        *(
            Contender(
                f"{IMAGEIO_NULL}, {workers} workers", lambda workers=workers: _imageio_client(stage, workers, True)
            )
            for workers in (1, 4)
        ),
        *(
            Contender(f"ours: {name}", lambda name=name: _ours(stage, name, dirty), 1.0, IMAGEIO_NULL)
            for name in ("netcat", "grpc")
        ),
    ]


def _imageio_contender(stage: Stage, name: str, run: Callable[[Stage, int], float], workers: int) -> Contender:
    return Contender(f"{name}, {workers} workers", lambda: run(stage, workers))


def _command(*words: str) -> float:
    if shutil.which(words[0]) is None:
        raise Unavailable(f"{words[0]} is not installed")
    with _timed() as took:
        subprocess.run(words, check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)
    return took[0]


def _tuned_nbdcopy(uri: str) -> Sequence[str]:
    return ("nbdcopy", "--connections=4", "--requests=64", "--request-size=262144", uri, "null:")


def _qemu_img(uri: str, size: int) -> Sequence[str]:
    null = json.dumps({"driver": "raw", "file": {"driver": "null-co", "size": size}})
    return ("qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", uri, f"json:{null}")


def _ssh_cat(stage: Stage) -> float:
    way = stage.sshd.way(stage.directory / "none")
    known = stage.directory / "known_hosts"
    known.write_text(f"[127.0.0.1]:{stage.sshd.port} {way.host_key}\n")
    command = ["ssh", "-F", "/dev/null", "-p", str(stage.sshd.port), "-i", str(stage.sshd.client_key)]
    command += [
        "-o",
        f"UserKnownHostsFile={known}",
        "-o",
        "BatchMode=yes",
        "-l",
        way.user,
        "127.0.0.1",
        f"cat {stage.image}",
    ]
    return _drained(command)


def _nc(stage: Stage) -> float:
    if shutil.which("nc") is None:
        raise Unavailable("nc is not installed (netcat-openbsd)")
    port = str(processes.free_port())
    with (
        stage.image.open("rb") as image,
        subprocess.Popen(["nc", "-N", "-l", "127.0.0.1", port], stdin=image) as server,
    ):
        try:
            processes.wait_for("nc to listen", lambda: _listens(port))
            return _drained(["nc", "-d", "127.0.0.1", port])
        finally:
            server.kill()


def _listens(port: str) -> bool:
    """Look without connecting: nc serves one client only."""
    wanted = f":{int(port):04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        return any(line.split()[1].endswith(wanted) and line.split()[3] == "0A" for line in list(table)[1:])


def _drained(command: Sequence[str]) -> float:
    with _timed() as took:
        subprocess.run(command, check=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return took[0]


class _Null:
    """A place for Image I/O's client to write to, which keeps nothing."""

    def clone(self) -> _Null:
        return _Null()

    def seek(self, position: int) -> None: ...

    def write(self, data: memoryview) -> int:
        return len(data)

    def zero(self, length: int) -> int:
        return length

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _download(stage: Stage, workers: int) -> float:
    """As ovirt-img does it: into a raw file, here in memory, which a qemu-nbd of its own writes."""
    target = stage.image.with_name("download.raw")
    with _as_from_elsewhere(), _timed() as took:
        client.download(stage.imageio_url, str(target), stage.ca_file, fmt="raw", max_workers=workers)
    target.unlink()
    return took[0]


def _imageio_client(stage: Stage, workers: int, incremental: bool = False) -> float:
    with (
        _as_from_elsewhere(),
        _timed() as took,
        client._api._open_http(stage.imageio_url, "r", cafile=stage.ca_file) as source,
    ):
        if source.max_readers < workers:
            raise Unavailable(f"Image I/O allows {source.max_readers} readers")
        imageio_io.copy(source, _Null(), dirty=incremental, max_workers=workers, zero=False, hole=False)
    return took[0]


@contextlib.contextmanager
def _as_from_elsewhere() -> Iterator[None]:
    """Keep Image I/O's client from going over the host's Unix socket without TLS, which it can do only on the host."""
    local = imageio_http.HTTPSConnection.is_local
    imageio_http.HTTPSConnection.is_local = lambda self: False
    try:
        yield
    finally:
        imageio_http.HTTPSConnection.is_local = local


def _read_and_hash(stage: Stage) -> float:
    request = ReadRequest(0, stage.size, False, MiB)
    with _timed() as took, reader.read(lambda: nbd.Connection(stage.address), request, workers=4) as reading:
        covered = sum(block.length for block in reading)
    assert covered == stage.size
    return took[0]


def _ours(stage: Stage, name: str, dirty: int = 0) -> float:
    """
    Read through one of our transports, and check every block as a repository would.

    dirty: bytes that have changed, of an incremental reading; 0 to read all.
    """
    moved = 0
    with _as_from_elsewhere(), contextlib.closing(stage.transport(name).open(stage.target)) as disk, _timed() as took:
        covered = 0
        for start in range(0, stage.size, step := 64 * GiB if dirty else GiB):
            request = ReadRequest(start, min(step, stage.size - start), bool(dirty), MiB)
            with contextlib.closing(disk.read(request)) as reading:
                for block in reading:
                    assert dirty or block.start == covered
                    covered = block.end
                    moved += block.length if block.kind is Kind.DATA else 0
                    assert block.kind is not Kind.DATA or xxhash.xxh3_128_digest(block.data) == block.digest
    assert moved == dirty if dirty else covered == stage.size
    return took[0]


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    took: list[float] = []
    began = time.monotonic()
    yield took
    took.append(time.monotonic() - began)
