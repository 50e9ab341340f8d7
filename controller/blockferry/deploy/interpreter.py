"""The Python that a host has: the agent runs on Python 3.9 or later of an ordinary Linux (glibc)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple, Self

from blockferry import errors

if TYPE_CHECKING:
    from blockferry.deploy.ssh import Connection

OLDEST = (3, 9)

# platform-python is EL8's own; versions beside it come from modules or SCLs.
_CANDIDATES = (
    "python3",
    "/usr/libexec/platform-python",
    *(f"python3.{minor}" for minor in range(OLDEST[1], 15)),
)

# Prints where a command is, then what it is. The path is kept as it was found: behind it may be a wrapper, and then
# sys.executable does not run by itself.
_FIND = 'path=$(command -v "$1") && echo "$path" && exec "$path" -I -'

# Runs on Python 2.7, too: that is how an old one is told from a broken one.
_DESCRIBE = b"""
import json, os, platform, sys
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION")
except (AttributeError, ValueError):
    libc = None
print(json.dumps([list(sys.version_info[:3]), platform.machine(), libc]))
"""


class Kind(NamedTuple):
    """
    What hosts have in common that the same bundle fits.

    python: (3, 9).  machine: "x86_64".  glibc: (2, 34).
    """

    python: tuple[int, int]
    machine: str
    glibc: tuple[int, int]

    def __str__(self) -> str:
        """Return a name for files and for people: "cp39-x86_64-glibc2.34"."""
        return f"cp{self.python[0]}{self.python[1]}-{self.machine}-glibc{self.glibc[0]}.{self.glibc[1]}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the kind of this name. Raises DeployError."""
        match = re.fullmatch(r"(?:cp|py)(\d)(\d{1,2})-(x86_64|aarch64|ppc64le|s390x)-glibc(\d)\.(\d{1,2})", text)
        if match is None or (int(match[1]), int(match[2])) < OLDEST:
            raise errors.DeployError(
                f"{text!r} is no kind of host.",
                "It is like cp39-x86_64-glibc2.34: Python 3.9 on x86_64 with glibc 2.34.",
            )
        return cls((int(match[1]), int(match[2])), match[3], (int(match[4]), int(match[5])))


class Interpreter(NamedTuple):
    """
    A host's Python.

    path: how to start it.  version: (3, 9, 18).  machine: "x86_64".  glibc: (2, 34).
    """

    path: str
    version: tuple[int, int, int]
    machine: str
    glibc: tuple[int, int]

    def __str__(self) -> str:
        """Return the version as people write it."""
        return ".".join(map(str, self.version))

    @property
    def kind(self) -> Kind:
        return Kind(self.version[:2], self.machine, self.glibc)


def find(connection: Connection, wanted: str = "") -> Interpreter:
    """
    Return the host's Python that will run the agent: `wanted` (a command or path), or else the first that fits.

    Raises DeployError that says what was found instead.
    """
    unfit = []
    for command in [wanted] if wanted else _CANDIDATES:
        answer = _ask(connection, command)
        if isinstance(answer, Interpreter):
            return answer
        if answer:
            unfit.append(answer)
    raise errors.DeployError(
        f"{connection.where} has no Python that can run the agent: "
        f"{'; '.join(unfit) or f'{wanted or _CANDIDATES[0]} is not there'}.",
        "Install Python 3.9 or later there (on EL8: `dnf install python39`), or name one with agent.python.",
    )


def _ask(connection: Connection, command: str) -> Interpreter | str:
    """Return the interpreter behind a command, or why it does not fit: "" when there is no such command."""
    output = connection.call(["sh", "-c", _FIND, "sh", command], _DESCRIBE)
    path, _, description = output.stdout.partition("\n")
    if not path:
        return ""
    try:
        version, machine, libc = json.loads(description)
        major, minor, patch = version
    except ValueError:
        return f"{path} does not run"
    if (major, minor) < OLDEST:
        return f"{path} is Python {major}.{minor}.{patch}"
    try:
        name, numbers = libc.split()
        glibc = tuple(int(number) for number in numbers.split(".")[:2])
        assert name == "glibc" and len(glibc) == 2
    except (AttributeError, ValueError, AssertionError):
        return f"{path} runs on {libc or 'a C library that is not glibc'}"
    return Interpreter(path, (major, minor, patch), machine, (glibc[0], glibc[1]))
