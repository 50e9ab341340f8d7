"""Deploying to a real sshd: the agent in its own directory, and nothing outside of it."""

import contextlib
import fcntl
import functools
import getpass
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import blockferry_agent
from blockferry import errors
from blockferry.deploy import agents, bundle, directory, hostkey, interpreter, issuer, pki, ssh
from blockferry.deploy.onhost.processes import Processes
from blockferry.deploy.onhost.releases import CREDENTIALS, Release, Releases
from blockferry.transport import grpc_agent, mutual_tls
from blockferry.transport.ssh import TunnelledAgent
from blockferry_agent.units import MiB
from tests.component.sshd import Sshd

CACHE = Path.home() / ".cache" / "blockferry"
PYTHON39 = Path("/root/.pyenv/versions/3.9.18/bin/python3")
HOST = agents.Host("aaaaaaaa-0000-4000-8000-0000000000a1", "host1", "127.0.0.1")


# Does what a deployment needs of an agent, in a moment: listens, says so in its pid file, ends at SIGTERM.
STAND_IN = b"""
import json, os, pathlib, signal, socket, sys
file = pathlib.Path(sys.argv[2])
config = json.loads(file.read_text())
address, _, port = config["listen"][0].rpartition(":")
if address == "unix":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(port)
    listener.listen()
else:
    listener = socket.create_server((address, int(port)))
(file.parent / config["pid_file"]).write_text(str(os.getpid()))
signal.sigwait([signal.SIGTERM])
"""
HANGS = b"import time; time.sleep(600)"
FAILS = b"import sys; sys.exit('\\n'.join(f'line {n}' for n in range(100)))"


# Making one reads all wheels: once for each Python is enough here.
build = functools.cache(functools.partial(bundle.build, CACHE))


def program(source: bytes) -> bundle.Bundle:
    """A bundle that is only this program."""
    data = bundle.pack({"__main__.py": source})
    return bundle.Bundle(data, hashlib.sha256(data).hexdigest(), "0.stand-in")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_for(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("agents") / "sshd", key_types=("ed25519",)) as server:
        yield server


