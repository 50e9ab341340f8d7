"""
An S3 service with a file system behind it, on loopback, for the tests: OpenStack Swift with its s3api, as four processes.

One replica, so it is as consistent as a service can be; a cluster's listings may lag behind.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import boto3

from tests.lab import cache, processes

VERSION = "2.38.3"
USER, SECRET = "test:tester", "testing"
REGION = "us-east-1"
KINDS = ("account", "container", "object")

STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {directory}
devices = {directory}/devices
mount_check = false
workers = 0
user = root
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {directory}
workers = 0
user = root
[pipeline:main]
pipeline = catch_errors s3api tempauth bulk slo proxy-server
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


class Service(NamedTuple):
    """The service. url: its endpoint."""

    url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def new_bucket(self) -> str:
        """Make a bucket, return its name."""
        name = f"bucket-{secrets.token_hex(4)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=USER,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return name


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[Service]:
    """Run a service, whose files are in `directory`: on a file system with extended attributes."""
    programs = cache.entry("swift", [VERSION.encode(), sys.version.encode()], _install) / "bin"
    (directory / "devices" / "d1").mkdir(parents=True)
    (directory / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = test\n")
    with contextlib.ExitStack() as servers:
        for kind in KINDS:
            port = processes.free_port()
            _make_ring(programs, directory / f"{kind}.builder", port)
            configuration = STORAGE.format(kind=kind, port=port, directory=directory)
            _start(servers, programs, directory, kind, port, configuration)
        port = processes.free_port()
        _start(servers, programs, directory, "proxy", port, PROXY.format(port=port, directory=directory))
        yield Service(f"http://127.0.0.1:{port}")


def _make_ring(programs: Path, builder: Path, port: int) -> None:
    for words in (["create", "2", "1", "1"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
        processes.run(programs / "python", programs / "swift-ring-builder", builder, *words)


def _start(
    servers: contextlib.ExitStack, programs: Path, directory: Path, kind: str, port: int, configuration: str
) -> None:
    path = directory / f"{kind}.conf"
    path.write_text(configuration)
    server = processes.Daemon(
        [str(programs / "python"), str(programs / f"swift-{kind}-server"), str(path)],
        lab=directory,
        log=directory / f"{kind}.log",
        environment={"SWIFT_DIR": str(directory)},
    )
    servers.callback(server.stop)
    server.wait_until(lambda: _answers(port))


def _install(directory: Path) -> None:
    processes.run(sys.executable, "-m", "venv", directory)
    processes.run(
        *(directory / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        f"swift=={VERSION}",
        timeout=300,
    )


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
