"""
The `blockferry` configuration file of a lab.
"""

from __future__ import annotations

from pathlib import Path

from tests.lab import cache, processes
from tests.lab.lab import Lab

NAME = "config.toml"


def write(lab: Lab, path: Path | None = None) -> Path:
    """
    Write a configuration for the lab's engine and host; everything that it names is in the lab's directory.

    path: default config.toml in the lab's directory; the repository and the controller's state go beside it. Wheels are kept
    between labs.
    """
    path = path or lab.directory / NAME
    host = lab.host
    path.write_text(f"""\
state = "{path.parent / "state"}"
cache = "{cache.directory() / "controller"}"

[engine]
url = "{lab.engine.url}"
username = "{lab.username}"
password_file = "{lab.password_file}"
ca_file = "{lab.ca}"

[repository]
url = "{path.parent / "repository"}"

[agent]
port = {processes.free_port()}
directory = "{host.directory / "agent"}"
ssh_key_file = "{host.ssh_client_key}"
python = "{host.python}"
control_socket = "{host.control_socket}"
data_socket = "{host.data_socket}"
nbd_directories = ["{host.directory / "run/vdsm/backup"}", "{host.directory / "run/vdsm/nbd"}"]
""")
    return path
