"""
Bad days, switched on from a test.

    | call                          | what happens from now on                                               |
    | ----------------------------- | ---------------------------------------------------------------------- |
    | stick(phase)                  | no backup or transfer enters the phase, until release(phase)           |
    | fail_redefine()               | the next incremental live backup cannot redefine its checkpoint        |
    | fail_start()                  | the next live backup is refused by the host when it begins             |
    | fail_attach()                 | the next VM that is imported lacks its first disk                      |
    | refuse(path, status, detail)  | the next request whose path contains `path` is answered with a fault   |
    | delay(path, seconds)          | every request whose path contains `path` is answered late; 0 ends it   |
    | expire_sessions()             | every token that was given out is refused with 401                     |
    | restart(seconds)              | the engine is down for a while; sessions are gone, entities are kept   |

What breaks outside the engine is broken there: `host.kill_vm`, `host.restart_imageio`, `host.remove_ticket`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tests.lab.engine.database import Database
from tests.lab.engine.rejections import Rejection


class Refused(Rejection):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@dataclasses.dataclass
class _Refusal:
    path: str
    status: int
    detail: str
    times: int


class Faults:
    """The switches, for tests, and the questions that the engine asks."""

    def __init__(
        self,
        database: Database,
        expire_sessions: Callable[[], None],
        restart: Callable[[float], None],
    ) -> None:
        self._db = database
        self._stuck: set[str] = set()
        self._delays: dict[str, float] = {}
        self._refusals: list[_Refusal] = []
        self._failing: set[str] = set()
        self.expire_sessions = expire_sessions
        self._restart = restart

    def stick(self, phase: str) -> None:
        """phase: as REST shows it, for example "ready" or "transferring"."""
        with self._db.changed:
            self._stuck.add(phase)

    def release(self, phase: str) -> None:
        with self._db.changed:
            self._stuck.discard(phase)
            self._db.changed.notify_all()

    def fail_redefine(self) -> None:
        self._failing.add("redefine")

    def fail_start(self) -> None:
        self._failing.add("start")

    def fail_attach(self) -> None:
        self._failing.add("attach")

    def refuse(self, path: str, status: int, detail: str, times: int = 1) -> None:
        self._refusals.append(_Refusal(path, status, detail, times))

    def delay(self, path: str, seconds: float) -> None:
        self._delays[path] = seconds

    def restart(self, seconds: float = 0.5) -> None:
        """Returns when the engine is up again, on the same port."""
        self._restart(seconds)

    def reset(self) -> None:
        """Switch every fault off."""
        with self._db.changed:
            self._stuck.clear()
            self._delays.clear()
            self._refusals.clear()
            self._failing.clear()
            self._db.changed.notify_all()

    # What the engine asks.

    def holds(self, phase: str) -> bool:
        return phase in self._stuck

    def fails(self, what: str) -> bool:
        """Does this operation fail? Each switch is good for one failure."""
        failing = what in self._failing
        self._failing.discard(what)
        return failing

    def delay_of(self, path: str) -> float:
        """Seconds to wait before the answer to a request."""
        return max((seconds for part, seconds in self._delays.items() if part in path), default=0)

    def check(self, path: str) -> None:
        """Raise Refused when the request of this path is to be turned down."""
        for refusal in self._refusals:
            if refusal.path in path:
                refusal.times -= 1
                if refusal.times == 0:
                    self._refusals.remove(refusal)
                raise Refused(refusal.status, refusal.detail)
