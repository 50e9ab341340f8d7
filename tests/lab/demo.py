"""
The main job, from nothing to proof, in a lab of its own: `make demo`.

Deploys the agent, takes recovery points of one VM in every mode and through both transports while its guest writes,
restores each of them, and compares every byte with what nbdcopy saw while that backup was open.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from blockferry.cli import output
from tests.lab import witness
from tests.lab.errors import LabError
from tests.lab.lab import Lab, Vm
from tests.lab.operator import Operator
from tests.lab.witness import Copies

VM = "db01"


class Taken(NamedTuple):
    """A recovery point, and what nbdcopy saw of its disks."""

    what: str
    manifest: dict[str, Any]
    copies: dict[str, Path]


def main() -> None:
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="blockferry-demo-", dir="/var/tmp") as directory:
            proven = run(Path(directory))
    except LabError as error:
        sys.exit(f"demo: {error}")
    say(f"Done in {time.monotonic() - started:.0f} seconds.")
    if not proven:
        sys.exit("demo: a restored image differs from what nbdcopy saw: do not trust this build")


def run(directory: Path) -> bool:
    """Run the whole demonstration; return whether every byte was the same."""
    say("Bringing up the lab: libvirt, QEMU with a Linux guest, ovirt-imageio, sshd, and a simulated engine")
    with Lab.up() as lab:
        vm = lab.new_vm(VM)
        operator = Operator(lab, directory / "operator")
        type_command(operator, "repository", "init")
        type_command(operator, "agent", "deploy", lab.host.name)
        type_command(operator, "agent", "status")
        (directory / "copies").mkdir()
        with witness.watching(lab, directory / "copies") as copies:
            points = take_points(operator, vm, copies, lambda: operator.run("agent", "remove", lab.host.name))
        type_command(operator, "list", VM)
        type_command(operator, "verify", VM)
        say("Restoring every recovery point, and comparing it with what nbdcopy saw")
        proofs = [restore_and_compare(operator, point, directory / "restored") for point in points]
    report(points, proofs)
    return all(proofs)


def take_points(operator: Operator, vm: Vm, copies: Copies, stop_agent: Callable[[], object]) -> list[Taken]:
    """Take one recovery point of each kind, with the guest at work between them."""

    def backup(what: str, *options: str) -> Taken:
        say(f"{what}:  blockferry backup {' '.join((VM, *options))}")
        manifest = operator.do("backup", VM, *options)
        return Taken(what, manifest, copies.take())

    guest = vm.guest
    guest.run(
        "for disk in /mnt/*; do dd if=/dev/urandom of=$disk/data bs=1M count=24 2>/dev/null; done; sync", timeout=120
    )
    points = [backup("Full, VM running", "--mode", "live")]

    say("The guest writes a file, overwrites part of another, deletes and trims")
    guest.run(
        "dd if=/dev/urandom of=/mnt/vda/new bs=1M count=6 2>/dev/null;"
        "dd if=/dev/urandom of=/mnt/sda/data bs=64k count=16 seek=100 conv=notrunc 2>/dev/null;"
        "rm /mnt/vdb/data; sync; fstrim /mnt/vdb; sync"
    )
    points.append(backup("Incremental, live", "--mode", "live"))

    guest.run(
        "dd if=/dev/urandom of=/mnt/vda/newer bs=1M count=3 2>/dev/null; rm /mnt/vda/new; sync; fstrim /mnt/vda; sync"
    )
    points.append(backup("Incremental, hybrid", "--mode", "hybrid"))

    guest.run("dd if=/dev/urandom of=/mnt/sda/last bs=1M count=2 2>/dev/null; sync")
    say("The guest shuts down")
    vm.power_off()
    points.append(backup("Incremental, powered off", "--mode", "live"))

    say("The VM starts again, the guest writes, and the agent is taken away")
    vm.start()
    guest.run(
        "dd if=/dev/zero of=/mnt/vda/zeros bs=1M count=5 2>/dev/null;"
        "dd if=/dev/urandom of=/mnt/vdb/again bs=1M count=1 2>/dev/null; sync"
    )
    stop_agent()
    points.append(backup("Incremental, no agent", "--mode", "live"))
    return points


def restore_and_compare(operator: Operator, point: Taken, directory: Path) -> bool:
    """Restore a point to raw images; return whether each is what nbdcopy saw."""
    point_id = point.manifest["id"]
    images = operator.do("restore", VM, point_id, "--to", str(directory / point_id))
    return sorted(image["disk_id"] for image in images) == sorted(point.copies) and all(
        witness.equal(Path(image["path"]), point.copies[image["disk_id"]]) for image in images
    )


def report(points: list[Taken], proofs: list[bool]) -> None:
    """Print what each point cost, summed over its disks, and whether it is proven."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("RECOVERY POINT")
    for name in ("MODE", "TRANSPORT"):
        table.add_column(name)
    for name in ("SIZE", "DIRTY", "READ", "MOVED", "STORED", "SECONDS"):
        table.add_column(name, justify="right")
    table.add_column("VERIFIED")
    for point, proven in zip(points, proofs, strict=True):
        disks = point.manifest["disks"]
        table.add_row(
            point.what,
            point.manifest["mode"],
            ", ".join(sorted({carrier["transport"] for disk in disks for carrier in disk["carriers"]})),
            output.size(sum(disk["size"] for disk in disks)),
            *(output.size(sum(disk["bytes"][kind] for disk in disks)) for kind in ("dirty", "read", "moved", "stored")),
            f"{point.manifest['seconds']:.1f}",
            "yes, every byte" if proven else "NO",
        )
    print()
    Console(highlight=False, width=140).print(table)


def type_command(operator: Operator, *words: str) -> None:
    """Run a command as the operator would, and show what he sees."""
    say(f"blockferry {' '.join(words)}")
    result = operator.run(*words, "--quiet")
    print(result.output, end="", flush=True)
    if result.status:
        raise LabError(f"blockferry {' '.join(words)} ended with {result.status}: {result.errors.strip()}")


def say(text: str) -> None:
    print(f"\n==> {text}", flush=True)


if __name__ == "__main__":
    main()
