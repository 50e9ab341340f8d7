"""
The agent in one archive with all that it needs beside Python: nothing is installed on a host.

    __main__.py                                  starts the agent: python3 -I -S <unpacked bundle> --config FILE
    blockferry_agent/  blockferry_proto/         cut out of what runs here
    grpc/  google/  xxhash/  zstandard/ …        from wheels for the host's Python, in the versions that run here

Kept in the cache, so that every host of a kind after the first, and every later deployment, needs no network:

    <cache>/wheels/<kind>/*.whl
    <cache>/bundles/<kind>-<recipe>-<sha256 of the archive>.tar.gz       recipe: digest of all that went into it
"""

import contextlib
import fcntl
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import blockferry_agent
import blockferry_proto
from blockferry import errors, files
from blockferry.deploy import faults
from blockferry.deploy.interpreter import Kind

# typing_extensions is what grpcio needs; the others need nothing.
REQUIREMENTS = ("grpcio", "grpcio-health-checking", "protobuf", "xxhash", "zstandard", "typing_extensions")

_MAIN = b"""\
import runpy

runpy.run_module("blockferry_agent", run_name="__main__", alter_sys=True)
"""

_PIP_TIMEOUT = 300
# The first glibc that wheels are built for under these names (PEP 600).
_OLDEST_MANYLINUX = 17


class Bundle(NamedTuple):
    """
    An archive for one kind of host.

    data: tar.gz.  digest: its SHA-256 in hex, the bundle's name.  version: of the agent in it.
    """

    data: bytes
    digest: str
    version: str


class Bundles:
    """The bundles of one cache, each made once, however many hosts of its kind ask for it at the same time."""

    def __init__(self, cache: Path, offline: bool = False) -> None:
        """offline: fetch nothing."""
        self._cache = cache
        self._offline = offline
        self._lock = threading.Lock()
        self._made: dict[Kind, Bundle] = {}

    def bundle(self, kind: Kind) -> Bundle:
        """Return the bundle for hosts of a kind. Raises as `build`."""
        with self._lock:
            if kind not in self._made:
                self._made[kind] = build(self._cache, kind, self._offline)
            return self._made[kind]


def build(cache: Path, kind: Kind, offline: bool = False) -> Bundle:
    """
    Return the bundle for hosts of a kind, from the cache or made now.

    offline: fetch no wheels.
    Raises DeployError when a wheel must be fetched and cannot be, or the cache cannot be written.
    """
    with _locked(cache, kind):
        return _build(cache, kind, offline)


def _build(cache: Path, kind: Kind, offline: bool) -> Bundle:
    members = dict(_members(_wheels(cache / "wheels" / str(kind), kind, offline)))
    recipe = hashlib.sha256()
    for name, data in sorted(members.items()):
        recipe.update(f"{name}\n{len(data)}\n".encode() + data)
    label = f"{kind}-{recipe.hexdigest()[:16]}"
    directory = cache / "bundles"
    data = _cached(directory, label) or _store(directory, str(kind), label, pack(members))
    return Bundle(data, _sha256(data), blockferry_agent.__version__)


def pack(members: dict[str, bytes]) -> bytes:
    """Return files as a tar.gz that is the same, byte for byte, whenever it is made."""
    archive = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=archive, mode="wb", compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, data in sorted(members.items()):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def _cached(directory: Path, label: str) -> bytes | None:
    for path in directory.glob(f"{label}-*.tar.gz"):
        try:
            data = path.read_bytes()
        except OSError:
            continue  # another deployment may have replaced it just now
        if path.name == f"{label}-{_sha256(data)}.tar.gz":
            return data
    return None


def _store(directory: Path, kind: str, label: str, data: bytes) -> bytes:
    """Put an archive into the cache, in place of older ones for the same kind of host, and return it."""
    with faults.writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob(f"{kind}-*.tar.gz"):
            old.unlink(missing_ok=True)
        files.replace(directory / f"{label}-{_sha256(data)}.tar.gz", data, mode=0o644)
    return data


def _members(wheels: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Generate name and content of each file of a bundle."""
    yield "__main__.py", _MAIN
    for package in (blockferry_agent, blockferry_proto):
        assert package.__file__ is not None
        root = Path(package.__file__).parent
        for path in root.rglob("*.py"):
            yield f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes()
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for entry in archive.infolist():
                    if not entry.is_dir():
                        yield entry.filename, archive.read(entry)
        except (OSError, zipfile.BadZipFile) as error:
            raise errors.DeployError(f"{wheel} is damaged: {error}.", "Remove it, then deploy again.") from error


@contextlib.contextmanager
def _locked(cache: Path, kind: Kind) -> Iterator[None]:
    """Keep other controllers from making the same bundle at the same time."""
    path = cache / f".{kind}.lock"
    with faults.writing(path):
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _wheels(directory: Path, kind: Kind, offline: bool) -> list[Path]:
    """Return the wheels for hosts of a kind; fetch those that are not in `directory`."""
    versions = {name: metadata.version(name) for name in REQUIREMENTS}
    missing = [f"{name}=={version}" for name, version in versions.items() if not _wheel(directory, name, version)]
    if missing and offline:
        raise errors.DeployError(
            f"The cache has no {', '.join(missing)} for {kind}, and nothing may be fetched.",
            f"Run `blockferry agent bundle {kind}` where PyPI can be reached, and carry the cache's directory "
            f"{directory} over.",
        )
    if missing:
        with faults.writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".fetch.", dir=directory) as fetched:
                _fetch(missing, Path(fetched), kind)
                for wheel in Path(fetched).glob("*.whl"):
                    wheel.replace(directory / wheel.name)
    wheels = [_wheel(directory, name, version) for name, version in versions.items()]
    return [wheel for wheel in wheels if wheel is not None]


def _wheel(directory: Path, name: str, version: str) -> Path | None:
    return next(directory.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def _fetch(requirements: list[str], directory: Path, kind: Kind) -> None:
    major, minor = kind.python
    oldest = _OLDEST_MANYLINUX
    platforms = [
        *(f"manylinux_2_{number}_{kind.machine}" for number in range(kind.glibc[1], oldest - 1, -1)),
        f"manylinux2014_{kind.machine}",
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={major}.{minor}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--dest={directory}", *requirements]
    hint = "Wheels are fetched once for each kind of host: try where PyPI (or pip's configured index) can be reached."
    what = f"Fetching {', '.join(requirements)} for Python {major}.{minor} on {kind.machine}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise errors.DeployError(f"{what} took longer than {_PIP_TIMEOUT} seconds.", hint) from error
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        raise errors.DeployError(f"{what} failed: {words[-1].removeprefix('ERROR: ')}.", hint)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
