"""
The network of a lab's machines: a bridge, and a wire from it to each machine and to this one.

    this machine                 switch                     machine
    bf1a2b3c4d ───────────────── uplink ─┐
                                         bridge
                                 port1 ──┴───────────────── eth0

The switch and every machine is a network namespace, held by a process of the lab: when the process is killed, the
namespace goes, and its wires with it.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import random
import secrets
from pathlib import Path

from tests.lab import cache, processes
from tests.lab.errors import LabError

# A part of the private addresses that few sites use; each lab takes one /24 of it.
RANGE = ipaddress.IPv4Network("10.213.0.0/16")

# Bytes that may pass a limited wire at once: a moment's worth at most, and more than any packet (GSO: 64 KiB).
BURST = 128 << 10


class Namespace:
    """
    A network namespace with its loopback up.

    path: for nsenter.
    """

    def __init__(self, lab: Path, log: Path) -> None:
        self._holder = processes.Daemon(["unshare", "--net", "sleep", "infinity"], lab=lab, log=log)
        self.path = Path(f"/proc/{self._holder.pid}/ns/net")
        here = Path("/proc/self/ns/net").readlink()
        self._holder.wait_until(lambda: self.path.readlink() != here)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def pid(self) -> int:
        """The process that holds it."""
        return self._holder.pid

    def run(self, *command: str) -> str:
        """Run a program of this machine in the namespace."""
        return processes.run("nsenter", f"--net={self.path}", *command)

    def close(self) -> None:
        """End it, and every wire that leads into it."""
        self._holder.stop()


class Wire:
    """
    The wire from the switch to one machine.

    namespace: the machine's.  address: the machine's.
    """

    def __init__(self, switch: Namespace, port: str, namespace: Namespace, interface: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self._switch = switch
        self._port = port
        self._interface = interface

    def cut(self) -> None:
        """Pull the plug: nothing passes, and nobody is told."""
        self._switch.run("ip", "link", "set", self._port, "down")

    def join(self) -> None:
        """Put the plug back."""
        self._switch.run("ip", "link", "set", self._port, "up")

    def limit(self, bytes_per_second: int | None) -> None:
        """Let no more than this pass, each way.  None: as much as there is."""
        for namespace, interface in ((self._switch, self._port), (self.namespace, self._interface)):
            namespace.run("sh", "-c", f"tc qdisc del dev {interface} root 2>/dev/null || true")
            if bytes_per_second is not None:
                limit = ("tbf", "rate", f"{bytes_per_second}bps", "burst", str(BURST), "latency", "100ms")
                namespace.run("tc", "qdisc", "add", "dev", interface, "root", *limit)

    def close(self) -> None:
        self.namespace.close()


class Network:
    """
    The switch of a lab, with this machine on it.

    subnet: this machine has its first address.
    """

    def __init__(self, directory: Path, lab: Path) -> None:
        """directory: for logs.  lab: the lab's directory, for the mark."""
        self._directory = directory
        self._lab = lab
        self._hosts = 0
        self._switch = Namespace(lab, directory / "switch.log")
        self._switch.run("ip", "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        self._switch.run("ip", "link", "set", "bridge", "up")
        interface = f"bf{secrets.token_hex(4)}"
        self._plug_in("uplink", interface, None)
        self.subnet = _take_subnet(interface)

    def wire(self) -> Wire:
        """Lay a wire to a new machine, with the next address."""
        self._hosts += 1
        namespace = Namespace(self._lab, self._directory / f"wire{self._hosts}.log")
        port = f"port{self._hosts}"
        self._plug_in(port, "eth0", namespace)
        address = self.subnet[self._hosts + 1]
        namespace.run("ip", "address", "add", f"{address}/{self.subnet.prefixlen}", "dev", "eth0")
        namespace.run("ip", "link", "set", "eth0", "up")
        return Wire(self._switch, port, namespace, "eth0", str(address))

    def close(self) -> None:
        """Take the switch away; machines are cut off."""
        self._switch.close()

    def _plug_in(self, port: str, interface: str, namespace: Namespace | None) -> None:
        """Make a pair: port on the switch, and interface in a namespace (None: this machine's)."""
        # The peer is named by the namespace of a process; 1 is this machine's only where we are in nobody's container.
        target = f"/proc/{namespace.pid}/ns/net" if namespace else "/proc/self/ns/net"
        pair = ("ip", "link", "add", port, "netns", str(self._switch.pid), "type", "veth", "peer", "name", interface)
        processes.run("nsenter", f"--net={target}", *pair)
        self._switch.run("ip", "link", "set", port, "master", "bridge", "up")


def _take_subnet(interface: str) -> ipaddress.IPv4Network:
    """Give an interface of this machine the first address of a subnet that nothing here uses."""
    with (cache.directory() / "subnet.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken = [
            ipaddress.IPv4Network(route["dst"])
            for route in json.loads(processes.run("ip", "-json", "-4", "route", "show", "table", "all"))
            if route["dst"] != "default"
        ]
        free = [one for one in RANGE.subnets(new_prefix=24) if not any(one.overlaps(other) for other in taken)]
        if not free:
            raise LabError(f"No subnet of {RANGE} is free on this machine")
        subnet = random.choice(free)
        processes.run("ip", "address", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", interface)
        processes.run("ip", "link", "set", interface, "up")
        return subnet
