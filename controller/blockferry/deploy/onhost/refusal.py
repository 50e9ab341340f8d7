"""What cannot be done, and what to do about it."""

from __future__ import annotations


class Refused(Exception):
    """It cannot be done; args: a sentence, and optionally the next step."""

    kind = "refused"

    @property
    def sentence(self) -> str:
        return str(self.args[0])

    @property
    def hint(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else ""


class Busy(Refused):
    """Somebody else changes the same directory now."""

    kind = "busy"


class Reading(Refused):
    """The agent reads a disk, and was to be left alone then."""

    kind = "reading"


def as_refused(error: Refused | OSError) -> Refused:
    """Return what the controller is told of an error."""
    if isinstance(error, Refused):
        return error
    what = f"{error.filename} cannot be used: " if error.filename else ""
    return Refused(f"{what}{error.strerror or error}.", "See whether its file system is full or read-only.")
