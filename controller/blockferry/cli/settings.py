"""The options that every command has, and what they say."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import click

from blockferry import config
from blockferry.cli import progress
from blockferry.jobs.progress import Progress
from blockferry.jobs.site import Site


class Settings(NamedTuple):
    """
    What the common options say.

    config_file: None for the default.  machine: print JSON.  quiet: show no progress.
    """

    config_file: Path | None
    machine: bool
    quiet: bool

    def site(self, offline: bool = False) -> Site:
        """Return the parts that the configuration describes. offline: fetch nothing.  Raises ConfigError."""
        return Site(config.load(self.config_file), offline)

    def progress(self) -> AbstractContextManager[Progress]:
        """Show progress as the options say."""
        return progress.shown(self.quiet)


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options; it gets them as its first argument, a `Settings`."""

    @click.option("--json", "machine", is_flag=True, help="Print one JSON document instead of text.")
    @click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only, no progress.")
    @click.pass_context
    @functools.wraps(command)
    def wrapper(context: click.Context, /, machine: bool, quiet: bool, **arguments: Any) -> None:
        config_file = context.find_root().params["config"]
        command(Settings(config_file, machine, quiet), **arguments)

    return wrapper
