"""
Agents on a fleet of two fresh hosts with different Pythons: from nothing to nothing, and what must not disturb a backup.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import blockferry_agent
from tests.e2e.bad_days.scene import Held
from tests.e2e.bad_days.valve import Valve
from tests.e2e.fleet.conftest import Fleet
from tests.lab import witness
from tests.lab.machines.machine import Machine
from tests.lab.operator import Operator

MiB = 1 << 20

pytestmark = pytest.mark.lab

# Everything that an agent could leave behind on a host; what lives by itself there is left out.
LISTING = """
find / -xdev \\( -path /proc -o -path /sys -o -path /tmp -o -path /var/tmp -o -path /var/log \\
    -o -path /var/lib/systemd -o -path /var/cache -o -path /srv/programs \\) -prune -o -printf '%p %y %m %U:%G %l\\n'
find /run /tmp -path '*blockferry*'
cat /etc/passwd /etc/group /etc/shadow /etc/gshadow
systemctl list-units --all --plain --no-legend '*blockferry*'
systemctl list-unit-files --no-legend | awk '{print $1, $2}'
"""

# The kinds of Debian 11 and 13.
KINDS = ("cp39-x86_64-glibc2.31", "cp313-x86_64-glibc2.41")

# More than an agent reads ahead, so that some of it has come to the controller; and what the backup reads at least.
PASSED = 12 * MiB
WRITTEN = 24 * MiB


def test_from_nothing_to_nothing(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    """Deploy, back up, upgrade, fail to upgrade, go back, renew, remove: issue 4 in one test."""
    before = [listing(machine) for machine in fleet.machines]
    operator.do("repository", "init")
    hosts = [host.name for host in fleet.hosts]
    # They are in the cache once a host of each kind was deployed to.
    operator.do("agent", "bundle", *KINDS)

    operator.do("agent", "deploy", *hosts)
    assert [state["python_version"][:4].rstrip(".") for state in states(operator)] == [
        machine.python for machine in fleet.machines
    ]

    for number, transport in enumerate(("grpc", "ssh")):
        assert_backed_up(fleet, operator, number, transport, tmp_path / transport)

    running = [pid_of_agent(machine) for machine in fleet.machines]
    # A new release whose agent does not start: the running one is not touched.
    with other_agent(operator, tmp_path / "broken", "raise SystemExit('broken for a test')\n"):
        failed = operator.run("agent", "upgrade", "--all")
    assert failed.status == 10, failed.errors
    assert "broken for a test" in failed.errors, "the report does not say why"
    assert [pid_of_agent(machine) for machine in fleet.machines] == running

    # One that does, and the way back from it.
    with other_agent(operator, tmp_path / "other", "# another release\n"):
        operator.do("agent", "upgrade", "--all")
    assert [state["current"] for state in states(operator)] == [False] * 2
    operator.do("agent", "rollback", "--all")
    assert [state["current"] for state in states(operator)] == [True] * 2

    running = [pid_of_agent(machine) for machine in fleet.machines]
    operator.do("agent", "rotate-certs", "--all")
    assert [pid_of_agent(machine) for machine in fleet.machines] == running
    for number, transport in enumerate(("ssh", "grpc")):
        assert_backed_up(fleet, operator, number, transport, tmp_path / transport)

    operator.do("agent", "remove", *hosts)
    assert states(operator) == []
    for machine, was in zip(fleet.machines, before, strict=True):
        assert listing(machine) ^ was == set()
    # A second time there is nothing to do, and no harm in it.
    assert operator.run("agent", "remove", *hosts).status == 0


def test_an_upgrade_interrupts_no_reading(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    operator.do("repository", "init")
    host, machine = fleet.hosts[0], fleet.machines[0]
    operator.do("agent", "deploy", host.name)
    running = pid_of_agent(machine)
    with (
        held_backup(fleet, operator, 0, tmp_path) as (held, _),
        other_agent(operator, tmp_path / "other", "# another release\n"),
    ):
        refused = operator.run("agent", "upgrade", host.name, "--wait", "3s")
        assert refused.status == 6, refused.errors
        assert pid_of_agent(machine) == running
        upgrade = operator.start("agent", "upgrade", host.name, "--wait", "2m")
        held.open()
        assert held.end().status == 0
        _, errors = upgrade.communicate(timeout=180)
        assert upgrade.returncode == 0, errors
    assert pid_of_agent(machine) != running


def test_a_network_that_goes_away_for_a_moment(fleet: Fleet, operator: Operator, tmp_path: Path) -> None:
    """Four seconds are less than anybody waits for an answer: the backup goes on where it was."""
    operator.do("repository", "init")
    host, machine = fleet.hosts[1], fleet.machines[1]
    operator.do("agent", "deploy", host.name)
    with held_backup(fleet, operator, 1, tmp_path) as (held, copies):
        machine.cut_link()
        try:
            held.open()
            time.sleep(4)
        finally:
            machine.join_link()
        result = held.end()
    assert result.status == 0, result.errors
    assert_comes_back(operator, result.document, copies.take(), tmp_path / "restored")


def test_a_restore_goes_through_the_host_that_is_named(fleet: Fleet, operator: Operator) -> None:
    """The engine would choose the first host, where no agent is."""
    operator.do("repository", "init")
    vm, host = fleet.vms[1], fleet.hosts[1]
    operator.do("agent", "deploy", host.name)
    operator.do("backup", vm.name, "--mode", "live", "--disk", vm.disks[1].id)
    words = ("restore", vm.name, "latest", "--new-disk", "--transport", "grpc", "--no-fallback", "--json")
    chosen = operator.run(*words)
    assert chosen.status == 7, chosen.errors
    (disk,) = operator.do(*words[:-1], "--host", host.name)["disks"]
    assert [carrier["transport"] for carrier in disk["carriers"]] == ["grpc"]
    nowhere = operator.run(*words, "--host", "host9")
    assert nowhere.status == 5, nowhere.errors


def listing(machine: Machine) -> set[str]:
    return set(machine.run("sh", "-c", LISTING).splitlines())


def states(operator: Operator) -> list[Any]:
    """What `agent status` tells, in the order of the hosts' names."""
    return sorted(operator.run("agent", "status", "--json").document, key=lambda state: str(state["host_name"]))


