"""Tunnels through a real sshd to a real agent: what is said when there is none, and that nothing of them stays behind."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blockferry import errors
from blockferry.transport import grpc_agent, tunnel
from blockferry.transport.disk import Target
from blockferry.transport.ssh import SshTransport, TunnelledAgent
from blockferry.transport.tunnel import Tunnel, Way
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.units import MiB
from blockferry_proto import PROTOCOL
from tests.component import nbd_servers
from tests.component.agent_host import Host
from tests.component.sshd import Sshd
from tests.lab import processes

SIZE = 64 * MiB


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("target") / "sshd", key_types=("ed25519",)) as server:
        yield server


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("jump") / "sshd", key_types=("ed25519",)) as server:
        yield server


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    running = Host(tmp_path_factory.mktemp("host"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def agent_socket(host: Host) -> Iterator[Path]:
    """An agent that listens at no TCP port."""
    path = host.directory / "agent.sock"
    with host.serving(listen=[f"unix:{path}"]):
        yield path


@pytest.fixture
def way(sshd: Sshd, agent_socket: Path) -> Way:
    return sshd.way(agent_socket)


@pytest.fixture
def through(jump: Sshd, way: Way, sshd: Sshd, tmp_path: Path) -> Way:
    """The same way as it is written in an ssh_config: by a name that only this knows, through a jump host."""
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{jump.port} {jump.host_keys['ed25519']}")
    (tmp_path / "ssh_config").write_text(f"""\
Host host1
    HostName 127.0.0.1
    Port {sshd.port}
    ProxyJump bastion
Host bastion
    HostName 127.0.0.1
    Port {jump.port}
    User {getpass.getuser()}
    IdentityFile {jump.client_key}
    UserKnownHostsFile {tmp_path / "known_hosts"}
