"""
The repository beside restic and borg: first backup, backup of a twentieth that changed, restore, and reading and
checking of all, in a directory, in a bucket, and in a bucket that is 20 ms away.

Each operation is a command, from its start to its end, that flushes what its makers think must be. All have the same
image, two fifths of it random bytes, two fifths text of which zstd makes a quarter, and a fifth zeros; it and what is
restored are in memory. What changes are pieces of 64 KiB to 1 MiB. Peers read all of the image again for the second
backup; ours is told what changed, as a dirty bitmap tells it.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from obstore.store import S3Store

from blockferry_agent.units import MiB
from tests.bench import far, ours, race, usage
from tests.bench.changing import ChangingImage
from tests.bench.race import Contender, Result, Unavailable
from tests.component import object_stores
from tests.component.object_stores import Service

Say = Callable[[str], None]

LATENCY: Final = 0.02
"""Seconds before each answer of the bucket that is far away."""

_TIMEOUT = 900.0
_ONE = ", one request at a time"

Bars = Mapping[str, tuple[float, str]]
"""By the names of tools: the least ratio that we want to hold, and to whom, by the beginning of his name."""

_LIKE_FOR_LIKE: Bars = {
    "ours, plain, zstd": (1.0, "borg, plain, lz4"),
    "ours, plain, not compressed": (1.0, "borg, plain, not compressed"),
    "ours, encrypted, zstd": (1.0, "restic, encrypted, zstd"),
    "ours, encrypted, not compressed": (1.0, "restic, encrypted, not compressed"),
}
_IN_BUCKETS: Bars = {"ours, encrypted, zstd": _LIKE_FOR_LIKE["ours, encrypted, zstd"]}
_MANY_AT_A_TIME: Bars = {kind: (4.0, kind + _ONE) for kind in ("ours, plain, zstd", "ours, encrypted, zstd")}


class Used(NamedTuple):
    """What a command used. seconds: by the clock.  processor: seconds of all its threads.  memory: bytes at the peak."""

    seconds: float
    processor: float
    memory: int


class Tool(Protocol):
    """
    One that keeps an image in a repository of its own.

    name: in the tables.  url: of its newest repository, as its own command wants it.
    """

    name: str
    url: str

    def init(self) -> None:
        """Make a new repository; what was there is forgotten. Raises Unavailable."""

    def back_up(self, image: ChangingImage) -> Used:
        """Back up the image as it is."""

    def back_up_changes(self, image: ChangingImage) -> Used:
        """Back up the image once more: the version before is in the newest backup."""

    def restore(self, target: Path) -> Used:
        """Restore the newest backup. target: a directory; return when its file `disk.raw` is complete."""

    def verify(self) -> Used:
        """Read and check all that there is."""


class Place:
    """
    Where repositories are.

    directory: for them, and what else the tools keep.  service: an object store, when the repositories are in that.
    """

    def __init__(self, directory: Path, service: Service | None = None) -> None:
        self.directory = directory
        self.service = service
        self._environment = {} if service is None else service.environment
        self._buckets: dict[str, str] = {}

    def new(self, name: str) -> str:
        """Return where a tool's new repository is to be, a path or a bucket. What the tool had is removed."""
        if self.service is not None:
            self._clear(name)
            self._buckets[name] = self.service.new_bucket()
            return self._buckets[name]
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        return str(path)

    def clear(self) -> None:
        """Remove what is in the object store, which is memory."""
        for name in self._buckets:
            self._clear(name)

    def _clear(self, name: str) -> None:
        if name in self._buckets and self.service is not None:
            bucket = S3Store(
                self._buckets[name],
                endpoint=self.service.url,
                access_key_id="key",
                secret_access_key="secret",
                region="us-east-1",
                client_options={"allow_http": True},
            )
            for objects in bucket.list():
                bucket.delete([found["path"] for found in objects])

    def run(self, *command: str | Path, cwd: Path | None = None, **environment: str) -> Used:
        """Run a command. Raises Unavailable when it fails."""
        if shutil.which(command[0]) is None:
            raise Unavailable(f"{command[0]} is not installed")
        done = subprocess.run(
            [sys.executable, usage.__file__, *command],
            env={**os.environ, **self._environment, **environment},
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
        )
        used = json.loads(done.stdout.splitlines()[-1])
        if used["status"]:
            words = " ".join(str(word) for word in command[:3])
            raise Unavailable(f"{words} ended with {used['status']}: {done.stderr.strip()[-300:]}")
        return Used(used["seconds"], used["processor"], used["memory"])


