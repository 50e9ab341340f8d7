"""The stores' contract and the repository's own tests once more, in Azure Blob Storage as Azurite serves it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockferry import errors
from blockferry.repository import Repository
from blockferry.repository import store as stores
from blockferry.repository.store import Store
from tests.component import azurite, test_bucket_repository, test_buckets
from tests.component.test_bucket_repository import (
    garbage,
    test_a_bucket_is_collected,
    test_a_repository_in_a_bucket_is_made_once,
    test_of_several_that_make_a_repository_one_succeeds,
    test_points_in_a_bucket_come_back_and_are_verified,
)

__all__ = [
    "garbage",
    "test_a_bucket_is_collected",
    "test_a_repository_in_a_bucket_is_made_once",
    "test_of_several_that_make_a_repository_one_succeeds",
    "test_points_in_a_bucket_come_back_and_are_verified",
]

# What these two take from the unit tests.
for module in (test_buckets, test_bucket_repository):
    globals().update({name: getattr(module, name) for name in module.__all__})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[azurite.Service]:
    with azurite.serving(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def new_url(service: azurite.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return f"az://{service.new_container()}/backups/here"


@pytest.fixture
def repository(new_url: str) -> Repository:
    """Not encrypted: that is done before a store sees anything."""
    return Repository.init(new_url, test_bucket_repository.WINDOW)


@pytest.fixture
def store(new_url: str) -> Store:
    return stores.connect(new_url)


def test_a_container_that_is_not_there_is_named(new_url: str) -> None:
    with pytest.raises(errors.RepositoryError, match=r"az://nobody-made-this/x.*no such bucket"):
        Repository.open("az://nobody-made-this/x")


def test_a_wrong_key_is_told(new_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aHVudGVyMg==")
    with pytest.raises(errors.RepositoryError, match="access is denied") as caught:
        Repository.open(new_url)
    assert "aHVudGVyMg" not in str(caught.value)
