"""
What can go wrong in the controller: one tree, grown from the agent's root. Each class has an exit code for scripts.

    Error (blockferry_agent.errors)                         exit code
    ├── the agent's branches: TicketNotFound, SourceGone…      7   as TransportError
    ├── ConfigError          mend the configuration            3
    ├── EngineError          the engine said no, or nothing    4
    │   ├── EngineUnreachable    check address, CA, network    4
    │   ├── EngineDenied         check user, password, rights  4
    │   └── CheckpointUnusable   take a full backup            4
    ├── NotFound             no such VM, host, point, disk     5
    ├── Ambiguous            several of that name: use the id  5
    ├── Conflict             try later: something else runs    6
    ├── TransportError       the data path failed              7
    │   └── AgentUnreachable     deploy or start the agent     7
    ├── RepositoryError      the repository failed             8
    │   ├── RepositoryFull       make room, run again          8
    │   ├── WrongKey             give the right key            8
    │   ├── StorageFailing       see the kernel's log          8
    │   └── Damaged              stored data is not what it was 9
    ├── DeployError          the host or the way to it failed  10
    │   └── HostKeyMismatch      do not trust that host        10
    ├── RestoreError         the place to restore to failed    11
    └── Interrupted          stopped by a signal               130

Foreign exceptions become ours at one border each: `engine.faults`, `transport`, `repository.store`, `deploy.ssh`
and `deploy.faults`.
"""

from blockferry_agent import errors as agent_errors
from blockferry_agent.errors import Error as Error


class ConfigError(Error):
    """The configuration cannot be used: mend it."""


class EngineError(Error):
    """The engine refused, failed, or did not do in time what was asked."""


class EngineUnreachable(EngineError):
    """No engine answers at its URL, or its certificate is not of the configured CA."""


class EngineDenied(EngineError):
    """The engine does not accept the user, the password or the user's rights."""


class CheckpointUnusable(EngineError):
    """The base checkpoint cannot be used (any more): take a full backup."""


class NotFound(Error):
    """There is no such VM, host, recovery point or disk."""


class Ambiguous(Error):
    """Several things have that name: use the id."""


class Conflict(Error):
    """Something else runs that excludes this: try later."""


class TransportError(Error):
    """The data path between the host and the controller failed."""


class AgentUnreachable(TransportError):
    """No agent answers on the host: deploy or start it, or let another transport carry the disk."""


class RepositoryError(Error):
    """The repository cannot be read or written."""


class RepositoryFull(RepositoryError):
    """There is no room left in the repository: make room, then run again."""


class WrongKey(RepositoryError):
    """The key does not open the repository, or none is given, or one is given and nothing to open."""


class StorageFailing(RepositoryError):
    """The storage under the repository cannot read or write a place."""


class Damaged(RepositoryError):
    """Stored data is not what was stored."""


class DeployError(Error):
    """The host, or the way to it, does not allow to deploy."""


class HostKeyMismatch(DeployError):
    """The host's SSH key is not the one that is pinned: do not trust that host."""


class RestoreError(Error):
    """What is restored cannot be written where it should go."""


class Interrupted(Error):
    """A signal asked to stop."""


# Most specific class first: the first that fits gives the code.
EXIT_CODES: tuple[tuple[type[Error], int], ...] = (
    (ConfigError, 3),
    (EngineError, 4),
    (NotFound, 5),
    (Ambiguous, 5),
    (Conflict, 6),
    (TransportError, 7),
    (agent_errors.InvalidRequest, 7),
    (agent_errors.TicketNotFound, 7),
    (agent_errors.TicketRefused, 7),
    (agent_errors.BitmapMissing, 7),
    (agent_errors.Busy, 7),
    (agent_errors.SourceError, 7),
    (Damaged, 9),
    (RepositoryError, 8),
    (DeployError, 10),
    (RestoreError, 11),
    (Interrupted, 130),
)


def exit_code(error: Error) -> int:
    """Return the exit code of the command that ended with `error`; 1 for an error outside the tree's branches."""
    return next((code for cls, code in EXIT_CODES if isinstance(error, cls)), 1)
