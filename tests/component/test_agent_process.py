"""The agent as a process: how it starts, stops, and refuses to start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from blockferry_agent import __main__ as program
from blockferry_agent import __version__
from blockferry_agent.units import MiB
from blockferry_proto import agent_pb2, agent_pb2_grpc
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.lab import processes

COMMAND = [sys.executable, "-m", "blockferry_agent"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


def run(configuration: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "--config", configuration], capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_from_when_its_pid_file_is_there_until_a_signal(host: Host, number: int) -> None:
    pid_file = host.directory / "agent.pid"
    path = host.directory / "agent.sock"
    configuration = host.configuration(listen=[f"unix:{path}"], pid_file="agent.pid")
    process = subprocess.Popen([*COMMAND, "--config", configuration], stderr=subprocess.PIPE, text=True)
    try:
        processes.wait_for("the pid file", pid_file.exists, timeout=20)
        assert pid_file.read_text() == f"{process.pid}\n"
        with grpc.insecure_channel(f"unix:{path}") as channel:
            reply = agent_pb2_grpc.AgentStub(channel).Describe(agent_pb2.DescribeRequest(), timeout=5)
        assert reply.resident_bytes < 150 * 1024 * 1024
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert time.monotonic() - started < 20
        assert not pid_file.exists()
        assert process.stderr is not None
        log = process.stderr.read()
        assert "serving at unix:" in log
        assert "stopping" in log
        assert "Traceback" not in log
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_it_ends_for_an_upgrade_when_it_reads_nothing(host: Host, tmp_path: Path) -> None:
    """Asked while it reads, it goes on as if nothing had been said; systemd hears when it serves and when it stops."""
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(range(256)) * 4096 * 64)
    path = tmp_path / "agent.sock"
    log = tmp_path / "agent.log"
    configuration = host.configuration(listen=[f"unix:{path}"], socket_mode="0660")
    with (
        nbd_servers.qemu_nbd(raw, host.directory, format="raw") as address,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        process = subprocess.Popen(
            [*COMMAND, "--config", configuration, "--log", log],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            assert systemd.recv(100) == b"READY=1"
            assert path.stat().st_mode & 0o777 == 0o660
            with grpc.insecure_channel(f"unix:{path}") as channel:
                request = agent_pb2.ReadBlocksRequest(ticket=host.ticket(address, 64 * MiB), window_bytes=MiB)
                call = agent_pb2_grpc.AgentStub(channel).ReadBlocks(request, timeout=30)
                next(call)
                process.send_signal(signal.SIGUSR1)
                processes.wait_for("its answer", lambda: "goes on: it reads" in log.read_text(), timeout=10)
                assert list(call)[-1].summary.dirty_bytes == 64 * MiB
            deadline = time.monotonic() + 10
            while process.poll() is None:
                assert time.monotonic() < deadline, "it never ends"
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.1)
            assert process.returncode == 0
            assert systemd.recv(100) == b"STOPPING=1"
        finally:
            process.kill()
            process.wait()


def test_log_is_bounded_and_takes_stderr_along(host: Host, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_bytes(b"old\n" * (program.LOG_SIZE // 4))
    configuration = host.configuration(listen=[f"unix:{tmp_path}/agent.sock"], pid_file=str(tmp_path / "agent.pid"))
    process = subprocess.Popen([*COMMAND, "--config", configuration, "--log", log])
    try:
        processes.wait_for("the pid file", (tmp_path / "agent.pid").exists, timeout=20)
        processes.wait_for("the log", lambda: "serving at unix:" in log.read_text(), timeout=20)
        assert log.stat().st_size < 1024
        assert (tmp_path / "agent.log.1").stat().st_size == program.LOG_SIZE
        assert Path(f"/proc/{process.pid}/fd/2").readlink() == log
    finally:
        process.kill()
        process.wait()


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    command = [*COMMAND, "--config", "agent.json", "--log", tmp_path / "absent" / "agent.log"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert f"the log {tmp_path}/absent/agent.log cannot be written: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_version() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"{__version__}\n"


def test_a_port_that_is_taken(host: Host) -> None:
    with host.serving() as address:
        done = run(host.configuration(listen=[address]))
    assert done.returncode == 1
    assert f"The agent cannot listen at {address}." in done.stderr
    assert "Traceback" not in done.stderr


def test_files_that_cannot_be_used(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    for tls, sentence in (
        ({"certificate": "/absent.crt", "key": "tls-agent.key", "ca": "tls-ca.crt"}, "/absent.crt cannot be read"),
        ({"certificate": str(tmp_path / "bad.pem"), "key": "tls-agent.key", "ca": "tls-ca.crt"}, "PEM files"),
    ):
        done = run(host.configuration(tls=tls))
        assert done.returncode == 1
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    sockets = {"listen": [f"unix:{tmp_path}/s"], "socket_ports": [1, 1], "socket_address": "127.0.0.1"}
    done = run(host.configuration(tls=tls, **sockets))
    assert done.returncode == 1
    assert f"The certificate {tmp_path}/bad.pem, its key" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(host.configuration(pid_file="/absent/agent.pid"))
    assert done.returncode == 1
    assert "The pid file /absent/agent.pid cannot be written" in done.stderr


def test_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text("{}")
    done = run(tmp_path / "agent.json")
    assert done.returncode == 1
    assert done.stderr.count(os.linesep) == 1
    assert "listen must be there" in done.stderr
