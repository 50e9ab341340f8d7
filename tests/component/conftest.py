"""Services that several files use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.component import object_stores


@pytest.fixture(scope="session")
def s3_service() -> Iterator[object_stores.Service]:
    """An S3 service for the session."""
    with object_stores.serving() as service:
        yield service


@pytest.fixture
def s3(s3_service: object_stores.Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_stores.Service]:
    """The service, as clients in this process find it, without faults."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_service
    s3_service.fail()
    s3_service.delay = 0.0
