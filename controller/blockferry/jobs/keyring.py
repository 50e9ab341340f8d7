"""What opens the repository, and what shall open it: passphrases and key files, as the operator names them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from blockferry import config, errors
from blockferry.repository import KeyFile, Keyring, MasterKey, Passphrase, Repository, Secret, keys


def init(
    settings: config.Repository,
    window: int,
    compression: Literal["zstd", "none"],
    encrypt: bool,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> Repository:
    """
    Make the repository that a configuration names.

    window: bytes.  encrypt: with the passphrase or the key file that is named here, else in the configuration; a key
    file that is not there is made.

    Raises Conflict when there is one, ConfigError when there is nothing to encrypt with, RepositoryError.
    """
    secret = _first_secret(settings, passphrase_file, key_file) if encrypt else None
    return Repository.init(settings.url, window, compression, secret, settings.durability)


def secret(settings: config.Repository) -> Secret | None:
    """Return what the configuration has to open the repository with, None when it has nothing. Raises ConfigError."""
    if settings.key_file is not None:
        return keys.load(settings.key_file)
    passphrase = settings.passphrase()
    return None if passphrase is None else Passphrase(passphrase)


def opened(settings: config.Repository) -> Keyring:
    """Open the keys of the repository. Raises WrongKey, RepositoryError, ConfigError."""
    return Keyring.open(settings.url, secret(settings))


def new_secret(passphrase_file: Path | None, key_file: Path | None) -> Passphrase | KeyFile:
    """
    Return what the one of two files holds that is given. A key file that is not there is made.

    Raises ConfigError.
    """
    if passphrase_file is not None:
        return Passphrase(config.secret_in(passphrase_file, "--passphrase-file"))
    assert key_file is not None
    if not key_file.exists():
        made = KeyFile.new()
        made.save(key_file)
        return made
    found = keys.load(key_file)
    if isinstance(found, MasterKey):
        raise errors.ConfigError(
            f"The key file {key_file} cannot be used: it holds an exported master key.",
            "Name a file that is not there, and a key file is made; keep the master key in a safe.",
        )
    return found


def _first_secret(
    settings: config.Repository, passphrase_file: Path | None, key_file: Path | None
) -> Passphrase | KeyFile:
    if passphrase_file is not None or key_file is not None:
        return new_secret(passphrase_file, key_file)
    if settings.key_file is not None:
        return new_secret(None, settings.key_file)
    passphrase = settings.passphrase()
    if passphrase is None:
        raise errors.ConfigError(
            "There is nothing to encrypt the repository with.",
            "Set repository.passphrase_file or repository.key_file in the configuration, or "
            f"{config.REPOSITORY_PASSPHRASE_VARIABLE}, or name a file with --passphrase-file or --key-file.",
        )
    return Passphrase(passphrase)
