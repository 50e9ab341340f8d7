"""
What every command of the engine works with.
"""

from __future__ import annotations

import dataclasses

from tests.lab.engine.database import Database
from tests.lab.engine.events import Events
from tests.lab.engine.faults import Faults
from tests.lab.engine.settings import Settings
from tests.lab.engine.workers import Workers


@dataclasses.dataclass(frozen=True)
class Context:
    db: Database
    events: Events
    faults: Faults
    settings: Settings
    workers: Workers
