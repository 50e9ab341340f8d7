"""`python -m tests.bench`: run the benchmarks and write the table."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from blockferry_agent.units import MiB
from tests.bench import backup, contenders, paper, race, scale, stage
from tests.bench.race import Unavailable
from tests.lab.lab import Lab

PARTS = (*stage.DATA, "backup", "scale")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the disk that is read (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--part", action="append", choices=PARTS, help="run this part only; repeatable")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"), help="Markdown file to write")
    options = parser.parse_args()
    parts = options.part or PARTS
    size = options.size * MiB
    sections = [_preface(options.size, options.rounds)]
    for kind in stage.DATA:
        if kind in parts:
            sections.append(_reading(kind, size, options.rounds))
    if "backup" in parts:
        sections += [_backup(kind, size, options.rounds) for kind in ("random", "compressible")]
    if "scale" in parts:
        sections.append(_scale())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
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
        "OpenSSH": stage.version("ssh", "-V"),
    }
    return "; ".join(f"{name} {text}" for name, text in found.items()) + "."


def _reading(kind: str, size: int, rounds: int) -> str:
    title = f"## Reading a disk of {kind} data to where nothing is kept"
    try:
        with stage.up(kind, size) as scene:
            results = race.run(contenders.all_of(scene), rounds, _say)
            memory = stage.resident_peak(scene.agent_pid)
    except Unavailable as reason:
        return f"{title}\n\nCould not run: {reason}."
    return f"{title}\n\n{paper.table(results, size)}\n\nThe agent's process had {memory / MiB:.0f} MiB at its peak."


def _backup(kind: str, size: int, rounds: int) -> str:
    title = f"## A full backup of a running VM with {kind} data into a local directory"
    with Lab.up(Path(f"/dev/shm/bfb-{os.getpid()}")) as lab:
        results = race.run(backup.all_of(lab, kind, size), rounds, _say)
    return f"{title}\n\nThe whole command, from its start to its end.\n\n{paper.table(results, size)}"


def _scale() -> str:
    findings = [scale.incremental(), scale.fragmented()]
    rows = [f"| {finding.what} | {finding.seconds:.1f} | {finding.figures} |" for finding in findings]
    return "\n".join(["## Huge disks", "", "| | seconds | |", "|---|---|---|", *rows])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
