"""Recovery points served over NBD, to the clients that people use."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from blockferry import errors
from blockferry.jobs import serve
from blockferry.jobs.serve import Served, TcpPort, UnixSocket
from blockferry.repository import Manifest, Repository
from blockferry_agent import nbd
from blockferry_agent.nbd import Address
from blockferry_agent.units import KiB, MiB
from tests.unit import repository_images

_random = random.Random(5)
SIZE = 12 * MiB + 512
CONTENT = (
    _random.randbytes(3 * MiB)
    + bytes(2 * MiB)
    + _random.randbytes(100 * KiB)
    + bytes(4 * MiB - 100 * KiB)
    + _random.randbytes(3 * MiB + 512)
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.init(str(tmp_path_factory.mktemp("served") / "repository"))


@pytest.fixture(scope="module")
def point(repository: Repository) -> Manifest:
    return repository_images.full(repository, CONTENT)


@pytest.fixture
def served(repository: Repository, point: Manifest, tmp_path: Path) -> Iterator[Served]:
    with serve.serving(repository, point, [], UnixSocket(tmp_path / "s"), None, 8 * MiB, 4 * MiB) as (only,):
        yield only


@pytest.fixture
def writable(repository: Repository, point: Manifest, tmp_path: Path) -> Iterator[Served]:
    with serve.serving(repository, point, [], UnixSocket(tmp_path / "s"), tmp_path, 8 * MiB, 4 * MiB) as (only,):
        yield only


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def test_nbdinfo_knows_the_export(served: Served) -> None:
    (export,) = json.loads(run("nbdinfo", "--json", served.uri))["exports"]
    assert (export["export-name"], export["export-size"]) == ("system", SIZE)
    assert export["is_read_only"] and export["can_multi_conn"] and export["can_df"]
    assert export["contexts"] == ["base:allocation"]
    listed = json.loads(run("nbdinfo", "--json", "--list", served.uri))
    assert [one["export-name"] for one in listed["exports"]] == ["system"]


def test_zeros_are_told_without_being_fetched(served: Served) -> None:
    extents = json.loads(run("nbdinfo", "--json", "--map", served.uri))
    zeros = [(extent["offset"], extent["length"]) for extent in extents if extent["type"] == 3]
    assert (3 * MiB, 2 * MiB) in zeros
    assert sum(extent["length"] for extent in extents) == SIZE


def test_any_range_reads_as_it_was(served: Served) -> None:
    with nbd_client(served) as handle:

        @settings(max_examples=60, deadline=None)
        @given(st.integers(0, SIZE - 1), st.integers(1, 2 * MiB))
        def check(start: int, length: int) -> None:
            length = min(length, SIZE - start)
            buffer = bytearray(length)
            handle.readinto(start, memoryview(buffer))
            assert buffer == CONTENT[start : start + length]

        check()


def nbd_client(served: Served) -> contextlib.closing[nbd.Connection]:
    return contextlib.closing(nbd.Connection(Address(socket_of(served), served.export)))


def socket_of(served: Served) -> str:
    return served.uri.split("socket=")[1]


def test_the_disk_answers_to_its_id_and_to_no_name(served: Served) -> None:
    for name in (served.disk_id, ""):
        nbd.Connection(Address(socket_of(served), name)).close()
    with pytest.raises(errors.Error):
        nbd.Connection(Address(socket_of(served), "other"))


def test_what_is_written_is_read_again_and_the_point_stays(
    writable: Served, repository: Repository, point: Manifest
) -> None:
    commands = ("write -P 0x5a 100k 300k", "write -z 1M 70k", "discard 6M 1M", "write -P 0x11 12M 512", "flush")
    run("qemu-io", "-f", "raw", *(word for command in commands for word in ("-c", command)), writable.uri)
    expected = bytearray(CONTENT)
    expected[100 * KiB : 400 * KiB] = b"\x5a" * (300 * KiB)
    expected[1 * MiB : 1 * MiB + 70 * KiB] = bytes(70 * KiB)
    expected[6 * MiB : 7 * MiB] = bytes(1 * MiB)
    expected[12 * MiB :] = b"\x11" * 512
    assert subprocess.run(["nbdcopy", writable.uri, "-"], check=True, capture_output=True).stdout == expected
    assert repository_images.restore(repository, point) == CONTENT


def test_tls_takes_clients_of_the_same_authority_only(repository: Repository, point: Manifest, tmp_path: Path) -> None:
    ours, other = trustme.CA(), trustme.CA()
    server = certificates(tmp_path / "server", ours, ours, "server")
    with serve.serving(repository, point, [], TcpPort("127.0.0.1", 0, server), None, MiB, 0) as (only,):
        good = certificates(tmp_path / "client", ours, ours, "client")
        assert run("nbdinfo", "--size", f"{only.uri}?tls-certificates={good}").strip() == str(SIZE)
        copied = subprocess.run(
            ["nbdcopy", f"{only.uri}?tls-certificates={good}", "-"], check=True, capture_output=True, timeout=30
        ).stdout
        assert copied == CONTENT
        bad = certificates(tmp_path / "foreign", ours, other, "client")
        for uri in (f"{only.uri}?tls-certificates={bad}", only.uri.replace("nbds:", "nbd:")):
            assert subprocess.run(["nbdinfo", uri], capture_output=True, timeout=30, check=False).returncode != 0


def certificates(directory: Path, trusted: trustme.CA, issuer: trustme.CA, role: str) -> Path:
    directory.mkdir()
    issued = issuer.issue_cert("127.0.0.1", "localhost")
    trusted.cert_pem.write_to_path(directory / "ca-cert.pem")
    issued.cert_chain_pems[0].write_to_path(directory / f"{role}-cert.pem")
    issued.private_key_pem.write_to_path(directory / f"{role}-key.pem")
    return directory


REQUEST = struct.Struct(">IHHQQI")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["greeting", "option", "request"]))
def test_no_client_breaks_the_server(hostile: Served, garbage: bytes, stage: str) -> None:
    """Garbage at each stage, then it hangs up: others are served as before."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(socket_of(hostile))
        client.recv(18)
        if stage != "greeting":
            client.sendall(struct.pack(">I", 3))
        if stage == "request":
            client.sendall(struct.pack(">8sII", b"IHAVEOPT", 1, 0))
            client.recv(10)
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR)
        # It hangs up with what it did not read, which the system tells as a reset.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while client.recv(65536):
                pass
    with nbd_client(hostile):
        pass


