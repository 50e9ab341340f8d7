"""
Which storage domain each new disk goes to.

    --storage-map OLD=NEW      where a disk of OLD goes
    --storage-domain           where all others go
    neither                    where the disk was; if that domain is gone, the only one that there is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blockferry import errors
from blockferry.engine import StorageDomain
from blockferry.repository import DiskManifest
from blockferry_agent.units import MiB


class Domains:
    """
    The engine's storage domains, with what is free in them.

    known: all of them.  before: ids of those that disks were in, by the disks' ids.
    wanted: name or id of the one for all disks, if any.  mapped: names or ids, by name or id of where a disk was.
    Raises NotFound when what the operator names is not there, Ambiguous.
    """

    def __init__(
        self,
        known: Sequence[StorageDomain],
        before: Mapping[str, str],
        wanted: str | None,
        mapped: Mapping[str, str],
    ) -> None:
        self._known = known
        self._before = before
        self._wanted = self._find(wanted) if wanted is not None else None
        # A domain that is gone is known by nothing but the id that stands in the VM's configuration.
        self._mapped = {self._old_id(old): self._find(new) for old, new in mapped.items()}
        self._free = {domain.id: domain.available for domain in known}

    def take(self, disk: DiskManifest, space: int) -> StorageDomain:
        """
        Return where a disk goes, and count `space` bytes of it as used.

        Raises Ambiguous when the operator must say it, RestoreError when there is no room.
        """
        domain = self._choose(disk)
        free = self._free[domain.id]
        if free is None:
            return domain
        if space > free:
            raise errors.RestoreError(
                f"Disk '{disk.alias}' needs {space / MiB:.1f} MiB, and storage domain '{domain.name}' has"
                f" {free / MiB:.1f} MiB left for it.",
                "Make room there, or name another domain with --storage-domain.",
            )
        self._free[domain.id] = free - space
        return domain

    def _choose(self, disk: DiskManifest) -> StorageDomain:
        old = self._before.get(disk.id, "")
        if old in self._mapped:
            return self._mapped[old]
        if self._wanted is not None:
            return self._wanted
        for domain in self._known:
            if domain.id == old:
                return domain
        if len(self._known) == 1:
            return self._known[0]
        raise errors.Ambiguous(
            f"The storage domain that disk '{disk.alias}' was in is not known, and the engine has {self._names()}.",
            "Name one with --storage-domain.",
        )

    def _find(self, name: str) -> StorageDomain:
        found = [domain for domain in self._known if name in (domain.id, domain.name)]
        if not found:
            raise errors.NotFound(f"The engine has no storage domain '{name}' for disks.", f"It has: {self._names()}.")
        if len(found) > 1:
            raise errors.Ambiguous(f"The engine has {len(found)} storage domains called '{name}'.", "Give the id.")
        return found[0]

    def _old_id(self, name: str) -> str:
        return next((domain.id for domain in self._known if domain.name == name), name.lower())

    def _names(self) -> str:
        return ", ".join(domain.name for domain in self._known) or "none"
