"""
Generate the Python stubs of proto/blockferry_proto/agent.proto.

`python -m tests.stubs --write` renews the files in the tree; a unit test generates them again and compares.
The generator is pinned in pyproject.toml: newer ones write code that the agent's runtimes on Python 3.9 refuse.
"""

from __future__ import annotations

import argparse
import importlib.resources
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent / "proto"
PACKAGE = "blockferry_proto"
NAMES = ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py")


def generate(directory: Path) -> dict[str, str]:
    """Run the generator into `directory`; return the content of each stub by its name."""
    includes = importlib.resources.files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={ROOT}",
            f"--proto_path={includes}",
            f"--python_out={directory}",
            f"--pyi_out={directory}",
            f"--grpc_python_out={directory}",
            f"{PACKAGE}/agent.proto",
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc ended with status {status}")
    return {name: (directory / PACKAGE / name).read_text() for name in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="renew the stubs")
    parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for name, content in generate(Path(directory)).items():
            (ROOT / PACKAGE / name).write_text(content)


if __name__ == "__main__":
    main()
