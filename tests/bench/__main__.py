"""`python -m tests.bench`: run the benchmarks and write the table."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from blockferry_agent.units import GiB, MiB
from tests.bench import backup, contenders, many, race, repository, scale, stage
from tests.bench.paper import Report
from tests.bench.race import Unavailable
from tests.lab.lab import Lab

_OF_ALL = "GiB/s of the whole image, whatever has changed or is zeros."

PARTS = (*stage.DATA, "backup", "scale", "repository", "many")
_CHUNKS = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the disk that is read (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--part", action="append", choices=PARTS, help="run this part only; repeatable")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/benchmarks.md"),
        help="Markdown file to write; all seconds of it go to a .json beside it",
    )
    options = parser.parse_args()
    parts = options.part or PARTS
    size = options.size * MiB
    report = Report(_preface(options.size, options.rounds), options.out)
    for kind in stage.DATA:
        if kind in parts:
            _reading(report, kind, size, options.rounds)
    if "backup" in parts:
        for kind in ("random", "compressible"):
            _backup(report, kind, size, options.rounds)
    if "scale" in parts:
        _scale(report, options.rounds)
    if "repository" in parts:
        _repository(report, size, options.rounds)
    if "many" in parts:
        report.text(f"{_CHUNKS:,} chunks of 512 bytes in a directory on this machine's disk", many.table(_CHUNKS))
    print(f"written to {options.out}")
    return 0


def _preface(size: int, rounds: int) -> str:
    return f"""# Benchmarks

Written by `make bench` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; {_machine()}.

{_versions()}

Disks of {size} MiB, {rounds} rounds after one that does not count, in each of which all contenders ran once, in random
order. Everything is in memory and goes over loopback or Unix sockets, so what is compared is what the programs cost:
host and controller share the same cores, and so each end slows the other down. Ratios are medians of the ratios within
a round: above 1 is faster. Image I/O's client goes over HTTPS, as it must when it is not on the host itself."""


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")
    return f"{os.cpu_count()} cores of {model}, Linux {platform.release()}, load {os.getloadavg()[0]:.1f} at the start"


def _versions() -> str:
    ours = importlib.metadata.version("blockferry")
    found = {
        "blockferry": ours,
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("grpcio", "ovirt-imageio")},
        "QEMU": stage.version("qemu-nbd", "--version"),
        "libnbd": stage.version("nbdcopy", "--version"),
        "virtnbdbackup": stage.version("virtnbdbackup", "-V"),
        "restic": stage.version("restic", "version").removeprefix("restic "),
        "borg": stage.version("borg", "--version").removeprefix("borg "),
        "OpenSSH": stage.version("ssh", "-V"),
    }
    return "; ".join(f"{name} {text}" for name, text in found.items()) + "."


def _reading(report: Report, kind: str, size: int, rounds: int) -> None:
    title = f"Reading a disk of {kind} data to where nothing is kept"
    try:
        with stage.up(kind, size) as scene:
            report.race(title, race.run(contenders.all_of(scene), rounds, _say), size)
            report.memory(f"the agent, reading {kind} data", stage.resident_peak(scene.agent_pid))
    except Unavailable as reason:
        report.text(title, f"Could not run: {reason}.")


def _backup(report: Report, kind: str, size: int, rounds: int) -> None:
    with Lab.up(Path(f"/dev/shm/bfb-{os.getpid()}")) as lab:
        results = race.run(backup.all_of(lab, kind, size), rounds, _say)
    report.race(
        f"A full backup of a running VM with {kind} data into a local directory",
        results,
        size,
        "The whole command, from its start to its end.",
    )


def _scale(report: Report, rounds: int) -> None:
    dirty = 1 * GiB
    with scale.changed(dirty=dirty) as scene:
        report.race(
            "An incremental of a sparse disk of 1 TiB, 1 GiB of it changed in scattered grains of 64 KiB",
            race.run(contenders.incremental(scene, dirty), rounds, _say),
            dirty,
            "GiB/s of what has changed; ours move 1.00 bytes per changed byte, or they would not be in this table.",
        )
        report.memory("the agent, incremental of 1 TiB", stage.resident_peak(scene.agent_pid))
    found = scale.fragmented()
    report.text(
        "Extents of a disk of 8 TiB whose every other 4 MiB is a hole",
        f"{found.count} extents in {found.seconds:.1f} s, and {found.grown / MiB:.1f} MiB more memory at the peak.",
    )


def _repository(report: Report, size: int, rounds: int) -> None:
    with repository.directory_trial(size) as trial:
        where = "in a directory on this machine's disk"
        report.race(f"A first backup {where}", trial.backup(rounds, _say), size, _remark(repository))
        report.race(f"A second backup {where}", trial.second_backup(rounds, _say), size, _OF_ALL)
        report.race(f"A restore from {where[3:]}", trial.restore(rounds, _say), size)
        report.race(f"Reading and checking all {where}", trial.verify(rounds, _say), size, _OF_ALL)
        report.text(f"What that took {where}", trial.costs())
    # moto's server takes most of the time, and memory.
    size //= 2
    remark = f"An image of {size // MiB} MiB."
    with repository.bucket_trial(size) as trial:
        where = "in a bucket of moto's server on loopback"
        report.race(f"A first backup {where}", trial.backup(rounds, _say), size, remark)
        report.race(f"A second backup {where}", trial.second_backup(rounds, _say), size, _OF_ALL)
        report.race(f"A restore from a {where[5:]}", trial.restore(rounds, _say), size)
        report.race(f"Reading and checking all {where}", trial.verify(rounds, _say), size, _OF_ALL)
        report.text(f"What that took {where}", trial.costs())
    with repository.far_trial(size) as trial:
        trial.backup(0, _say)
        title = f"A restore from a bucket whose answers come {repository.LATENCY * 1000:.0f} ms late"
        report.race(title, trial.restore(rounds, _say), size, remark)


def _remark(module: ModuleType) -> str:
    """Return what a module says of itself, as Markdown."""
    assert module.__doc__ is not None
    return module.__doc__.strip()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
