"""
The `blockferry` configuration file of a lab.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.lab import cache
from tests.lab.lab import Lab

NAME = "config.toml"


def write(lab: Lab, path: Path | None = None) -> Path:
    """
    Write a configuration for the lab's engine and hosts; everything that it names is in the lab's directory.

    path: default config.toml in the lab's directory; the repository and the controller's state go beside it. Wheels are kept
    between labs.
    """
    path = path or lab.directory / NAME
    agent = {"ssh_key_file": str(lab.client_key), **lab.host.place.agent_settings()}
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
{"".join(f"{name} = {json.dumps(value)}" + chr(10) for name, value in agent.items())}""")
    return path
