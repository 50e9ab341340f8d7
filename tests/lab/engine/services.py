"""
Everything that requests are answered with.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.lab.engine.backups.lifecycle import Backups
from tests.lab.engine.checkpoints import Checkpoints
from tests.lab.engine.context import Context
from tests.lab.engine.database import Database
from tests.lab.engine.disks import Disks
from tests.lab.engine.faults import Faults
from tests.lab.engine.imports import Imports
from tests.lab.engine.sso import Sessions
from tests.lab.engine.transfers.requests import Transfers
from tests.lab.engine.vms import Vms


@dataclasses.dataclass(frozen=True)
class Services:
    """ca: the certificate authority's certificate, which clients may fetch."""

    context: Context
    sessions: Sessions
    vms: Vms
    imports: Imports
    disks: Disks
    checkpoints: Checkpoints
    backups: Backups
    transfers: Transfers
    ca: Path

    @property
    def db(self) -> Database:
        return self.context.db

    @property
    def faults(self) -> Faults:
        return self.context.faults
