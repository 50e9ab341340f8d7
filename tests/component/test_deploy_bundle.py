"""The bundle: complete, made once, the same every time."""

import ast
import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

import blockferry_agent
from blockferry import errors
from blockferry.deploy import bundle, onhost
from blockferry.deploy.interpreter import Kind
from blockferry.deploy.onhost.refusal import Refused
from blockferry.deploy.onhost.releases import Releases

CACHE = Path.home() / ".cache" / "blockferry"
HERE = Kind(sys.version_info[:2], platform.machine(), (2, 28))
EL8 = Kind((3, 9), "x86_64", (2, 28))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@pytest.fixture
def cache(tmp_path: Path, offline: None) -> Path:
    """A cache with wheels of one small file, so that whole bundles are made in a moment."""
    wheels = tmp_path / "cache" / "wheels" / str(HERE)
    wheels.mkdir(parents=True)
    for name in bundle.REQUIREMENTS:
        stem = f"{name.replace('-', '_')}-{metadata.version(name)}"
        with zipfile.ZipFile(wheels / f"{stem}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", b"")
    return tmp_path / "cache"


def names(made: bundle.Bundle) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(made.data)) as tar:
        return set(tar.getnames())


def test_bundle_runs_with_nothing_but_python(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle.build(CACHE, HERE).data)) as tar:
        tar.extractall(tmp_path)
    command = [sys.executable, "-I", "-S", str(tmp_path), "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={})
    assert done.stdout.strip() == blockferry_agent.__version__


def test_bundle_for_another_python() -> None:
    content = names(bundle.build(CACHE, EL8))
    assert {
        "__main__.py",
        "blockferry_agent/__main__.py",
        "blockferry_proto/agent_pb2.py",
        "grpc/__init__.py",
    } < content
    assert {"google/protobuf/__init__.py", "xxhash/__init__.py", "typing_extensions.py"} < content
    assert any(re.fullmatch(r"grpc/_cython/cygrpc\.cpython-39-x86_64-linux-gnu\.so", name) for name in content)
    assert not any(name.startswith("/") or ".." in name or name.endswith(".pyc") for name in content)


def test_bundle_has_what_the_controller_runs_and_all_that_needs() -> None:
    for name in bundle.REQUIREMENTS:
        for requirement in metadata.requires(name) or []:
            if "extra ==" not in requirement:
                needed = re.split(r"[^\w-]", requirement)[0].replace("-", "_")
                assert needed in {known.replace("-", "_") for known in bundle.REQUIREMENTS}


def test_second_bundle_comes_from_the_cache_unless_it_is_damaged(cache: Path) -> None:
    first = bundle.build(cache, HERE)
    [archive] = (cache / "bundles").iterdir()
    assert archive.name.endswith(f"-{hashlib.sha256(archive.read_bytes()).hexdigest()}.tar.gz")
    written = archive.stat().st_mtime_ns
    assert bundle.build(cache, HERE) == first
    assert archive.stat().st_mtime_ns == written
    archive.write_bytes(b"damaged")
    assert bundle.build(cache, HERE) == first


def test_damaged_wheel_is_named(cache: Path) -> None:
    [wheel] = (cache / "wheels" / str(HERE)).glob("xxhash-*.whl")
    wheel.write_bytes(b"damaged")
    with pytest.raises(errors.DeployError, match=f"{wheel} is damaged"):
        bundle.build(cache, HERE)


def test_no_network_and_no_cache(tmp_path: Path, offline: None) -> None:
    with pytest.raises(errors.DeployError, match=r"Fetching grpcio==.* for Python 3\.9 on x86_64 failed: ") as caught:
        bundle.build(tmp_path, EL8)
    assert "PyPI" in caught.value.hint
    assert list((tmp_path / "wheels" / str(EL8)).iterdir()) == []


@pytest.mark.parametrize("in_the_way", ["wheels", "bundles"])
def test_cache_that_cannot_be_written(cache: Path, in_the_way: str) -> None:
    if in_the_way == "wheels":
        shutil.rmtree(cache / "wheels")
    (cache / in_the_way).write_text("a file")
    with pytest.raises(errors.DeployError, match=f"{cache}/{in_the_way}.* cannot be written: .*file system is full"):
        bundle.build(cache, HERE)


def test_nothing_is_fetched_when_that_was_said(tmp_path: Path) -> None:
    with pytest.raises(errors.DeployError, match=f"The cache has no grpcio==.* for {EL8}") as caught:
        bundle.Bundles(tmp_path, offline=True).bundle(EL8)
    assert f"agent bundle {EL8}" in caught.value.hint
    assert str(tmp_path / "wheels" / str(EL8)) in caught.value.hint


def test_a_cache_that_was_carried_over_is_enough(cache: Path, tmp_path: Path) -> None:
    carried = shutil.copytree(cache, tmp_path / "carried")
    assert bundle.Bundles(carried, offline=True).bundle(HERE) == bundle.build(cache, HERE)


def test_many_hosts_of_a_kind_share_one_bundle(cache: Path) -> None:
    bundles = bundle.Bundles(cache)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(bundles.bundle, [HERE] * 20))
    assert all(one is made[0] for one in made)
    assert len(list((cache / "bundles").iterdir())) == 1


@pytest.mark.parametrize("text", ["cp39-x86_64-glibc2.34", "py39-x86_64-glibc2.34", "cp313-aarch64-glibc2.41"])
def test_kinds_are_called_as_they_are_written(text: str) -> None:
    assert str(Kind.parse(text)) == text.replace("py", "cp")


@pytest.mark.parametrize(
    "text", ["", "cp38-x86_64-glibc2.34", "cp39-x86_64", "cp39-vax-glibc2.34", "cp39-x86_64-musl1.2"]
)
def test_what_is_no_kind_of_host(text: str) -> None:
    with pytest.raises(errors.DeployError, match="is no kind of host"):
        Kind.parse(text)


def test_archive_depends_on_content_only() -> None:
    assert bundle.pack({"b": b"2", "a": b"1"}) == bundle.pack({"a": b"1", "b": b"2"})


def test_program_on_the_host_is_python_39() -> None:
    for module in Path(onhost.__file__).parent.glob("*.py"):
        ast.parse(module.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped"])
def test_host_refuses_members_that_leave_the_bundle(tmp_path: Path, name: str) -> None:
    data = bundle.pack({name: b"data"})
    with pytest.raises(Refused, match="member that no bundle has"):
        Releases(tmp_path / "home")._unpack(hashlib.sha256(data).hexdigest(), data)
    assert list(tmp_path.iterdir()) == []