""")
    return way._replace(address="host1", port=0, config_file=tmp_path / "ssh_config")


def naming(text: str) -> list[int]:
    """Processes, beside this one, that have a text in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def wait_for(ready: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short path where tunnels have their sockets; nothing may stay in it."""
    place = Path(tempfile.mkdtemp(prefix="place-", dir="/tmp"))
    monkeypatch.setattr(tunnel, "PLACE", str(place))
    yield place
    left = list(place.iterdir())
    shutil.rmtree(place)
    assert left == []


# That it works.


def test_agent_answers_and_nothing_stays(way: Way) -> None:
    with contextlib.closing(TunnelledAgent(way)) as agent:
        assert agent.describe().protocol == PROTOCOL
        [ssh] = naming(way.socket)
    assert naming(way.socket) == []
    assert not Path(f"/proc/{ssh}").exists()


def test_host_is_asked_for_the_pinned_type_of_key(agent_socket: Path, tmp_path: Path) -> None:
    """A server shows one key only, by the client's preference."""
    with Sshd(tmp_path / "sshd") as server:
        for key in server.host_keys.values():
            Tunnel(server.way(agent_socket, host_key=" ".join(key.split()[:2]))).close()


def test_socket_is_for_its_owner_alone(way: Way) -> None:
    with contextlib.closing(Tunnel(way)) as opened:
        assert opened.path.parent.stat().st_mode & 0o777 == 0o700
        assert opened.path.stat().st_mode & 0o777 == 0o600


def test_nothing_secret_is_in_the_command_line(way: Way) -> None:
    with contextlib.closing(Tunnel(way)):
        [ssh] = naming(way.socket)
        words = Path(f"/proc/{ssh}/cmdline").read_text()
    assert words.startswith("ssh\0")
    assert way.host_key.split()[1] not in words


def test_jump_host(through: Way, jump: Sshd) -> None:
    log = jump.directory / "sshd.log"
    before = log.read_text().count("Accepted publickey")
    with contextlib.closing(TunnelledAgent(through)) as agent:
        assert agent.describe().protocol == PROTOCOL
    assert log.read_text().count("Accepted publickey") == before + 1
    assert naming(str(through.config_file)) == []


def test_key_of_an_ssh_agent(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert way.key_file is not None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL) as keys:
        try:
            wait_for((tmp_path / "agent").exists)
            subprocess.run(["ssh-add", "-q", way.key_file], check=True)
            Tunnel(way._replace(key_file=None)).close()
        finally:
            keys.terminate()


def test_key_file_with_a_space_in_its_path(way: Way, tmp_path: Path) -> None:
    assert way.key_file is not None
    copy = tmp_path / "my key"
    shutil.copy(way.key_file, copy)
    Tunnel(way._replace(key_file=copy)).close()


def test_tunnels_side_by_side(way: Way) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(contextlib.closing(Tunnel(way)))
        assert len(naming(way.socket)) == 3
    assert naming(way.socket) == []


def test_tunnel_outlives_the_thread_that_made_it(way: Way) -> None:
    """To Linux, the death of a parent is that of a thread."""
    with ThreadPoolExecutor(1) as pool:
        agent = pool.submit(TunnelledAgent, way).result()
    with contextlib.closing(agent):
        assert agent.describe().protocol == PROTOCOL


@pytest.mark.parametrize(
    ("own", "first"),
    [
        ("", "aes128-gcm@openssh.com"),
        ("Ciphers aes256-ctr", "aes256-ctr"),
        ("Match final all\nCiphers aes256-ctr", "aes256-ctr"),
    ],
)
def test_operators_ssh_config_has_the_last_word_on_ciphers(way: Way, tmp_path: Path, own: str, first: str) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(own)
    with contextlib.closing(Tunnel(way._replace(config_file=config))) as opened:
        command = ["ssh", "-G", "-F", str(opened.path.parent / "ssh_config"), "127.0.0.1"]
        effective = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [ciphers] = [line.split()[1] for line in effective.splitlines() if line.startswith("ciphers ")]
    assert ciphers.split(",")[0] == first


def test_ssh_config_for_people_does_no_harm(way: Way, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(f"""\
User nobody
ControlMaster auto
ControlPath {tmp_path / "shared"}
ControlPersist yes
RemoteCommand touch {tmp_path / "remote"}
RequestTTY force
PermitLocalCommand yes
LocalCommand touch {tmp_path / "local"}
ForwardAgent yes
LogLevel QUIET
""")
    with contextlib.closing(TunnelledAgent(way._replace(config_file=config))) as agent:
        assert agent.describe().protocol == PROTOCOL
        assert [path.name for path in tmp_path.iterdir()] == ["ssh_config"]


# What is said when there is no way.


def refusal(way: Way) -> str:
    with pytest.raises(errors.AgentUnreachable) as caught:
        Tunnel(way)
    assert way.alias not in str(caught.value)
    assert naming(way.socket) == []
    return str(caught.value)


def test_key_that_nobody_knows(way: Way, sshd: Sshd, tmp_path: Path) -> None:
    stranger = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger], check=True)
    assert "Permission denied (publickey" in (said := refusal(way._replace(key_file=stranger)))
    assert "set agent.ssh_key_file" in said


def test_another_host_key(way: Way, jump: Sshd) -> None:
    said = refusal(way._replace(host_key=" ".join(jump.host_keys["ed25519"].split()[:2])))
    assert "Host key for the host has changed" in said
    assert "The host shows another key than when the agent was deployed" in said


def test_known_hosts_of_the_operator_do_not_count(way: Way, sshd: Sshd, tmp_path: Path) -> None:
    """Else a key that was accepted by hand would stand in for the pinned one."""
    known = tmp_path / "known_hosts"
    known.write_text("".join(f"{name} {sshd.host_keys['ed25519']}" for name in (way.alias, f"[127.0.0.1]:{sshd.port}")))
    config = tmp_path / "ssh_config"
    config.write_text(f"Host *\n    UserKnownHostsFile {known}\n    StrictHostKeyChecking no\n")
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBQQGRNkeyfEa9eNaqB7/qlxwCfFJjqxhtNcNlSe7BQF"
    assert "has changed" in refusal(way._replace(host_key=other, config_file=config))


