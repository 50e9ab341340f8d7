"""The settings of a repository, made once with it: `repository.json`."""

from __future__ import annotations

import hmac
import uuid
from typing import Final, Literal

import msgspec
from blake3 import blake3

from blockferry import errors
from blockferry.repository import documents, keys, layout
from blockferry.repository.chunks import Compression
from blockferry.repository.encryption import derive
from blockferry.repository.keys import KeyFile, Passphrase
from blockferry.repository.store import Store
from blockferry_agent.blocks import MAX_WINDOW, MIN_WINDOW
from blockferry_agent.units import MiB

FORMAT: Final = 1

_MAX_ENCODED = 1 * MiB


class Encryption(msgspec.Struct, frozen=True):
    """
    How everything else is encrypted.

    check: proves a master key to be the right one, and these settings to be those that it was made with; hexadecimal.
    """

    cipher: Literal["aes-256-gcm"]
    check: str


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """
    id: of the repository, a UUID.  window: bytes, no stored block crosses a multiple of it.
    compression: of new chunks.  encryption: None when there is none.
    """

    format: Literal[1] = FORMAT
    id: str
    window: int
    compression: Compression
    encryption: Encryption | None = None


def write(store: Store, window: int, compression: Compression) -> Settings:
    """Make the store a repository. Raises Conflict when it is one, RepositoryError."""
    settings = _new(window, compression)
    _save(store, settings)
    return settings


def write_encrypted(
    store: Store, window: int, compression: Compression, secret: Passphrase | KeyFile
) -> tuple[Settings, bytes]:
    """
    Make the store an encrypted repository that a secret opens. Return its master key, too.

    Raises Conflict when it is a repository, RepositoryError.
    """
    settings = _new(window, compression)
    _refuse_second(store)
    master = keys.new_master()
    encryption = Encryption("aes-256-gcm", _check(settings, master))
    settings = msgspec.structs.replace(settings, encryption=encryption)
    # The key first: with it alone there is no repository, without it nobody could open one.
    key = keys.add(store, settings.id, master, secret)
    try:
        _save(store, settings)
    except errors.Conflict:
        store.delete(layout.key(key.id))
        raise
    return settings, master


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


def prove(settings: Settings, master: bytes, where: str) -> None:
    """Raise WrongKey unless the settings were made with this master key. where: the repository, for the message."""
    assert settings.encryption is not None
    if not hmac.compare_digest(settings.encryption.check.encode(), _check(settings, master).encode()):
        raise errors.WrongKey(
            f"The key is not that of the repository {where}, or {layout.SETTINGS} there was changed.",
            "Check repository.url and the key in the configuration.",
        )


def _new(window: int, compression: Compression) -> Settings:
    if not _is_window(window):
        raise errors.RepositoryError(
            f"A window of {window} bytes cannot be used.", "Choose a power of two from 256 KiB to 8 MiB."
        )
    return Settings(id=str(uuid.uuid4()), window=window, compression=compression)


def _save(store: Store, settings: Settings) -> None:
    _refuse_second(store)
    try:
        store.put_new(layout.SETTINGS, documents.encode(settings))
    except errors.Conflict:
        raise _second(store) from None
    with store.batch() as batch:
        # Again, because what is new is not durable.
        batch.commit(layout.SETTINGS, documents.encode(settings))


def _refuse_second(store: Store) -> None:
    if store.holds(layout.SETTINGS):
        raise _second(store)


def _second(store: Store) -> errors.Conflict:
    return errors.Conflict(f"There is a repository at {store.url} already.", "Use it, or choose another place.")


def _check(settings: Settings, master: bytes) -> str:
    """Return the proof for a master key. What it covers nobody can change without the key."""
    what = f"{settings.format} {settings.id} {settings.window} {settings.compression}"
    return blake3(what.encode(), key=derive(master, "check")).hexdigest()


def _is_window(window: int) -> bool:
    return MIN_WINDOW <= window <= MAX_WINDOW and window & (window - 1) == 0