class Ours:
    """Ours."""

    def __init__(self, place: Place, encrypted: bool, compression: str = "zstd", one_at_a_time: bool = False) -> None:
        self.name = f"ours, {_kind(encrypted, compression)}" + _ONE * one_at_a_time
        self._place = place
        self._options = ["--encrypted"] * encrypted + ["--one-at-a-time"] * one_at_a_time
        self._compression = compression
        self.url = ""

    def init(self) -> None:
        place = self._place.new(self.name.replace(", ", "-").replace(" ", "-"))
        self.url = place if self._place.service is None else f"s3://{place}/repository"
        self._do("init", f"--compression={self._compression}")

    def back_up(self, image: ChangingImage) -> Used:
        return self._do("backup", f"--image={image.path}")

    def back_up_changes(self, image: ChangingImage) -> Used:
        return self._do("backup", f"--image={image.path}", f"--dirty={image.version}")

    def restore(self, target: Path) -> Used:
        return self._do("restore", f"--image={target / 'disk.raw'}")

    def verify(self) -> Used:
        return self._do("verify")

    def _do(self, operation: str, *options: str) -> Used:
        command = [sys.executable, "-m", ours.__name__, operation, self.url, *self._options, *options]
        return self._place.run(*command)


class Restic:
    """restic, which encrypts and compresses always, unless told not to compress."""

    def __init__(self, place: Place, compression: str = "auto") -> None:
        self.name = f"restic, {_kind(True, 'none' if compression == 'off' else 'zstd')}"
        self._place = place
        self._options = [f"--compression={compression}", "--quiet"]
        self._cache = place.directory / f"restic-cache-{compression}"
        self.url = ""

    def init(self) -> None:
        place = self._place.new(self._cache.name.replace("cache", "repository"))
        self.url = place if self._place.service is None else f"s3:{self._place.service.url}/{place}"
        shutil.rmtree(self._cache, ignore_errors=True)
        self._do("init")

    def back_up(self, image: ChangingImage) -> Used:
        return self._do("backup", str(image.path))

    back_up_changes = back_up

    def restore(self, target: Path) -> Used:
        used = self._do("restore", "latest", f"--target={target / 'restic'}")
        _found(target / "restic").rename(target / "disk.raw")
        return used

    def verify(self) -> Used:
        return self._do("check", "--read-data")

    def _do(self, *words: str) -> Used:
        return self._place.run(
            "restic",
            *words,
            *self._options,
            RESTIC_REPOSITORY=self.url,
            RESTIC_PASSWORD=ours.PASSPHRASE,
            RESTIC_CACHE_DIR=str(self._cache),
        )


class Borg:
    """borg, encrypted (its `repokey-blake2`) or plain, with lz4, its default, or without compression."""

    def __init__(self, place: Place, encrypted: bool, compression: str = "lz4") -> None:
        self.name = f"borg, {_kind(encrypted, compression)}"
        self._place = place
        self._encryption = "repokey-blake2" if encrypted else "none"
        self._compression = compression
        self._base = place.directory / f"borg-base-{self._encryption}-{compression}"
        self.url = ""
        self._newest = ""

    def init(self) -> None:
        self.url = self._place.new(self._base.name.replace("base", "repository"))
        shutil.rmtree(self._base, ignore_errors=True)
        self._do("init", f"--encryption={self._encryption}")

    def back_up(self, image: ChangingImage) -> Used:
        self._newest = f"::{image.version}"
        return self._do("create", f"--compression={self._compression}", self._newest, str(image.path))

    back_up_changes = back_up

    def restore(self, target: Path) -> Used:
        used = self._do("extract", "--sparse", self._newest, cwd=target)
        _found(target).rename(target / "disk.raw")
        return used

    def verify(self) -> Used:
        return self._do("check", "--verify-data")

    def _do(self, *words: str, cwd: Path | None = None) -> Used:
        # The last: borg asks before it trusts a repository that is not encrypted, and one that was made anew.
        return self._place.run(
            "borg",
            *words,
            cwd=cwd,
            BORG_REPO=self.url,
            BORG_PASSPHRASE=ours.PASSPHRASE,
            BORG_BASE_DIR=str(self._base),
            BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
            BORG_RELOCATED_REPO_ACCESS_IS_OK="yes",
        )


def _kind(encrypted: bool, compression: str) -> str:
    return f"{'encrypted' if encrypted else 'plain'}, {'not compressed' if compression == 'none' else compression}"


def _found(directory: Path) -> Path:
    """Return the only file below a directory: peers restore with all folders of its path."""
    (path,) = (path for path in directory.rglob("*") if path.is_file())
    return path


