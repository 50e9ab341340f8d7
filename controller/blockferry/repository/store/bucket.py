"""
A store in a bucket: S3 and what speaks it (s3://), Azure (az://), Google Cloud Storage (gs://), each by obstore.

Credentials are never in the URL: they come from where the services' own tools look for them (the environment, the AWS
tools' files, the service of the machine or container that this runs on). An http:// endpoint is used where
AWS_ENDPOINT_URL or AZURE_STORAGE_ENDPOINT names one; the CA of an endpoint of one's own is in the file AWS_CA_BUNDLE.

obstore asks again, with growing pauses, after 5xx answers, throttling and lost connections, also for a put: putting the
same object twice is the same as once. Only of a `put_new` that was asked twice the second answer is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from blockferry import errors
from blockferry.repository.store import faults, profile
from blockferry.repository.store.contract import Listed

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_SCHEMES = ("s3", "az", "gs")


class Patience(NamedTuple):
    """
    How long to wait for a service, in seconds.

    request: for one answer.  total: for asking again and again, before the command fails.
    """

    request: float = 60.0
    total: float = 180.0


def is_url(url: str) -> bool:
    """Tell whether `url` names a bucket."""
    return url.partition("://")[0] in _SCHEMES and "://" in url


def connect(url: str, patience: Patience | None = None) -> Bucket:
    """
    Open the bucket at `url`, s3://BUCKET/PATH, az://CONTAINER/PATH or gs://BUCKET/PATH. Nothing is asked of it yet.

    Raises RepositoryError, ConfigError.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise errors.RepositoryError(
            f"A repository at {parts.scheme}://{parts.hostname or ''}{parts.path} cannot be used: "
            "a URL has a bucket and a path, nothing else.",
            "Credentials come from the environment.",
        )
    patience = patience or Patience()
    # A number for many retries: the time is the limit.
    retries: RetryConfig = {"max_retries": 100, "retry_timeout": timedelta(seconds=patience.total)}
    client: ClientConfig = {"timeout": timedelta(seconds=patience.request), "connect_timeout": timedelta(seconds=10)}
    if os.environ.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = _certificates(Path(os.environ["AWS_CA_BUNDLE"]))
    store: S3Store | AzureStore | GCSStore
    with faults.of_a_bucket(f"The bucket {url} cannot be used"):
        if parts.scheme == "s3":
            config = profile.of_environment()
            endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
            client["allow_http"] = endpoint.startswith("http://")
            store = S3Store.from_url(url, config=config, client_options=client, retry_config=retries)
        elif parts.scheme == "az":
            client["allow_http"] = os.environ.get("AZURE_STORAGE_ENDPOINT", "").startswith("http://")
            store = AzureStore.from_url(url, client_options=client, retry_config=retries)
        else:
            store = GCSStore.from_url(url, client_options=client, retry_config=retries)
    return Bucket(url.rstrip("/"), store)


def _certificates(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"The file {path} (AWS_CA_BUNDLE) cannot be read: {error}.") from None


class Bucket:
    """A store in a bucket. What the service said it has taken is durable."""

    side_by_side = 16
    vouches = True

    def __init__(self, url: str, store: S3Store | AzureStore | GCSStore) -> None:
        self.url = url
        self._store = store

    def get(self, name: str, limit: int) -> bytes:
        """See `Store.get`."""
        with faults.of_a_bucket(f"{self.url}/{name} cannot be read"):
            result = self._store.get(name)
            if result.meta["size"] > limit:
                raise errors.Damaged(f"{self.url}/{name} is damaged: it is longer than it can be.")
            return result.bytes().to_bytes()

    def holds(self, name: str) -> bool:
        """See `Store.holds`."""
        try:
            with faults.of_a_bucket(f"{self.url}/{name} cannot be looked for"):
                self._store.head(name)
        except errors.NotFound:
            return False
        return True

    def forget(self, name: str) -> None:
        """See `Store.forget`. Nothing of a bucket is remembered here."""

    def put(self, name: str, data: bytes) -> None:
        """See `Store.put`."""
        with faults.of_a_bucket(f"{self.url}/{name} cannot be written"):
            self._store.put(name, data, use_multipart=False)

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store.put_new`."""
        try:
            with faults.of_a_bucket(f"{self.url}/{name} cannot be made"):
                self._store.put(name, data, mode="create", use_multipart=False)
        except errors.Conflict:
            # When the first answer was lost, obstore asked again, and was told of its own object.
            if not self._is(name, data):
                raise

    def listing(self, folder: str) -> Iterator[Listed]:
        """See `Store.listing`."""
        with faults.of_a_bucket(f"{self.url}/{folder} cannot be listed"):
            for objects in self._store.list(folder):
                for found in objects:
                    yield Listed(found["path"], found["size"], found["last_modified"].timestamp())

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        try:
            with faults.of_a_bucket(f"{self.url}/{name} cannot be deleted"):
                self._store.delete(name)
        except errors.NotFound:
            pass

    def delete_all(self, names: Iterable[str]) -> None:
        """See `Store.delete_all`."""
        at_once = list(names)
        if not at_once:
            return
        try:
            with faults.of_a_bucket(f"Objects in {self.url} cannot be deleted"):
                self._store.delete(at_once)
        except errors.NotFound:
            # S3 does not mind one that is gone; Azure and Google do, and some of the others may be there still.
            for name in at_once:
                self.delete(name)

    def remove_unfinished(self, before: float) -> list[Listed]:
        """See `Store.remove_unfinished`. A bucket has nothing that is unfinished: nothing is put in parts."""
        return []

    @contextmanager
    def batch(self) -> Iterator[BucketBatch]:
        """See `Store.batch`."""
        yield BucketBatch(self)

    def clear(self) -> None:
        """Delete everything below the URL. Raises RepositoryError."""
        with faults.of_a_bucket(f"{self.url} cannot be cleared"):
            for objects in self._store.list():
                self.delete_all(found["path"] for found in objects)

    def _is(self, name: str, data: bytes) -> bool:
        try:
            return self.get(name, len(data)) == data
        except (errors.NotFound, errors.Damaged):
            return False


class BucketBatch:
    """A batch in a bucket, where everything is durable at once."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def flush(self) -> None:
        """See `Batch.flush`."""

    def commit(self, name: str, data: bytes) -> None:
        """See `Batch.commit`."""
        self._bucket.put(name, data)