def test_jump_host_with_another_key_is_not_taken_for_the_host(through: Way, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").write_text("")
    said = refusal(through)
    assert "A jump host shows a key that is not in your known_hosts" in said
    assert "The host shows another key" not in said


def test_jump_host_that_wants_a_password(through: Way, jump: Sshd, tmp_path: Path) -> None:
    """Its ssh is not ours to give options, and must not ask all the same."""
    config = tmp_path / "ssh_config"
    config.write_text(config.read_text().replace(f"IdentityFile {jump.client_key}", "IdentityFile none"))
    assert "Permission denied (publickey,password)" in refusal(through)


def test_nothing_listens_for_ssh(way: Way) -> None:
    assert "Connection refused" in (said := refusal(way._replace(port=processes.free_port())))
    assert "Check that sshd runs there" in said


def test_unknown_name(way: Way) -> None:
    assert "Could not resolve hostname nowhere.invalid" in refusal(way._replace(address="nowhere.invalid"))


def test_sshd_that_says_nothing(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "CONNECT_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = refusal(way._replace(port=silent.getsockname()[1]))
    assert "timed out" in said


def test_agent_that_does_not_run(way: Way, tmp_path: Path) -> None:
    assert "Deploy the agent again" in refusal(way._replace(socket=str(tmp_path / "agent.sock")))


def test_agent_that_hangs(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "READY_TIMEOUT", 1.0)
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        assert "no answer in 1 seconds" in refusal(way._replace(socket=str(path)))


def test_forwarding_that_is_forbidden(agent_socket: Path, tmp_path: Path) -> None:
    with Sshd(tmp_path / "sshd", key_types=("ed25519",), extra="AllowStreamLocalForwarding no") as strict:
        said = refusal(strict.way(agent_socket))
    assert "must allow AllowStreamLocalForwarding" in said


def test_address_is_no_option(way: Way, tmp_path: Path) -> None:
    refusal(way._replace(address=f"-oProxyCommand=touch {tmp_path}/touched"))
    assert not (tmp_path / "touched").exists()


def test_ssh_config_that_is_not_there(way: Way, tmp_path: Path) -> None:
    """OpenSSH would go on without it, and maybe not through the jump host."""
    assert "ssh_config_of_nobody: No such file" in refusal(way._replace(config_file=tmp_path / "ssh_config_of_nobody"))


def test_no_room_for_the_socket(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "PLACE", str(tmp_path / "gone"))
    assert "No SSH tunnel can be made with" in refusal(way)


def test_no_ssh_program(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "Install the OpenSSH client" in refusal(way)


# When it breaks.


@pytest.fixture
def target(host: Host, tmp_path: Path) -> Iterator[Target]:
    """A disk whose reading lasts: nbdkit takes its time for every request."""
    options = ["--filter=delay", "pattern", f"{SIZE}", "rdelay=50ms"]
    with nbd_servers.nbdkit(host.directory, *options) as address:
        ticket = host.ticket(address, SIZE)
        yield Target("host1", "127.0.0.1", ticket.transfer_id, ticket.ticket_id, "", None, SIZE)


def test_killed_in_the_middle(way: Way, target: Target) -> None:
    with (
        contextlib.closing(SshTransport(lambda _: way).open(target)) as disk,
        contextlib.closing(disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB))) as reading,
    ):
        blocks = iter(reading)
        next(blocks)
        [ssh] = naming(way.socket)
        os.kill(ssh, signal.SIGKILL)
        with pytest.raises(errors.TransportError, match=r"The agent on host1 \(through SSH\) .*: ssh was ended\."):
            list(blocks)


def test_banner_is_not_why_it_broke(agent_socket: Path, tmp_path: Path) -> None:
    (tmp_path / "banner").write_text("Authorized use only\n")
    with (
        Sshd(tmp_path / "sshd", key_types=("ed25519",), extra=f"Banner {tmp_path / 'banner'}") as server,
        contextlib.closing(TunnelledAgent(server.way(agent_socket))) as agent,
    ):
        [ssh] = naming(str(agent_socket))
        os.kill(ssh, signal.SIGKILL)
        with pytest.raises(errors.AgentUnreachable, match="ssh was ended"):
            agent.describe()


def test_sshd_ends_in_the_middle(agent_socket: Path, target: Target, tmp_path: Path) -> None:
    """As when the host goes down, and what ssh says then."""
    with Sshd(tmp_path / "sshd", key_types=("ed25519",)) as server:
        way = server.way(agent_socket)
        with (
            contextlib.closing(SshTransport(lambda _: way).open(target)) as disk,
            contextlib.closing(disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB))) as reading,
        ):
            blocks = iter(reading)
            next(blocks)
            [session] = children(server.pid)
            os.kill(session, signal.SIGTERM)
            with pytest.raises(
                errors.TransportError, match=r"\(through SSH\) .*127\.0\.0\.1.*Check that sshd runs there"
            ):
                list(blocks)


