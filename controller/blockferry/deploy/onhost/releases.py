"""
What was deployed: the release in force, and the one before it, each with its bundle.

    releases/<name>/           one deployment; readable by the agent's group, if it has one, and its owner alone
        release.json           what it says of itself: bundle, version, Python
        settings.json          how the service is to be run
        agent.json             the agent's configuration
        tls -> tls.<number>    agent.crt, agent.key, ca.crt, revoked.json: replaced together, by switching the link
    bundles/<sha256>/          the agent and its libraries
    current, previous          links to releases
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from blockferry.deploy.onhost import directory
from blockferry.deploy.onhost.refusal import Busy, Refused

BUNDLE = "bundle.tar.gz"
CREDENTIALS = ("agent.crt", "agent.key", "ca.crt", "revoked.json")
TLS = "tls"
DAMAGED = (OSError, ValueError, LookupError, TypeError)
"""What reading a release raises that is not complete, or not ours."""


class Release:
    """
    One deployment. Raises one of `DAMAGED`.

    about, settings, config: of release.json, settings.json, agent.json.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.about: dict[str, Any] = json.loads((path / "release.json").read_bytes())
        self.settings: dict[str, Any] = json.loads((path / "settings.json").read_bytes())
        self.config: dict[str, Any] = json.loads((path / "agent.json").read_bytes())
        self.bundle = str(self.about["bundle"])

    @property
    def home(self) -> Path:
        return self.path.parent.parent

    @property
    def config_file(self) -> Path:
        return self.path / "agent.json"

    def command(self, config: Path) -> list[str]:
        """Return what starts this release's agent."""
        return [self.about["python"], "-I", "-S", str(self.home / "bundles" / self.bundle), "--config", str(config)]

    def describe(self) -> dict[str, Any]:
        """Return what the controller is told."""
        return {
            "about": self.about,
            "settings": self.settings,
            "config": self.config,
            "certificate": (self.path / TLS / "agent.crt").read_text(),
        }

    def credentials(self) -> dict[str, bytes]:
        return {name: (self.path / TLS / name).read_bytes() for name in CREDENTIALS}

    def renew(self, files: Mapping[str, bytes]) -> None:
        """Put other credentials in force, all at once. The agent reads them at the next handshake."""
        old = (self.path / TLS).readlink().name
        number = int(old.rpartition(".")[2]) + 1
        _put_credentials(self.path, number, files, self.path.stat().st_gid)
        directory.delete(self.path / old)


class Releases:
    """The releases of one directory. home: that directory."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @property
    def current(self) -> Release | None:
        """The release in force; a damaged one is none."""
        return self._linked("current")

    @property
    def previous(self) -> Release | None:
        """The one before it."""
        return self._linked("previous")

    def bundles(self) -> list[str]:
        """Return the digests of the bundles that are there."""
        return [path.name for path in (self._home / "bundles").glob("*") if not path.suffix]

    def make(self, name: str, files: Mapping[str, bytes], group: int | None) -> Release:
        """
        Unpack what came as a new release, which is not in force yet.

        group: of the agent's user, who may read it; None when the agent's user is the one who does this.
        Raises Refused, Busy when its bundle went away meanwhile.
        """
        self._unpack(json.loads(files["release.json"])["bundle"], files.get(BUNDLE))
        releases = self._home / "releases"
        releases.mkdir(mode=0o755, exist_ok=True)
        partial = releases / f"{name}.partial"
        directory.delete(partial)
        partial.mkdir(mode=0o700)
        if group is not None:
            os.chown(partial, -1, group)
        for file in ("release.json", "settings.json", "agent.json"):
            directory.replace(partial / file, files[file], 0o600 if group is None else 0o640, group)
        _put_credentials(partial, 1, files, group)
        partial.chmod(0o700 if group is None else 0o750)
        directory.make_tree_durable(partial)
        path = partial.rename(releases / name)
        directory.make_durable(releases)
        return Release(path)

    def put_in_force(self, release: Release) -> None:
        """Make a release the current one, and what was current the previous one."""
        before = self.current
        if before is not None and before.name != release.name:
            directory.link(self._home / "previous", f"releases/{before.name}")
        directory.link(self._home / "current", f"releases/{release.name}")

    def discard(self, release: Release) -> None:
        """
        Delete a release that is not in force, and its bundle if no other has it.

        Others stay: after a deployment that was killed, the one that runs may be in force by its unit alone.
        """
        directory.delete(release.path)
        users = [path / "release.json" for path in _entries(self._home / "releases")]
        if not any(release.bundle.encode() in path.read_bytes() for path in users if path.exists()):
            directory.delete(self._home / "bundles" / release.bundle)

    def sweep(self) -> None:
        """Delete what neither the current nor the previous release needs."""
        kept = [release for release in (self.current, self.previous) if release is not None]
        for path in _entries(self._home / "releases"):
            if path.name not in {release.name for release in kept}:
                directory.delete(path)
        for path in _entries(self._home / "bundles"):
            if path.name not in {release.bundle for release in kept}:
                directory.delete(path)

    def _linked(self, name: str) -> Release | None:
        try:
            return Release(self._home / (self._home / name).readlink())
        except DAMAGED:
            return None

    def _unpack(self, digest: str, archive: bytes | None) -> None:
        """Unpack a bundle, after its digest was checked; one that did not come must be there already."""
        target = self._home / "bundles" / digest
        if target.is_dir():
            return
        if archive is None:
            raise Busy("The bundle was removed by another deployment.", "Try again.")
        if hashlib.sha256(archive).hexdigest() != digest:
            raise Refused("The bundle arrived damaged.", "Try again.")
        partial = target.with_suffix(".partial")
        directory.delete(partial)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                content = tar.extractfile(member)
                if content is None or name.is_absolute() or ".." in name.parts:
                    raise Refused(f"The bundle has a member that no bundle has: {member.name}.")
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.read())
        directory.make_tree_durable(partial)
        partial.rename(target)
        directory.make_durable(target.parent)


def _put_credentials(path: Path, number: int, files: Mapping[str, bytes], group: int | None) -> None:
    """Write credentials to a new directory of a release, and switch to it."""
    new = path / f"{TLS}.{number}"
    directory.delete(new)
    new.mkdir(mode=0o700)
    if group is not None:
        os.chown(new, -1, group)
    for name in CREDENTIALS:
        directory.replace(new / name, files[name], 0o600 if group is None else 0o640, group)
    new.chmod(0o700 if group is None else 0o750)
    directory.make_durable(path)
    directory.link(path / TLS, new.name)


def _entries(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from list(path.iterdir())
