"""Copy recovery points to a second repository: another site, an object store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blockferry import config, errors
from blockferry.jobs import keyring
from blockferry.jobs.progress import Progress
from blockferry.repository import Copied, Manifest, Repository
from blockferry.repository.copying import Step


def target(url: str, passphrase_file: Path | None, key_file: Path | None) -> Repository:
    """
    Open the repository that shall get the copies, which exists. The files are for it alone.

    Raises WrongKey, RepositoryError, ConfigError.
    """
    settings = config.Repository(url=url, passphrase_file=passphrase_file, key_file=key_file)
    # Not the configuration's passphrase of the environment: that belongs to the other repository.
    secret = None if passphrase_file is None and key_file is None else keyring.secret(settings)
    try:
        return Repository.open(url, secret)
    except errors.WrongKey as error:
        raise errors.WrongKey(error.message, "Say what opens it with --to-passphrase-file or --to-key-file.") from None


def run(source: Repository, target: Repository, points: Sequence[Manifest], progress: Progress) -> Iterator[Copied]:
    """
    Copy `points`, oldest first, and generate what became of each as soon as it is there.

    The next run goes on where this one was ended. Raises Damaged, RepositoryError, Conflict for one repository twice.
    """
    if source.settings.id == target.settings.id:
        raise errors.Conflict(
            f"{source.url} and {target.url} are one repository, or one is a copy of the other's files.",
            "Make a new one with `blockferry repository init`, and copy into that.",
        )
    if source.settings.encryption is not None and target.settings.encryption is None:
        progress.warn(
            f"{source.url} is encrypted, {target.url} is not: the copies will be readable to all who can read it."
        )
    for point in sorted(points, key=lambda point: (point.created, point.id)):
        with contextlib.ExitStack() as begun:
            yield target.copy_from(source, point, _shown(point, progress, begun))


def _shown(point: Manifest, progress: Progress, begun: contextlib.ExitStack) -> Callable[[Step], None]:
    """Return what shows the steps of one point. begun: ends what it has begun."""
    keys: set[str] = set()

    def show(step: Step) -> None:
        key = f"{point.id} {step.disk.id}"
        if key not in keys:
            keys.add(key)
            progress.begin(key, f"copying {point.vm.name} {step.disk.alias} {point.id}", step.disk.size)
            begun.callback(progress.end, key)
        progress.advance(key, step.position, step.moved)

    return show
