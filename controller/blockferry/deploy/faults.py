"""The border to the controller's own disk: what cannot be written there leaves here as DeployError."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from blockferry import errors


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the OSErrors of writing, replacing or removing `path`, a file or a directory, into DeployError."""
    try:
        yield
    except OSError as error:
        raise errors.DeployError(
            f"{path} cannot be written: {error.strerror or error}.",
            "See whether its file system is full or read-only, and whether this user may write there.",
        ) from error
