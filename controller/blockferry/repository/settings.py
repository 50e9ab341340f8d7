"""The settings of a repository, made once with it: `repository.json`."""

from __future__ import annotations

import uuid
from typing import Final, Literal

import msgspec

from blockferry import errors
from blockferry.repository import documents, layout
from blockferry.repository.chunks import Compression
from blockferry.repository.store import Store
from blockferry_agent.blocks import MAX_WINDOW, MIN_WINDOW
from blockferry_agent.units import MiB

FORMAT: Final = 1

_MAX_ENCODED = 1 * MiB


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    id: of the repository, a UUID.  window: bytes, no stored block crosses a multiple of it.
    compression: of new chunks.  encryption: none yet.
    """

    format: Literal[1] = FORMAT
    id: str
    window: int
    compression: Compression
    encryption: None = None


def write(store: Store, window: int, compression: Compression) -> Settings:
    """Make the store a repository. Raises Conflict when it is one, RepositoryError."""
    if not _is_window(window):
        raise errors.RepositoryError(
            f"A window of {window} bytes cannot be used.", "Choose a power of two from 256 KiB to 8 MiB."
        )
    settings = Settings(id=str(uuid.uuid4()), window=window, compression=compression)
    with store.batch() as batch:
        try:
            store.get(layout.SETTINGS, _MAX_ENCODED)
        except errors.NotFound:
            batch.commit(layout.SETTINGS, documents.encode(settings))
            return settings
    raise errors.Conflict(f"There is a repository at {store.url} already.", "Use it, or choose another place.")


def read(store: Store) -> Settings:
    """Return the settings of a repository. Raises RepositoryError when the store is none that this version can use."""
    where = f"{store.url}/{layout.SETTINGS}"
    try:
        data = store.get(layout.SETTINGS, _MAX_ENCODED)
    except errors.NotFound:
        raise errors.RepositoryError(
            f"There is no repository at {store.url}.",
            "Mount it if it is elsewhere, or make one with `blockferry repository init`.",
        ) from None
    settings = documents.decode(data, Settings, FORMAT, where)
    if not _is_window(settings.window):
        raise errors.Damaged(f"{where} is damaged: its window is {settings.window} bytes.")
    return settings


def _is_window(window: int) -> bool:
    return MIN_WINDOW <= window <= MAX_WINDOW and window & (window - 1) == 0
