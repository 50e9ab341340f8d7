"""
The engine's background commands: one thread each, listed as a job, ended with the engine.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from tests.lab.engine import model
from tests.lab.engine.database import Database, new_id
from tests.lab.errors import HostError


class Stopped(Exception):
    """The engine is being stopped; the worker just ends."""


class Workers:
    def __init__(self, database: Database) -> None:
        self._db = database
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def start(self, description: str, command: Callable[[], None], correlation_id: str | None = None) -> model.Job:
        """Run a command in its own thread. A HostError that the command lets through makes the job fail, no more."""
        job = model.Job(id=new_id(), description=description, correlation_id=correlation_id)
        thread = threading.Thread(target=self._run, args=(job, command), name=description, daemon=True)
        with self._db.changed:
            self._db.jobs[job.id] = job
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
            thread.start()
        return job

    def stop(self) -> None:
        """End every worker; a host operation under way is waited for."""
        with self._db.changed:
            self._stopping = True
            self._db.changed.notify_all()
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout=60)

    def wait(self, until: Callable[[], bool], timeout: float | None = None) -> bool:
        """
        Wait for a change of the database. Returns what `until` says, or False after timeout seconds.

        Raises Stopped when the engine stops.
        """
        with self._db.changed:
            reached = self._db.changed.wait_for(lambda: self._stopping or until(), timeout)
            if self._stopping:
                raise Stopped
            return reached

    def pause(self, seconds: float) -> None:
        """Wait, whatever happens meanwhile. Raises Stopped when the engine stops."""
        deadline = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= deadline, timeout=seconds)

    def _run(self, job: model.Job, command: Callable[[], None]) -> None:
        try:
            command()
        except (Stopped, HostError):
            self._end(job, "failed")
        except Exception:
            # A bug of the simulator: a test sees a phase that never comes, and this says why.
            traceback.print_exc()
            self._end(job, "failed")
        else:
            self._end(job, "finished")

    def _end(self, job: model.Job, status: str) -> None:
        with self._db.changed:
            job.status = status
            job.ended = model.now()
            self._db.changed.notify_all()