class Controller:
    """A controller with a state of its own, and the directory on the host that it deploys to."""

    def __init__(self, place: Path, sshd: Sshd) -> None:
        self.state = place / "state"
        # Short: the path of the agent's socket has 107 bytes at the most.
        self.home = place / "opt" / "agent"
        self.home.parent.mkdir()
        self.login = sshd.login()
        self.options = agents.Options(
            directory=str(self.home),
            port=free_port(),
            python=sys.executable,
            control_socket="/run/ovirt-imageio/sock",
            data_socket="@/org/ovirt/imageio",
            nbd_directories=("/run/vdsm/backup",),
        )
        self.bundle: bundle.Bundle | None = program(STAND_IN)

    def bundles(self, kind: interpreter.Kind) -> bundle.Bundle:
        return self.bundle or build(kind)

    @property
    def known(self) -> agents.Agents:
        return agents.Agents(self.state, self.bundles)

    def deploy(self, **changes: object) -> agents.Deployed:
        return self.known.deploy(HOST, self.login, self.options._replace(**changes))

    def found(self) -> directory.Found:
        """What is on the host now."""
        with ssh.connect(self.login) as connection:
            return directory.AgentDirectory(connection, sys.executable, str(self.home)).inspect()

    def rollback(self) -> agents.registry.Record:
        return self.known.rollback(HOST, self.login, self.options, None)

    def remove(self) -> bool:
        return self.known.remove(HOST, self.login, self.options)

    def describe(self, record: agents.registry.Record) -> str:
        """Ask the agent over mutual TLS for its version."""
        authority = pki.Authority.open(self.state)
        credentials = mutual_tls.Credentials(authority.trusted, *authority.controller())
        endpoint = grpc_agent.Endpoint(record.address, record.port, record.server_name)
        agent = grpc_agent.Agent(endpoint, credentials)
        try:
            version: str = agent.describe().version
            return version
        finally:
            agent.close()

    def answers(self) -> bool:
        """Whether the agent listens at the port of the options."""
        try:
            socket.create_connection(("127.0.0.1", self.options.port), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True

    def pids(self) -> list[int]:
        return sorted(Processes(self.home.resolve())._running())


@pytest.fixture
def controller(tmp_path: Path, sshd: Sshd) -> Iterator[Controller]:
    """Deploys the stand-in."""
    made = Controller(tmp_path, sshd)
    yield made
    for pid in made.pids():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def real(controller: Controller) -> Controller:
    """Deploys the real agent."""
    controller.bundle = None
    return controller


def tree(home: Path) -> dict[str, int]:
    """All that is in the agent's directory, with modes; of a bundle only that it is there."""
    paths = [path for path in home.rglob("*") if "bundles" not in path.relative_to(home).parts[:-2]]
    return {str(path.relative_to(home)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


def test_deploy_and_remove(real: Controller) -> None:
    deployed = real.deploy()
    record = deployed.record
    assert deployed.changed
    assert (record.address, record.port) == ("127.0.0.1", real.options.port)
    assert record.python == ".".join(map(str, sys.version_info[:3]))
    assert record.certificate_expires - datetime.now(UTC) > timedelta(days=89)
    assert real.describe(record) == blockferry_agent.__version__
    assert real.known.registry.find("host1") == record

    found = real.found()
    assert [found.pid] == real.pids()
    assert found.current is not None
    assert found.current.about.version == blockferry_agent.__version__

    release = str((real.home / "current").readlink())
    assert tree(real.home) == {
        ".blockferry-agent": 0o644,
        "bundles": 0o755,
        f"bundles/{record.bundle}": 0o755,
        "current": 0o777,
        "lock": 0o644,
        "log": 0o755,
        "log/agent.log": 0o644,
        "releases": 0o755,
        release: 0o700,
        f"{release}/agent.json": 0o600,
        f"{release}/release.json": 0o600,
        f"{release}/settings.json": 0o600,
        f"{release}/tls": 0o777,
        f"{release}/tls.1": 0o700,
        f"{release}/tls.1/agent.crt": 0o600,
        f"{release}/tls.1/agent.key": 0o600,
        f"{release}/tls.1/ca.crt": 0o600,
        f"{release}/tls.1/revoked.json": 0o600,
        "run": 0o700,
        "run/agent.pid": 0o644,
        "run/agent.sock": 0o600,
    }

    assert real.remove()
    assert real.pids() == []
    assert list(real.home.parent.iterdir()) == []
    assert real.known.registry.records() == []
    assert not real.remove()


def test_agent_without_a_port_is_reached_through_ssh(real: Controller, sshd: Sshd) -> None:
    deployed = real.deploy(port=0)
    record = deployed.record
    assert record.port == 0
    assert (record.ssh_port, record.ssh_user) == (sshd.port, getpass.getuser())
    way = sshd.way(Path(record.socket), host_key=record.host_key)
    with contextlib.closing(TunnelledAgent(way)) as agent:
        assert agent.describe().version == blockferry_agent.__version__
    [pid] = real.pids()
    assert listening(pid) == set()
    assert not real.deploy(port=0).changed
    real.deploy()
    [pid] = real.pids()
    assert len(listening(pid)) == 1


def test_limits_and_ports_of_sockets_reach_the_agent(real: Controller) -> None:
    real.deploy(socket_ports=range(54331, 54341), clear_text=True, bytes_per_second=100 * MiB, max_reads=3)
    given = json.loads((real.home / "current" / "agent.json").read_text())
    assert given["socket_ports"] == [54331, 54340]
    assert given["socket_address"] == "127.0.0.1"
    assert given["clear_text"] is True
    assert given["bytes_per_second"] == 100 * MiB
    assert given["max_reads"] == 3


@pytest.mark.parametrize("name", ["a" * 100, "with:colon", "with space", "$HOME"])
def test_directory_whose_socket_cannot_be_named(controller: Controller, name: str) -> None:
    home = controller.home.with_name(name)
    with pytest.raises(errors.DeployError, match=r"cannot be the agent's directory: its socket .*agent\.directory"):
        controller.deploy(directory=str(home))
    assert not home.exists()


def listening(pid: int) -> set[str]:
    """The TCP sockets at which a process listens, as lines of /proc/net/tcp."""
    held = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {words[1] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in held}


@pytest.mark.skipif(not PYTHON39.exists(), reason="no Python 3.9 here; the lab's host has one")
def test_python_39(real: Controller) -> None:
    record = real.deploy(python=str(PYTHON39)).record
    assert record.python == "3.9.18"
    assert real.describe(record) == blockferry_agent.__version__


def test_python_behind_a_wrapper(controller: Controller, tmp_path: Path) -> None:
    wrapper = tmp_path / "python3"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    controller.deploy(python=str(wrapper))
    assert not controller.deploy(python=str(wrapper)).changed


def test_deploying_twice_touches_nothing(controller: Controller) -> None:
    first = controller.deploy()
    before = tree(controller.home), controller.pids()
    second = controller.deploy()
    assert (tree(controller.home), controller.pids()) == before
    assert second == (first.record, False, "")


def test_agent_outlives_the_login_and_its_shell(controller: Controller) -> None:
    controller.deploy()
    [pid] = controller.pids()
    assert os.getsid(pid) == pid
    assert {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)} == {
        "/dev/null",
        str(controller.home / "log" / "agent.log"),
    }


def test_strangers_leave_nothing_in_the_log(real: Controller) -> None:
    real.deploy()
    log = real.home / "log" / "agent.log"
    wait_for(lambda: "serving at 127.0.0.1" in log.read_text())
    before = log.read_text()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", real.options.port), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.recv(1)  # its handshake has failed
    assert log.read_text() == before


def test_change_replaces_the_agent(controller: Controller) -> None:
    controller.deploy()
    pids = controller.pids()
    assert controller.answers()
    assert controller.deploy(port=free_port()).changed
    assert not controller.answers()
    assert len(controller.pids()) == 1
    assert controller.pids() != pids
    # The one before is kept for a rollback.
    assert len(list((controller.home / "releases").iterdir())) == 2


def test_dead_agent_is_started_again(controller: Controller) -> None:
    controller.deploy()
    os.kill(controller.pids()[0], signal.SIGKILL)
    wait_for(lambda: not controller.pids())
    assert controller.found().pid is None
    assert controller.deploy().changed
    assert controller.answers()


def test_certificate_is_renewed_in_time(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(issuer, "LEAF_LIFE", timedelta(days=25))
        old = controller.deploy().record
    new = controller.deploy()
    assert new.changed
    assert new.record.bundle == old.bundle
    assert new.record.certificate_expires - datetime.now(UTC) > timedelta(days=89)


def test_lost_record_comes_back(controller: Controller) -> None:
    record = controller.deploy().record
    controller.known.registry.forget(HOST.id)
    assert controller.deploy() == (record, False, "")
    assert controller.known.registry.find(HOST.id) == record


# When the new agent does not come to serve.


def test_port_taken_leaves_nothing_running(controller: Controller) -> None:
    with socket.create_server(("127.0.0.1", controller.options.port)):
        with pytest.raises(errors.DeployError, match=r"(?s)its log says:\n.*Address already in use"):
            controller.deploy()
        assert controller.pids() == []
        assert controller.found().current is None
        with pytest.raises(errors.NotFound):
            controller.known.registry.find(HOST.id)
    assert controller.deploy().changed


def test_port_taken_brings_the_old_agent_back(controller: Controller) -> None:
    old = controller.deploy().record
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(errors.DeployError, match=r"(?s)already in use.*The agent that ran before runs again"),
    ):
        controller.deploy(port=taken.getsockname()[1])
    assert controller.answers()
    assert controller.known.registry.find(HOST.id) == old
    assert not controller.deploy().changed


def test_broken_agent_is_shown_by_its_log_and_never_touches_the_one_that_runs(controller: Controller) -> None:
    controller.deploy()
    before = tree(controller.home), controller.pids()
    controller.bundle = program(FAILS)
    with pytest.raises(errors.DeployError) as caught:
        controller.deploy()
    assert "ended at its start (1)" in caught.value.message
    assert "line 99" in caught.value.message
    assert "line 50\n" not in caught.value.message
    assert (tree(controller.home), controller.pids()) == before
    controller.bundle = program(STAND_IN)
    assert not controller.deploy().changed


def test_damaged_upload_changes_nothing(controller: Controller) -> None:
    controller.deploy()
    pids = controller.pids()
    controller.bundle = bundle.Bundle(b"damaged", "0" * 64, "0")
    with pytest.raises(errors.DeployError, match="arrived damaged"):
        controller.deploy()
    assert controller.pids() == pids
    assert controller.answers()


def test_deployment_that_was_killed_in_between(controller: Controller) -> None:
    controller.bundle = program(HANGS)
    with ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(controller.deploy)
        wait_for(controller.pids)
        [installer] = installers(controller.home)
        os.kill(installer, signal.SIGKILL)
        with pytest.raises(errors.DeployError, match="failed on 127"):
            deploying.result()
    stray = controller.pids()
    assert stray
    controller.bundle = program(STAND_IN)
    assert controller.deploy().changed
    assert controller.answers()
    assert not set(stray) & set(controller.pids())
    assert len(list((controller.home / "bundles").iterdir())) == 1
    assert len(list((controller.home / "releases").iterdir())) == 1


def test_release_that_a_power_cut_emptied_is_replaced(controller: Controller) -> None:
    controller.deploy()
    (controller.home / "current" / "agent.json").write_bytes(b"")
    assert controller.found().current is None
    (controller.home / "current" / "release.json").write_bytes(b"")
    assert controller.deploy().changed
    assert controller.answers()


def test_damaged_release_does_not_hide_why_the_new_agent_fails(controller: Controller) -> None:
    controller.deploy()
    (controller.home / "current" / "release.json").write_bytes(b"")
    controller.bundle = program(FAILS)
    with pytest.raises(errors.DeployError, match=r"(?s)its log says:.*line 99"):
        controller.deploy()


def test_release_is_on_the_disk_before_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = program(FAILS)
    files = dict.fromkeys((*CREDENTIALS, "agent.json", "settings.json"), b"{}")
    files |= {"release.json": json.dumps({"bundle": made.digest}).encode(), "bundle.tar.gz": made.data}
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(Path(f"/proc/self/fd/{descriptor}").readlink()))
    Releases(tmp_path).make("name", files, None)
    unpacked, release = tmp_path / "bundles" / f"{made.digest}.partial", tmp_path / "releases" / "name.partial"
    assert {unpacked, unpacked / "__main__.py", release, release / "agent.json", release / "tls.1"} <= synced
    assert {release.parent, unpacked.parent} <= synced


def test_renewed_credentials_are_all_old_or_all_new(controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    controller.deploy()
    release = Releases(controller.home).current
    assert release is not None
    old = release.credentials()
    new = dict.fromkeys(CREDENTIALS, b"new")

    # A power cut before each step that changes a name.
    for call in ("replace", "rename", "symlink", "unlink"):
        for number in range(8):
            with monkeypatch.context() as patch, contextlib.suppress(PowerCut):
                patch.setattr(os, call, cut_at(number, getattr(os, call)))
                release.renew(new)
            assert Release(release.path).credentials() in (old, new)
    release.renew(new)
    assert Release(release.path).credentials() == new
    assert len(list(release.path.glob("tls.*"))) == 1


class PowerCut(BaseException):
    pass


def cut_at(number: int, call: Callable[..., None]) -> Callable[..., None]:
    """Return what does as `call`, but for the call of this number, counted from 0."""
    left = [number]

    def cut(*arguments: object, **options: object) -> None:
        if not left[0]:
            raise PowerCut
        left[0] -= 1
        call(*arguments, **options)

    return cut


def test_the_way_back(controller: Controller) -> None:
    first = controller.deploy().record
    with pytest.raises(errors.DeployError, match="no earlier release"):
        controller.rollback()
    controller.bundle = program(STAND_IN + b"# another\n")
    second = controller.deploy().record
    assert controller.rollback().bundle == first.bundle
    assert controller.answers()
    assert controller.rollback().bundle == second.bundle


def test_an_installer_to_which_nothing_comes_ends(tmp_path: Path) -> None:
    loader = directory._LOADER.replace("60)", "0.2)")
    for sent in (b"", b"          10", b"          10{}"):
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", loader, '{"files": {}}'], stdin=subprocess.PIPE, stderr=subprocess.PIPE
        ) as waiting:
            assert waiting.stdin is not None and waiting.stderr is not None
            waiting.stdin.write(sent)
            waiting.stdin.flush()
            assert b"no input came" in waiting.stderr.read()
            assert waiting.wait(10) == 1


def installers(home: Path) -> list[int]:
    """Processes that install into this directory now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if '"install"' in words and f'"{home}"' in words and "-I" in words.split("\0"):
            found.append(int(path.parent.name))
    return found


# Two at once, and strangers.


def test_two_at_once_exclude_each_other(controller: Controller) -> None:
    controller.deploy()
    with (controller.home / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # only an exclusive lock on the other side meets it
        with pytest.raises(errors.Conflict, match="Another deployment works in"):
            controller.deploy(port=free_port())
        with pytest.raises(errors.Conflict, match="Another deployment works in"):
            controller.remove()
    assert controller.answers()


def test_race_ends_with_one_agent(controller: Controller) -> None:
    barrier = threading.Barrier(3)

    def race(_: int) -> bool:
        barrier.wait()
        try:
            controller.deploy()
        except errors.Conflict:
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        assert any(pool.map(race, range(3)))
    assert len(controller.pids()) == 1
    assert not controller.deploy().changed


def test_foreign_directory_is_left_alone(controller: Controller) -> None:
    controller.home.mkdir()
    (controller.home / "precious").write_text("data")
    with pytest.raises(errors.DeployError, match="has files in it that are not Blockferry's"):
        controller.deploy()
    with pytest.raises(errors.DeployError, match="not a directory of Blockferry's agent"):
        controller.remove()
    assert tree(controller.home) == {"precious": 0o644}


def test_pid_file_of_a_stranger_kills_nobody(controller: Controller) -> None:
    controller.deploy()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (controller.home / "run" / "agent.pid").write_text(f"{stranger.pid}\n")
        assert controller.found().pid is None
        assert controller.deploy().changed
        assert controller.remove()
        assert stranger.poll() is None
        stranger.kill()


def test_second_directory_is_refused(controller: Controller) -> None:
    controller.deploy()
    with pytest.raises(errors.DeployError, match=f"is in {controller.home}, not in /elsewhere"):
        controller.deploy(directory="/elsewhere")


@pytest.mark.parametrize(
    ("home", "words"),
    [
        ("relative", "no absolute path"),
        ("/dev/null/agent", "/dev/null is no directory"),
        ("/proc/agent", "cannot be made"),
    ],
)
def test_impossible_directory(controller: Controller, home: str, words: str) -> None:
    with pytest.raises(errors.DeployError, match=words):
        controller.deploy(directory=home)


def test_wrong_host_key_stops_before_anything(controller: Controller) -> None:
    controller.login = controller.login._replace(pins=(hostkey.Pin("SHA256:" + "A" * 43),))
    for act in (controller.deploy, controller.remove):
        with pytest.raises(errors.HostKeyMismatch):
            act()
    assert not controller.home.exists()


# The host's Python.


def test_python_is_found(controller: Controller) -> None:
    with ssh.connect(controller.login) as connection:
        found = interpreter.find(connection)
    assert found.version >= interpreter.OLDEST
    assert found.path.startswith("/")
    assert found.glibc == tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (None, "python3 is not there"),
        ("exit 1", "python3 does not run"),
        ('echo \'[[3, 6, 8], "x86_64", "glibc 2.28"]\'', r"python3 is Python 3\.6\.8"),
        ("echo '[[3, 12, 1], \"x86_64\", null]'", "python3 runs on a C library that is not glibc"),
        ("echo '[]'", "python3 does not run"),
    ],
)
def test_no_python_that_fits(controller: Controller, tmp_path: Path, program: str | None, words: str) -> None:
    python = tmp_path / "python3"
    if program is not None:
        python.write_text(f"#!/bin/sh\n{program}\n")
        python.chmod(0o755)
    with pytest.raises(errors.DeployError, match=rf"has no Python that can run the agent: .*{words}") as caught:
        controller.deploy(python=str(python))
    assert "3.9 or later" in caught.value.hint
    assert not controller.home.exists()
