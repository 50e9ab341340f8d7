"""The stores' contract and the repository's own tests once more, in a bucket of a real S3 service: Swift's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockferry import errors
from blockferry.repository import Repository
from blockferry.repository import store as stores
from blockferry.repository.store import Store
from tests.component import swift, test_bucket_repository, test_buckets
from tests.component.test_bucket_repository import (
    test_a_bucket_is_collected,
    test_a_repository_in_a_bucket_is_made_once,
    test_points_in_a_bucket_come_back_and_are_verified,
)

__all__ = [
    "test_a_bucket_is_collected",
    "test_a_repository_in_a_bucket_is_made_once",
    "test_points_in_a_bucket_come_back_and_are_verified",
]

# Swift looks whether an object is there, and then makes it: of several that do so in the same moment some may succeed.
NOT_HERE = {"test_of_several_that_make_an_object_one_succeeds"}

# What these two take from the unit tests.
for module in (test_buckets, test_bucket_repository):
    globals().update({name: getattr(module, name) for name in module.__all__ if name not in NOT_HERE})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[swift.Service]:
    with swift.serving(tmp_path_factory.mktemp("swift")) as running:
        yield running


@pytest.fixture
def new_url(service: swift.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{service.new_bucket()}/backups/here"


@pytest.fixture
def garbage() -> int:
    """It is slow."""
    return 40


@pytest.fixture
def repository(new_url: str) -> Repository:
    """Not encrypted: that is done before a store sees anything."""
    return Repository.init(new_url, test_bucket_repository.WINDOW)


@pytest.fixture
def store(new_url: str) -> Store:
    return stores.connect(new_url)


def test_a_bucket_that_is_not_there_is_named(new_url: str) -> None:
    with pytest.raises(errors.RepositoryError, match=r"s3://nobody-made-this/x.*no such bucket"):
        Repository.open("s3://nobody-made-this/x")


def test_a_wrong_secret_is_told(new_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(errors.RepositoryError, match="the secret does not belong to the access key") as caught:
        Repository.open(new_url)
    assert "hunter2" not in str(caught.value)
