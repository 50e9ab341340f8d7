"""Documents of the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from blockferry.repository import documents
from tests.unit import recovery_points

PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from blockferry.repository import documents, manifest

data = sys.stdin.buffer.read()
together = threading.Barrier(8)

def decode():
    together.wait()
    return documents.decode(data, manifest.Manifest, 1, "here").id

sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as threads:
    assert len({found.result() for found in [threads.submit(decode) for _ in range(8)]}) == 1
"""


def test_several_threads_may_decode_a_kind_for_the_first_time() -> None:
    """msgspec 0.22 lets four of five such processes die of a null pointer."""
    data = documents.encode(
        recovery_points.point(None, [recovery_points.disk("d" * 8 + "-1111-2222-3333-444444444444")])
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=data, cwd=Path(__file__).parents[2], check=False, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
