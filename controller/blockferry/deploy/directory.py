"""The agent's directory on a host, as seen from the controller: `onhost` does the work there, this asks for it."""

import contextlib
import json
import posixpath
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import msgspec

from blockferry import errors
from blockferry.deploy import ssh

# Seconds: stopping the old agent, starting the new one, and the old one again when that fails; or deleting all.
_TIMEOUT = 180.0


class About(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a release says of itself.

    bundle: digest.  version: of the agent.  python: path of the host's Python.  python_version: "3.9.18".
    deployed: in UTC.
    """

    bundle: str
    version: str
    python: str
    python_version: str
    deployed: datetime


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """The deployment that is in force. config: agent.json.  certificate: the agent's, PEM."""

    about: About
    config: dict[str, Any]
    certificate: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is in the directory.

    bundles: digests.  release: None when no agent ever came to serve.  pid: of the release's agent while it serves.
    """

    bundles: frozenset[str]
    release: Release | None
    pid: int | None


class AgentDirectory:
    """
    The agent's directory on one host.

    python: path of the host's Python.  Every method raises DeployError, and Conflict while somebody else changes it.
    """

    def __init__(self, connection: ssh.Connection, python: str, path: str) -> None:
        if not posixpath.isabs(path):
            raise errors.DeployError(f"{path} cannot be the agent's directory: it is no absolute path.")
        self._connection = connection
        self._python = python
        self._path = path

    def inspect(self) -> Found:
        """Say what is there, and change nothing. A directory that is not ours counts as empty."""
        answer = self._ask("inspect")
        try:
            return msgspec.convert(answer, Found)
        except msgspec.ValidationError as error:
            raise errors.DeployError(
                f"{self._path} on {self._connection.where} was written by another version of Blockferry.",
                "Deploy with that version, or remove the agent with it first.",
            ) from error

    def remove(self) -> bool:
        """Stop the agent and delete the directory. False when there was nothing."""
        return bool(self._ask("remove"))

    def install(self, files: Mapping[str, bytes]) -> None:
        """
        Put files in force as a new release: agent.json, agent.crt, agent.key, ca.crt, release.json, and bundle.tar.gz
        unless the release's bundle is there.

        Returns when the new agent serves. When it does not come to serve, the old one is started again.
        """
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        self._ask("claim", upload=name)
        try:
            for file, data in files.items():
                # Private in any case: the directory that they go to is 0700.
                self._connection.upload(data, posixpath.join(self._path, "incoming", name, file), mode=0o600)
            self._ask("install", upload=name)
        except BaseException:
            # What went wrong matters more than what stays behind: that is deleted by a later deployment.
            with contextlib.suppress(errors.Error):
                self._ask("abandon", upload=name)
            raise

    def _ask(self, do: str, **arguments: object) -> object:
        program = resources.files("blockferry.deploy").joinpath("onhost.py").read_bytes()
        request = json.dumps({"do": do, "directory": self._path, **arguments})
        output = self._connection.run([self._python, "-I", "-S", "-", request], program, timeout=_TIMEOUT)
        try:
            # A login shell may print things of its own before.
            answer = json.loads(output.splitlines()[-1])
            if "done" in answer:
                return answer["done"]
            message, hint, busy = f"{self._connection.where}: {answer['refused']}", answer["hint"], answer["busy"]
        except (LookupError, ValueError, TypeError) as error:
            raise errors.DeployError(
                f"{self._python} on {self._connection.where} printed something else than expected.",
                "See what the login shell's profile prints there.",
            ) from error
        raise errors.Conflict(message, hint) if busy else errors.DeployError(message, hint)
