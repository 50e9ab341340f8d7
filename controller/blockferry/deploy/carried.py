"""
A deployment that is carried to a host by hand, or by Ansible: one archive, one command there.

    tar -xzf FILE -C DIR && python3 DIR/deploy.py

What it does is what `agent deploy` does over SSH: the same program, with the same files.
"""

from __future__ import annotations

import json

from blockferry.deploy import bundle, directory
from blockferry.deploy.directory import ReleaseFiles, ServiceSettings

_MAIN = b'''\
"""Put the agent of this archive in force on this host: run it as root, with the Python that the agent shall use."""

import json, pathlib, sys

here = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(here / "program"))
from blockferry.deploy.onhost import main

request = json.loads((here / "request.json").read_text())
files = {path.name: path.read_bytes() for path in (here / "files").iterdir()}
answer = main.answer(request, files)
if "refused" in answer:
    sys.exit((answer["refused"] + " " + answer["hint"]).strip())
print("The agent serves.")
'''


def pack(path: str, release: ReleaseFiles, settings: ServiceSettings) -> bytes:
    """Return the archive (tar.gz), which holds the agent's private key. path: of the agent's directory on the host."""
    name, files = directory.contents(release, settings)
    request = {"do": "install", "directory": path, "name": name, "when_idle": True}
    return bundle.pack(
        {
            "deploy.py": _MAIN,
            "request.json": json.dumps(request).encode(),
            **{f"program/{module}": data for module, data in directory.program().items()},
            **{f"files/{file}": data for file, data in files.items()},
        }
    )