@pytest.fixture(scope="module")
def hostile(repository: Repository, point: Manifest) -> Iterator[Served]:
    with serve.serving(repository, point, [], UnixSocket(None), None, 8 * MiB, 0) as (only,):
        yield only


@pytest.mark.parametrize(
    ("command", "start", "length", "error"),
    [(0, SIZE, 1, 22), (0, 2**64 - 1, 2, 22), (0, 0, 33 * MiB, 22), (0, 0, 0, 22), (4, 0, 512, 1), (99, 0, 1, 22)],
)
def test_bad_requests_are_refused_and_the_next_is_answered(
    hostile: Served, command: int, start: int, length: int, error: int
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(socket_of(hostile))
        client.recv(18)
        client.sendall(struct.pack(">I", 3) + struct.pack(">8sII", b"IHAVEOPT", 1, 0))
        assert struct.unpack(">QH", client.recv(10, socket.MSG_WAITALL))[0] == SIZE
        client.sendall(REQUEST.pack(0x25609513, 0, command, 7, start, length))
        assert struct.unpack(">IIQ", client.recv(16, socket.MSG_WAITALL)) == (0x67446698, error, 7)
        client.sendall(REQUEST.pack(0x25609513, 0, 0, 8, 0, 512))
        assert struct.unpack(">IIQ", client.recv(16, socket.MSG_WAITALL)) == (0x67446698, 0, 8)
        assert client.recv(512, socket.MSG_WAITALL) == CONTENT[:512]


def test_a_socket_that_is_in_use_is_not_taken(served: Served, repository: Repository, point: Manifest) -> None:
    with (
        pytest.raises(errors.Conflict, match="already"),
        serve.serving(repository, point, [], UnixSocket(Path(socket_of(served))), None, MiB, 0),
    ):
        pass


def test_the_command_says_where_and_ends_well_with_ctrl_c(
    repository: Repository, point: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").touch()
    configuration = tmp_path / "config.toml"
    configuration.write_text(
        f'[engine]\nurl = "https://engine.example/ovirt-engine/api"\nusername = "admin@internal"\n'
        f'ca_file = "{tmp_path / "ca.pem"}"\n[repository]\nurl = "{repository.url}"\n'
    )
    command: list[str | Path] = [Path(sys.executable).with_name("blockferry"), "--config", configuration]
    path = tmp_path / "nbd.sock"
    with subprocess.Popen([*command, "serve", "web", "--socket", path, "--json"], stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            (only,) = json.loads(program.stdout.readline())
            assert only["size"] == SIZE
            assert run("nbdinfo", "--size", only["uri"]).strip() == str(SIZE)
            assert path.stat().st_mode & 0o777 == 0o600
            program.send_signal(signal.SIGINT)
            assert program.wait(timeout=10) == 0
        finally:
            program.kill()
    assert not path.exists()
