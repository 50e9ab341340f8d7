"""
What was written in version 1 of the format is read for ever: by this version, and by docs/reader.py, which shares no
code with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from blockferry.repository import Keyring, MasterKey, Passphrase, Repository, Secret, keytext
from tests.data import make_golden
from tests.unit import repository_images as images

ROOT = Path(__file__).parents[2]
SECRETS: dict[str, Secret | None] = {
    "plain": None,
    "encrypted": make_golden.KEY,
}


@pytest.fixture(params=["plain", "encrypted"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name: str = request.param
    with tarfile.open(ROOT / f"tests/data/repository-1-{name}.tar.gz") as archive:
        archive.extractall(tmp_path)
    return tmp_path / name


def read(golden: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the reader with nothing of ours in its path."""
    return subprocess.run(
        [sys.executable, "-P", ROOT / "docs/reader.py", golden, *arguments],
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_this_version_reads_it(golden: Path) -> None:
    repository = Repository.open(str(golden), SECRETS[golden.name])
    new, old = repository.points()
    assert [images.restore(repository, point) for point in (old, new)] == make_golden.contents()
    assert repository.ovf(new) == "<ovf/>"
    assert repository.verify([new, old], lambda step: None).damage == ()


def test_this_version_adds_to_it(golden: Path) -> None:
    repository = Repository.open(str(golden), SECRETS[golden.name])
    image, _ = make_golden.contents()
    point = images.full(repository, image)
    assert images.restore(repository, point) == image
    assert point.disks[0].bytes.stored < 1024, "its content was there"


def test_each_key_opens_it(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests/data/repository-1-encrypted.tar.gz") as archive:
        archive.extractall(tmp_path)
    url = str(tmp_path / "encrypted")
    Repository.open(url, Passphrase("golden"))
    Repository.open(url, MasterKey(keytext.decode(Keyring.open(url, make_golden.KEY).export())[1]))


def test_the_reader_restores_every_point(golden: Path, tmp_path: Path) -> None:
    make_golden.KEY.save(tmp_path / "key")
    environment = {"BLOCKFERRY_KEY": str(tmp_path / "key")} if SECRETS[golden.name] else {}
    listed = read(golden, **environment)
    assert listed.returncode == 0, listed.stderr
    ids = [line.split()[0] for line in listed.stdout.splitlines()]
    repository = Repository.open(str(golden), SECRETS[golden.name])
    assert ids == [point.id for point in reversed(repository.points())]
    for point_id, content in zip(ids, make_golden.contents(), strict=True):
        done = read(golden, point_id, images.DISK[:8], str(tmp_path / point_id), **environment)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / point_id).read_bytes() == content


def test_the_reader_opens_it_with_each_key(tmp_path: Path) -> None:
    with tarfile.open(ROOT / "tests/data/repository-1-encrypted.tar.gz") as archive:
        archive.extractall(tmp_path)
    golden = tmp_path / "encrypted"
    (tmp_path / "master").write_text(Keyring.open(str(golden), make_golden.KEY).export().lower())
    for environment, code in (
        ({"BLOCKFERRY_REPOSITORY_PASSPHRASE": "golden"}, 0),
        ({"BLOCKFERRY_REPOSITORY_PASSPHRASE": "iron"}, 1),
        ({"BLOCKFERRY_KEY": str(tmp_path / "master")}, 0),
        ({}, 1),
    ):
        done = read(golden, **environment)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_the_reader_stops_at_damage(golden: Path, tmp_path: Path) -> None:
    make_golden.KEY.save(tmp_path / "key")
    environment = {"BLOCKFERRY_KEY": str(tmp_path / "key")} if SECRETS[golden.name] else {}
    for path in golden.glob("chunks/*/*"):
        content = path.read_bytes()
        path.write_bytes(content[:-20] + b"?" + content[-19:])
    assert read(golden, "2026", images.DISK[:8], str(tmp_path / "out"), **environment).returncode != 0


def test_the_reader_is_short() -> None:
    assert len((ROOT / "docs/reader.py").read_text().splitlines()) < 150