def test_agent_ends_in_the_middle(host: Host, sshd: Sshd, target: Target) -> None:
    """The tunnel stands, so it is not to blame."""
    path = host.directory / "other.sock"
    with contextlib.ExitStack() as stack:
        with host.serving(listen=[f"unix:{path}"]):
            disk = stack.enter_context(contextlib.closing(SshTransport(lambda _: sshd.way(path)).open(target)))
            reading = stack.enter_context(
                contextlib.closing(disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB)))
            )
            blocks = iter(reading)
            next(blocks)
        with pytest.raises(errors.Error, match=r"(?i)the agent") as caught:
            list(blocks)
    assert "ssh was ended" not in str(caught.value)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_stalled_in_the_middle(way: Way, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "END_TIMEOUT", 0.5)
    soon = {"grpc.keepalive_time_ms": 1000, "grpc.keepalive_timeout_ms": 500, "grpc.http2.ping_timeout_ms": 500}
    options = {**dict(grpc_agent._CHANNEL_OPTIONS), **soon}
    monkeypatch.setattr(grpc_agent, "_CHANNEL_OPTIONS", list(options.items()))
    with (
        contextlib.closing(SshTransport(lambda _: way).open(target)) as disk,
        contextlib.closing(disk.read(ReadRequest(0, SIZE, incremental=False, window=MiB))) as reading,
    ):
        blocks = iter(reading)
        next(blocks)
        [ssh] = naming(way.socket)
        os.kill(ssh, signal.SIGSTOP)
        with pytest.raises(errors.TransportError, match=r"The agent on host1 \(through SSH\)"):
            list(blocks)
    assert not Path(f"/proc/{ssh}").exists(), "one that is stopped does not hear SIGTERM"


CONTROLLER = """
import sys, time
from pathlib import Path
from blockferry.transport.tunnel import Tunnel, Way
*texts, port, key_file, config_file = sys.argv[1:]
name, address, user, host_key, alias, socket = texts
tunnel = Tunnel(Way(name, address, int(port), user, host_key, alias, socket, Path(key_file), Path(config_file)))
print(tunnel.path.parent, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_controller_that_is_killed_leaves_no_ssh(through: Way, number: signal.Signals) -> None:
    texts = [through.host_name, through.address, through.user, through.host_key, through.alias, through.socket]
    command = [sys.executable, "-c", CONTROLLER, *texts, str(through.port), str(through.key_file)]
    with subprocess.Popen([*command, str(through.config_file)], stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        directory = Path(controller.stdout.readline().strip())
        try:
            # Its ssh, and that to the jump host.
            assert len(naming(str(directory))) == 2
            controller.send_signal(number)
            wait_for(lambda: not naming(str(directory)))
        finally:
            controller.kill()
            for ssh in naming(str(directory)):
                os.kill(ssh, signal.SIGKILL)
            shutil.rmtree(directory)
