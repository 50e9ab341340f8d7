"""
The machines that hosts of the tests are: each with its own systemd, users and network, and none of it left over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import processes, reaper
from tests.lab.machines import alone, control_group, roots, support
from tests.lab.machines.machine import Machine

MiB = 1 << 20

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(support.unavailable() is not None, reason=str(support.unavailable())),
]

# A lab of its own, held until somebody takes it away; it says where it is.
HOLDER = """
from tests.lab.machines import alone
with alone.up(["trixie"]) as [machine]:
    print(machine.client_key.parent, machine.address, flush=True)
    input()
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    with alone.up(["bullseye", "trixie"]) as machines:
        yield machines


@pytest.fixture
def old(machines: list[Machine]) -> Machine:
    return machines[0]


@pytest.fixture
def new(machines: list[Machine]) -> Machine:
    return machines[1]


def ssh(machine: Machine, *words: str, user: str = "root", input: str = "", timeout: float = 30) -> str:
    """What a command prints over SSH."""
    done = subprocess.run(
        machine.ssh_command(*words, user=user),
        input=input,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout


def test_each_has_the_python_of_its_release_and_a_healthy_systemd(machines: list[Machine]) -> None:
    for machine in machines:
        version = ssh(machine, "python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'").strip()
        assert version == machine.python == roots.PYTHONS[machine.release]
        assert machine.run("systemctl", "is-system-running").strip() == "running"
        assert machine.run("cat", "/proc/1/comm").strip() == "systemd"
        assert (machine.root / "etc/hostname").read_text().strip() == machine.name
        assert machine.run("journalctl", "--quiet", "-n", "1").strip()


def test_host_key_is_the_one_that_is_told(old: Machine, tmp_path: Path) -> None:
    scanned = processes.run("ssh-keyscan", "-t", "ed25519", "-p", str(old.ssh_port), old.address)
    assert scanned.split()[1:3] == old.ssh_public_key.split()
    (tmp_path / "key.pub").write_text(old.ssh_public_key)
    assert processes.run("ssh-keygen", "-l", "-f", tmp_path / "key.pub").split()[1] == old.ssh_fingerprint


def test_operator_needs_no_password_for_sudo_and_clerk_does(new: Machine) -> None:
    assert ssh(new, "sudo -n id -u", user=roots.OPERATOR).strip() == "0"
    with pytest.raises(subprocess.CalledProcessError):
        ssh(new, "sudo -n id -u", user=roots.CLERK)
    assert ssh(new, "sudo -S -p '' id -u", user=roots.CLERK, input=f"{roots.CLERK_PASSWORD}\n").strip() == "0"


def test_users_and_groups_are_those_of_an_ovirt_host(machines: list[Machine]) -> None:
    for machine in machines:
        groups = {user: set(machine.run("id", "-nG", user).split()) for user in ("vdsm", "qemu", "ovirtimg")}
        assert groups["vdsm"] == {"kvm", "qemu", "ovirtimg"}
        assert groups["ovirtimg"] == {"ovirtimg", "qemu", "kvm"}
        assert "kvm" in groups["qemu"]
        assert machine.run("id", "-u", "vdsm").strip() == machine.run("id", "-g", "vdsm").strip() == "36"


def test_units_of_one_machine_are_not_seen_by_the_other(old: Machine, new: Machine) -> None:
    old.run("systemd-run", "--quiet", "--unit=only-here", "sleep", "infinity")
    try:
        assert old.run("pgrep", "--exact", "sleep").strip()
        assert "only-here" not in new.run("systemctl", "list-units", "--plain")
        assert new.run("sh", "-c", "pgrep --exact sleep || echo none").strip() == "none"
    finally:
        old.run("systemctl", "stop", "only-here")


def test_machines_reach_each_other(old: Machine, new: Machine) -> None:
    program = f"import socket; print(socket.create_connection(('{new.address}', 22), 5).recv(4))"
    assert ssh(old, f'python3 -c "{program}"').strip() == "b'SSH-'"


def test_nothing_passes_a_link_that_is_cut(new: Machine) -> None:
    assert connects(new, new.ssh_port)
    new.cut_link()
    try:
        assert not connects(new, new.ssh_port)
    finally:
        new.join_link()
    processes.wait_for("the link", lambda: connects(new, new.ssh_port))


def test_limited_link_is_as_slow_as_it_is_told_both_ways(new: Machine) -> None:
    new.limit_link(4 * MiB)
    try:
        began = time.monotonic()
        ssh(new, "head -c 4M /dev/zero | tr '\\0' x")
        outwards = time.monotonic() - began
        began = time.monotonic()
        ssh(new, "cat >/dev/null", input="x" * (4 * MiB))
        inwards = time.monotonic() - began
    finally:
        new.limit_link(None)
    # One second each at least, but for what passes at once; unlimited it is a tenth.
    assert outwards > 0.8
    assert inwards > 0.8


def test_firewall_of_the_newest_lets_in_what_it_is_told(new: Machine) -> None:
    new.run("systemd-run", "--quiet", "--unit=listener", "python3", "-m", "http.server", "8000")
    try:
        processes.wait_for("a listener", lambda: connects(new, 8000))
        new.run("systemctl", "start", "firewalld")
        assert not connects(new, 8000)
        assert connects(new, new.ssh_port)
        new.run("firewall-cmd", "--quiet", "--add-port=8000/tcp")
        assert connects(new, 8000)
    finally:
        new.run("systemctl", "stop", "listener", "firewalld")


def test_files_survive_a_reboot_and_a_loss_of_power(old: Machine) -> None:
    (old.root / "root/kept").write_text("all the same")
    boot_id = old.run("cat", "/proc/1/stat").split()[21]
    old.reboot()
    assert old.run("cat", "/root/kept") == "all the same"
    assert old.run("cat", "/proc/1/stat").split()[21] != boot_id
    old.lose_power()
    assert not connects(old, old.ssh_port)
    old.start()
    old.wait()
    assert old.run("cat", "/root/kept") == "all the same"
    assert ssh(old, "true") == ""
    assert old.run("systemctl", "is-system-running").strip() == "running"


def test_nothing_is_left_after_the_end() -> None:
    with alone.up(["trixie"]) as [machine]:
        lab, address = machine.client_key.parent, machine.address
    assert_nothing_is_left(lab, address)


def test_nothing_is_left_when_the_owner_is_killed() -> None:
    with held_lab() as (holder, lab, address):
        holder.kill()
        processes.wait_for("the reaper", lambda: not lab.exists(), timeout=90)
    assert_nothing_is_left(lab, address)


def test_next_lab_clears_up_when_the_reaper_is_killed_too() -> None:
    with held_lab() as (holder, lab, address):
        os.kill(reaper_of(lab), signal.SIGKILL)
        holder.kill()
    assert lab.exists()

    def swept() -> bool:
        """Nothing is done as long as the reaper is not quite dead, and while another lab sweeps."""
        reaper.sweep()
        return not lab.exists()

    processes.wait_for("the sweep", swept, timeout=90)
    assert_nothing_is_left(lab, address)


@contextlib.contextmanager
def held_lab() -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    """A process that runs a machine; the lab's directory, and the machine's address."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as holder:
        try:
            assert holder.stdout is not None
            lab, address = holder.stdout.readline().split()
            yield holder, Path(lab), address
        finally:
            holder.kill()


def reaper_of(lab: Path) -> int:
    """The process that waits for the lab's owner to go."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if (process / "cmdline").read_bytes().endswith(f"tests.lab.reaper\0{lab}\0".encode()):
                    return int(process.name)
    raise AssertionError(f"{lab} has no reaper")


def assert_nothing_is_left(lab: Path, address: str) -> None:
    """Processes, control groups, mounts, interfaces, files."""
    assert not lab.exists()
    assert not reaper.members_of(lab)
    assert not list(control_group.hierarchy().glob(f"*{lab.name}*"))
    assert str(lab) not in Path("/proc/self/mounts").read_text()
    # The kernel takes the interface away a moment after the namespace at its other end.
    subnet = address.rpartition(".")[0]
    processes.wait_for("the end of the network", lambda: f"{subnet}." not in processes.run("ip", "address"))


def connects(machine: Machine, port: int) -> bool:
    """Whether a port answers within a second."""
    try:
        socket.create_connection((machine.address, port), timeout=1).close()
    except OSError:
        return False
    return True
