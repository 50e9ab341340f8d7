"""
What can be done with the agent of one directory.

    install:   unpack ─▶ try out beside the one that runs ─▶ stop that one ─▶ start ─▶ in force ─▶ sweep
                              │ fails: nothing was touched                      │ fails: the old one runs again

A request that is cut off anywhere leaves the old release in force, or the new one; the same request again repairs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockferry.deploy.onhost import supervisor
from blockferry.deploy.onhost.directory import Directory
from blockferry.deploy.onhost.refusal import Refused, as_refused
from blockferry.deploy.onhost.releases import DAMAGED, Release, Releases
from blockferry.deploy.onhost.supervisor import Supervisor


class Deployment:
    """The agent of a directory. path: absolute."""

    def __init__(self, path: str) -> None:
        """Raises Refused when others could change what is at that path."""
        self._directory = Directory(path)
        self.home: Path = self._directory.path
        self.releases = Releases(self.home)
        self.supervisor: Supervisor = supervisor.choose(self.home)

    def inspect(self) -> dict[str, Any]:
        """Say what is there, and change nothing. A directory that is not ours counts as empty."""
        ours = self._directory.is_ours
        return {
            "supervisor": self.supervisor.kind,
            "socket": self.supervisor.socket,
            "bundles": self.releases.bundles() if ours else [],
            "current": _described(self.releases.current) if ours else None,
            "previous": _described(self.releases.previous) if ours else None,
            "state": self.supervisor.state() if ours else "absent",
            "pid": self.supervisor.pid() if ours else None,
        }

    def install(self, name: str, files: Mapping[str, bytes], when_idle: bool) -> None:
        """
        Put what came in force as a release of this name, and return when its agent serves.

        when_idle: raise Reading while the agent that runs reads a disk; else it is stopped whatever it does.
        """
        self._directory.claim()
        with self._directory.locked():
            group = self.supervisor.prepare()
            release = self.releases.make(name, files, group)
            try:
                self.supervisor.try_out(release)
                self._replace(release, when_idle)
            except BaseException:
                self._discard(release)
                raise
            self.releases.put_in_force(release)
            # What was in force until now may be gone back to, but nothing older.
            self.releases.sweep()

    def rollback(self, when_idle: bool) -> dict[str, Any]:
        """Put the previous release in force again, and return it."""
        self._refuse_absent()
        with self._directory.locked():
            previous = self.releases.previous
            if previous is None:
                raise Refused("There is no earlier release to go back to.", "Deploy the version that you want.")
            current = self.releases.current
            if current is not None:
                # Its credentials are those that the controller expects.
                previous.renew(current.credentials())
            self._replace(previous, when_idle)
            self.releases.put_in_force(previous)
            return previous.describe()

    def renew(self, files: Mapping[str, bytes]) -> None:
        """Give the release in force other credentials. The agent is not restarted: it reads them by itself."""
        self._refuse_absent()
        with self._directory.locked():
            current = self.releases.current
            if current is None:
                raise Refused("No agent is in force here.", "Deploy it.")
            current.renew(files)

    def logs(self, lines: int) -> str:
        self._refuse_absent()
        return self.supervisor.log(lines)

    def remove(self) -> bool:
        """Stop the agent and take away all that was made on this host for it; False when there was nothing."""
        if not self._directory.path.exists():
            return self.supervisor.remove()
        if not self._directory.is_ours:
            raise Refused(f"{self.home} is not a directory of Blockferry's agent: it was left alone.")
        with self._directory.locked():
            self.supervisor.remove()
            self._directory.delete()
        return True

    def _replace(self, release: Release, when_idle: bool) -> None:
        """Stop the agent that runs, start another release; when that fails, start the old one again."""
        before = self.releases.current
        self.supervisor.stop(when_idle)
        try:
            self.supervisor.start(release)
        except (Refused, OSError) as error:
            raise self._fall_back(before, as_refused(error)) from error

    def _fall_back(self, before: Release | None, failure: Refused) -> Refused:
        """Start the release again that was in force, and return the whole story."""
        self.supervisor.stop(when_idle=False)
        if before is None:
            return failure
        try:
            self.supervisor.start(before)
        except (Refused, OSError) as error:
            why = as_refused(error).sentence
            return Refused(f"{failure.sentence} The agent that ran before does not start any more: {why}", failure.hint)
        return Refused(f"{failure.sentence} The agent that ran before runs again.", failure.hint)

    def _discard(self, release: Release) -> None:
        current = self.releases.current
        if current is None or current.name != release.name:
            self.releases.discard(release)

    def _refuse_absent(self) -> None:
        if not self._directory.is_ours:
            raise Refused(f"There is no agent in {self.home}.", "Deploy it (`blockferry agent deploy`).")


def _described(release: Release | None) -> dict[str, Any] | None:
    try:
        return release.describe() if release is not None else None
    except DAMAGED:
        return None
