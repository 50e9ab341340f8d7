"""Azure Blob Storage on loopback, for the tests: Azurite, Microsoft's own server for that, installed by npm."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from azure.storage.blob import BlobServiceClient

from tests.lab import cache, processes

VERSION = "3.35.0"

# The account that every Azurite has; it is in its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Service(NamedTuple):
    """The service. url: its endpoint."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.url,
        }

    def new_container(self) -> str:
        """Make a container, return its name."""
        name = f"container-{secrets.token_hex(4)}"
        credential = {"account_name": ACCOUNT, "account_key": KEY}
        with BlobServiceClient(self.url, credential=credential) as client:
            client.create_container(name)
        return name


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Service]:
    """Run a service, whose files are in `directory`. Skips the test where there is no npm."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no npm, which installs Azurite")
    program = cache.entry("azurite", [VERSION.encode()], _install) / "node_modules/azurite/dist/src/blob/main.js"
    port = processes.free_port()
    command = ["node", str(program), "--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory)]
    server = processes.Daemon(command, lab=directory, log=directory / "azurite.log")
    try:
        server.wait_until(lambda: _answers(port))
        yield Service(f"http://127.0.0.1:{port}/{ACCOUNT}")
    finally:
        server.stop()


def _install(directory: Path) -> None:
    processes.run(
        *("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", directory, f"azurite@{VERSION}"),
        timeout=300,
    )


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