def pid_of_agent(machine: Machine) -> int:
    pid = machine.run("systemctl", "show", "--value", "--property=MainPID", "blockferry-agent")
    assert int(pid), "the agent does not run"
    return int(pid)


@contextlib.contextmanager
def other_agent(operator: Operator, directory: Path, line: str) -> Iterator[None]:
    """For as long as this lasts, the operator's controller has another agent to deploy: ours with one more line."""
    package = Path(blockferry_agent.__file__).parent
    shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    main = directory / package.name / "__main__.py"
    head, future, rest = main.read_text().partition("from __future__ import annotations\n")
    main.write_text(head + future + line + rest)
    operator.environment["PYTHONPATH"] = str(directory)
    try:
        yield
    finally:
        del operator.environment["PYTHONPATH"]


def assert_backed_up(fleet: Fleet, operator: Operator, number: int, transport: str, directory: Path) -> None:
    """Back a VM up by one transport, and compare what comes out of the repository with nbdcopy's copies."""
    vm = fleet.vms[number]
    vm.guest.run(f"head -c 3M /dev/urandom >/mnt/vda/{transport}; sync")
    directory.mkdir()
    with witness.watching(fleet.lab, directory) as copies:
        point = operator.do("backup", vm.name, "--transport", transport, "--no-fallback")
        taken = copies.take()
    assert {carrier["transport"] for disk in point["disks"] for carrier in disk["carriers"]} == {transport}
    assert set(taken) == {disk.id for disk in vm.disks}
    assert_comes_back(operator, point, taken, directory / "restored")
    # Nothing is looked at again.
    shutil.rmtree(directory)


def assert_comes_back(operator: Operator, point: Any, copies: dict[str, Path], directory: Path) -> None:
    """What a recovery point holds is what nbdcopy copied while the backup was open."""
    restored = operator.do("restore", point["vm"]["name"], point["id"], "--to", str(directory), "--format", "raw")
    assert {image["disk_id"] for image in restored} == set(copies)
    for image in restored:
        assert witness.equal(Path(image["path"]), copies[image["disk_id"]])


@contextlib.contextmanager
def held_backup(
    fleet: Fleet, operator: Operator, number: int, directory: Path
) -> Iterator[tuple[Held, witness.Copies]]:
    """Start a full backup through an agent, and hold it in the middle of its first disk; its disks are copied, too."""
    vm, host = fleet.vms[number], fleet.hosts[number]
    copies = witness.Copies(fleet.lab, directory)
    vm.guest.run(f"head -c {WRITTEN} /dev/urandom >/mnt/vda/held; sync")
    path = host.place.nbd / "held.sock"
    valves: list[Valve] = []

    def put(ticket: dict[str, object]) -> None:
        copies.copy(ticket)
        if fleet.engine.disk_of(str(ticket["transfer_id"])) == vm.disks[0].id:
            server, _, export = str(ticket["url"]).removeprefix("nbd:unix:").partition(":")
            valves.append(Valve(host.place.seen(path), Path(server), PASSED))
            host.place.seen(path).chmod(0o666)
            ticket["url"] = f"nbd:unix:{path}:{export}"

    host.before_ticket = put
    try:
        words = ("--mode", "live", "--transport", "grpc", "--no-fallback", "--json")
        with Held(operator.start("backup", vm.name, *words), valves) as held:
            held.wait_until(lambda: any(valve.is_shut for valve in valves))
            yield held, copies
    finally:
        host.before_ticket = None
        for valve in valves:
            valve.close()
        vm.guest.run("rm -f /mnt/vda/held; sync")