class Trial:
    """
    Some tools in one place, and one image. Each operation is a race; they are run in this order.

    image: to be backed up.  scratch: directory that disks are restored to.  bars: for each of the races.
    """

    def __init__(self, tools: Sequence[Tool], image: ChangingImage, scratch: Path, bars: Bars) -> None:
        self._tools = tools
        self._image = image
        self._scratch = scratch
        self._bars = bars
        self._used: defaultdict[tuple[str, str], list[Used]] = defaultdict(list)
        self._stored: defaultdict[tuple[str, str], list[int]] = defaultdict(list)

    def backup(self, rounds: int, say: Say) -> list[Result]:
        """First backups, each into a new repository."""

        def run(tool: Tool) -> Used:
            tool.init()
            return tool.back_up(self._image)

        return self._race("backup", run, rounds, say)

    def second_backup(self, rounds: int, say: Say) -> list[Result]:
        """Backups of what changed since the last one."""
        first = self._image.version
        counts: Counter[str] = Counter()

        def run(tool: Tool) -> Used:
            counts[tool.name] += 1
            self._image.change(first + counts[tool.name])
            return tool.back_up_changes(self._image)

        return self._race("second backup", run, rounds, say)

    def restore(self, rounds: int, say: Say) -> list[Result]:
        """Restores of the newest backup, to memory."""

        def run(tool: Tool) -> Used:
            with tempfile.TemporaryDirectory(dir=self._scratch) as target:
                used = tool.restore(Path(target))
                assert filecmp.cmp(self._image.path, Path(target) / "disk.raw", shallow=False), "restored another disk"
            return used

        return self._race("restore", run, rounds, say)

    def verify(self, rounds: int, say: Say) -> list[Result]:
        """Reading and checking of all that is there."""
        return self._race("verify", lambda tool: tool.verify(), rounds, say)

    def costs(self) -> str:
        """Return a table of what was used beside time: medians, but of memory the most."""
        lines = [
            "| | operation | MiB more in the repository | processor seconds | MiB of memory at the peak |",
            "|---|---|---|---|---|",
        ]
        # Operations in the order in which they were run, and the tools always in the same.
        operations = dict.fromkeys(operation for operation, _ in self._used)
        rows = [(operation, tool.name) for operation in operations for tool in self._tools]
        for operation, name in (row for row in rows if row in self._used):
            used = self._used[operation, name]
            stored = self._stored[operation, name]
            lines.append(
                f"| {name} | {operation} | {f'{statistics.median(stored) / MiB:.0f}' if any(stored) else ''} "
                f"| {statistics.median(each.processor for each in used):.1f} "
                f"| {max(each.memory for each in used) / MiB:.0f} |"
            )
        return "\n".join(lines)

    def _race(self, operation: str, run: Callable[[Tool], Used], rounds: int, say: Say) -> list[Result]:
        def timed(tool: Tool) -> float:
            before = 0 if operation == "backup" else _length(tool.url)
            used = run(tool)
            self._used[operation, tool.name].append(used)
            self._stored[operation, tool.name].append(_length(tool.url) - before)
            return used.seconds

        contenders = [
            Contender(tool.name, partial(timed, tool), *self._bars.get(tool.name, ())) for tool in self._tools
        ]
        return race.run(contenders, rounds, lambda text: say(f"{operation}: {text}"))


def _length(url: str) -> int:
    """Return the bytes of all files in a repository, 0 when it is in no directory."""
    return sum(path.stat().st_size for path in Path(url).rglob("*") if path.is_file()) if url.startswith("/") else 0


def in_directory(place: Place) -> list[Tool]:
    """Return the tools that keep their repositories in a directory."""
    return [
        Ours(place, encrypted=False),
        Ours(place, encrypted=False, compression="none"),
        Ours(place, encrypted=True),
        Ours(place, encrypted=True, compression="none"),
        Restic(place),
        Restic(place, compression="off"),
        *(Borg(place, encrypted, compression) for encrypted in (False, True) for compression in ("lz4", "none")),
    ]


def in_bucket(place: Place) -> list[Tool]:
    """Return the tools that keep their repositories in a bucket."""
    return [Ours(place, encrypted=False), Ours(place, encrypted=True), Restic(place)]


def in_far_bucket(place: Place) -> list[Tool]:
    """Return the same, and ours without what makes them bear the distance."""
    slow = [Ours(place, encrypted, one_at_a_time=True) for encrypted in (False, True)]
    return [*in_bucket(place), *slow]


@contextlib.contextmanager
def directory_trial(size: int, tools: Callable[[Place], list[Tool]] = in_directory) -> Iterator[Trial]:
    """Have a trial in a directory of this machine's disk, where flushing costs what it costs."""
    with _place() as place, _image(size) as image:
        yield Trial(tools(place), image, image.path.parent, _LIKE_FOR_LIKE)


@contextlib.contextmanager
def bucket_trial(size: int) -> Iterator[Trial]:
    """Have a trial in buckets on loopback."""
    with object_stores.serving() as service, _place(service) as place, _image(size) as image:
        yield Trial(in_bucket(place), image, image.path.parent, _IN_BUCKETS)


@contextlib.contextmanager
def far_trial(size: int) -> Iterator[Trial]:
    """Have a trial in buckets that are far away."""
    with far.serving(LATENCY) as service, _place(service) as place, _image(size) as image:
        yield Trial(in_far_bucket(place), image, image.path.parent, _MANY_AT_A_TIME)


@contextlib.contextmanager
def _place(service: Service | None = None) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="bfb", dir="/var/tmp") as directory:
        place = Place(Path(directory), service)
        yield place
        place.clear()


@contextlib.contextmanager
def _image(size: int) -> Iterator[ChangingImage]:
    """Have an image, in memory: what reading it costs is the same for all."""
    with tempfile.TemporaryDirectory(prefix="bfb", dir="/dev/shm") as directory:
        yield ChangingImage(Path(directory) / "disk.raw", size)
