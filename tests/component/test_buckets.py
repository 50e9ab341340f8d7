"""A store in a bucket of a real S3 service: the stores' contract, and what goes wrong between here and there."""

from __future__ import annotations

import contextlib
import os
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trustme

from blockferry import errors
from blockferry.repository import Repository
from blockferry.repository import store as stores
from blockferry.repository.chunks import Chunks
from blockferry.repository.store import Store, bucket, profile
from blockferry.repository.store.bucket import Bucket, Patience
from blockferry_agent.units import KiB
from tests.component.object_stores import (
    Fault,
    Service,
    hanging,
    lost_answer,
    lost_request,
    passing,
    refused_keys,
    serving,
    status,
    truncated,
)
from tests.unit import repository_images as images
from tests.unit.test_repository_store import (
    test_a_batch_puts_its_last_object,
    test_a_listing_tells_length_and_time,
    test_a_new_object_is_made_once,
    test_an_object_longer_than_expected_is_damaged,
    test_deleting_twice_is_no_error,
    test_forgetting_loses_nothing,
    test_many_are_deleted_and_what_is_not_there_is_no_error,
    test_names_are_those_of_a_folder,
    test_of_several_that_make_an_object_one_succeeds,
    test_what_is_there_is_told,
    test_what_was_not_put_is_not_found,
    test_what_was_put_is_there,
)

# The contract, here with a bucket for its `store`.
__all__ = [
    "test_a_batch_puts_its_last_object",
    "test_a_listing_tells_length_and_time",
    "test_a_new_object_is_made_once",
    "test_an_object_longer_than_expected_is_damaged",
    "test_deleting_twice_is_no_error",
    "test_forgetting_loses_nothing",
    "test_many_are_deleted_and_what_is_not_there_is_no_error",
    "test_names_are_those_of_a_folder",
    "test_of_several_that_make_an_object_one_succeeds",
    "test_what_is_there_is_told",
    "test_what_was_not_put_is_not_found",
    "test_what_was_put_is_there",
]

WINDOW = 256 * KiB
QUICK = Patience(request=1.0, total=1.5)


@pytest.fixture
def url(s3: Service) -> str:
    return f"s3://{s3.new_bucket()}/backups/here"


@pytest.fixture
def store(url: str) -> Store:
    return stores.connect(url)


@pytest.fixture
def quick(url: str) -> Bucket:
    """The store, for a client that gives up soon."""
    return bucket.connect(url, QUICK)


# What is tried again, and with what end.


PASSING = {
    "500": status(500, "InternalError"),
    "503": status(503, "SlowDown"),
    "429": status(429, "TooManyRequests"),
    "lost request": lost_request,
    "lost answer": lost_answer,
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_not_noticed(s3: Service, store: Store, fault: Fault) -> None:
    s3.fail(fault, times=2)
    store.put("a/b", b"1")
    s3.fail(fault, times=2)
    assert store.get("a/b", 1) == b"1"
    s3.fail(fault, times=2)
    assert [found.name for found in store.listing("a")] == ["a/b"]
    s3.fail(fault, times=2)
    store.delete("a/b")
    assert not store.holds("a/b")


def test_what_passes_is_not_noticed_in_the_midst_of_many(s3: Service, store: Store) -> None:
    """More than one request lists, or deletes: the second one meets the fault."""
    names = [f"many/{number:04}" for number in range(1001)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(name, b""), names))
    for fault in PASSING.values():
        s3.fail(passing, fault)
        assert [found.name for found in store.listing("many")] == names
    for fault in PASSING.values():
        s3.fail(fault, passing, fault)
        store.delete_all(names)
        assert list(store.listing("many")) == []
        store.put(names[-1], b"")


def test_a_delete_of_many_that_is_refused_for_some_is_told(s3: Service, store: Store) -> None:
    store.put("a", b"")
    s3.fail(refused_keys("AccessDenied"))
    with pytest.raises(errors.RepositoryError, match=r"cannot be deleted: access is denied"):
        store.delete_all(["a"])
    assert store.holds("a")
    # Which may pass.
    s3.fail(refused_keys("InternalError"))
    store.delete_all(["a"])
    assert not store.holds("a")


def test_content_that_breaks_off_is_asked_for_again_or_told(s3: Service, store: Store) -> None:
    store.put("a", b"content")
    s3.fail(truncated)
    with contextlib.suppress(errors.RepositoryError):
        assert store.get("a", 1000) == b"content"


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_of_a_new_object_what_passes_is_not_noticed(s3: Service, store: Store, fault: Fault) -> None:
    s3.fail(fault, times=2)
    store.put_new("a", b"mine")
    assert store.get("a", 10) == b"mine"


def test_an_object_that_was_made_and_not_acknowledged_is_ours(s3: Service, store: Store) -> None:
    s3.fail(lost_answer)
    store.put_new("locks/a", b"mine")
    s3.fail(lost_answer)
    with pytest.raises(errors.Conflict):
        store.put_new("locks/a", b"another's")
    assert store.get("locks/a", 10) == b"mine"


def test_an_answer_that_does_not_come_is_asked_for_again(s3: Service, quick: Bucket) -> None:
    s3.fail(hanging(1.3))
    quick.put("a", b"1")
    assert quick.get("a", 1) == b"1"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (status(500, "InternalError"), "the service failed"),
        (status(503, "SlowDown"), "the service asks to slow down"),
        (hanging(1.2), "the service did not answer in time"),
    ],
    ids=["500", "503", "hanging"],
)
def test_what_does_not_pass_ends_in_time_with_a_sentence(s3: Service, quick: Bucket, fault: object, told: str) -> None:
    assert callable(fault)
    s3.fail(fault, times=100)
    began = time.monotonic()
    with pytest.raises(errors.RepositoryError, match=rf"^{quick.url}/a cannot be read: {told}\.") as caught:
        quick.get("a", 1)
    assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    assert "run this again" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (status(403, "AccessDenied"), r"access is denied\. Check the credentials"),
        (status(403, "InvalidAccessKeyId"), r"does not know the access key\."),
        (status(403, "SignatureDoesNotMatch"), r"the secret does not belong to the access key\."),
        (status(400, "ExpiredToken"), r"the credentials have expired\. Get new ones"),
        (status(403, "RequestTimeTooSkewed"), r"this machine's clock.*Set the clock"),
        (status(400, "AuthorizationHeaderMalformed"), r"another region, or at another endpoint\. Set AWS_REGION"),
        (status(301, "PermanentRedirect"), r"another region, or at another endpoint\. Set AWS_REGION"),
    ],
    ids=["denied", "unknown key", "secret", "expired", "clock", "region", "redirect"],
)
def test_what_will_not_pass_is_told_at_once(s3: Service, store: Store, fault: object, told: str) -> None:
    assert callable(fault)
    for call in (
        lambda: store.get("a", 1),
        lambda: store.put("a", b"1"),
        lambda: store.put_new("a", b"1"),
        lambda: list(store.listing("a")),
    ):
        s3.fail(fault)
        with pytest.raises(errors.RepositoryError, match=told) as caught:
            call()
        assert store.url in str(caught.value)
        assert len(str(caught.value)) < 250


def test_a_full_quota_is_told_as_such(s3: Service, store: Store) -> None:
    s3.fail(status(403, "QuotaExceeded"))
    with pytest.raises(errors.RepositoryFull, match="Raise the quota"):
        store.put("a", b"1")


def test_a_service_without_conditional_puts_is_told(s3: Service, quick: Bucket) -> None:
    s3.fail(status(501, "NotImplemented"), times=100)
    with pytest.raises(errors.RepositoryError, match="needs conditional puts"):
        quick.put_new("a", b"1")


def test_a_bucket_that_is_not_there_is_named(s3: Service) -> None:
    missing = bucket.connect("s3://nobody-made-this/x", QUICK)
    for call in (lambda: missing.get("a", 1), lambda: missing.put("a", b"1"), lambda: list(missing.listing("a"))):
        with pytest.raises(errors.RepositoryError, match=r"s3://nobody-made-this/x/a .*: there is no such bucket\. "):
            call()
    with pytest.raises(errors.RepositoryError, match="no such bucket"):
        Repository.open("s3://nobody-made-this/x")


def test_an_empty_bucket_is_no_repository(url: str) -> None:
    with pytest.raises(errors.RepositoryError, match=f"no repository at {url}.*repository init"):
        Repository.open(url)


def test_a_service_that_is_not_there(monkeypatch: pytest.MonkeyPatch, s3: Service) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(errors.RepositoryError, match="the service does not answer"):
        bucket.connect("s3://bucket/x", QUICK).get("a", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    with pytest.raises(errors.RepositoryError, match="the endpoint's name is not known"):
        bucket.connect("s3://bucket/x", QUICK).get("a", 1)


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///path", "s3://user:secret@bucket/x", "s3://bucket/x?key=secret", "az://"]
)
def test_a_url_is_a_bucket_and_a_path(url: str) -> None:
    with pytest.raises(errors.RepositoryError, match="a bucket and a path") as caught:
        stores.connect(url)
    assert "secret" not in str(caught.value)


# Credentials.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    return tmp_path / ".aws"


def test_credentials_come_from_a_profile(s3: Service, url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n"
        "[backup]\naws_access_key_id = key\naws_secret_access_key = x\naws_session_token = t\n"
    )
    (home / "config").write_text(
        f"[default]\nregion = x\nendpoint_url = {s3.url}\n[profile backup]\nregion = eu-west-1\nendpoint_url = {s3.url}\n"
    )
    assert profile.of_environment()["secret_access_key"] == "b%c"
    monkeypatch.setenv("AWS_PROFILE", "backup")
    found = profile.of_environment()
    assert (found["access_key_id"], found["session_token"], found["region"]) == ("key", "t", "eu-west-1")
    stores.connect(url).put("a", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "first")
    assert profile.of_environment() == {}


def test_a_profile_that_is_nowhere_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "backup")
    with pytest.raises(errors.ConfigError, match="no profile backup"):
        stores.connect("s3://bucket/x")


def test_a_broken_file_of_credentials_is_named_and_not_shown(home: Path) -> None:
    (home / "credentials").write_text("aws_secret_access_key = hunter2\n")
    with pytest.raises(errors.ConfigError, match=r"\.aws/credentials") as caught:
        stores.connect("s3://bucket/x")
    assert "hunter2" not in str(caught.value)


def test_an_endpoint_of_ones_own_has_its_own_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with serving(context) as service:
        for name, value in service.environment.items():
            monkeypatch.setenv(name, value)
        untrusting = bucket.connect("s3://bucket/x", QUICK)
        with pytest.raises(errors.RepositoryError, match=r"certificate is not trusted\. .*AWS_CA_BUNDLE"):
            untrusting.get("a", 1)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with pytest.raises(errors.RepositoryError, match="no such bucket"):
            bucket.connect("s3://bucket/x", QUICK).get("a", 1)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(errors.ConfigError, match="AWS_CA_BUNDLE"):
        bucket.connect("s3://bucket/x")


@pytest.mark.parametrize("url", ["az://container/x", "gs://bucket/x"])
def test_other_clouds_ask_for_credentials(home: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Nothing of them is here to be tried: only that they are asked, and that the answer is a sentence."""
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(errors.RepositoryError, match="Check the credentials"):
        bucket.connect(url, QUICK).get("a", 1)


# A repository.


def test_a_backup_goes_through_a_bad_day(s3: Service, url: str) -> None:
    repository = Repository.init(url, WINDOW)
    image = os.urandom(4 * WINDOW)
    s3.fail(status(503, "SlowDown"), lost_request, status(500, "InternalError"), lost_answer, times=2)
    point = images.full(repository, image)
    s3.fail(status(503, "SlowDown"), lost_request, status(500, "InternalError"), times=2)
    assert images.restore(Repository.open(url), point) == image


def test_what_is_stored_is_looked_up_once_and_not_read(s3: Service, url: str) -> None:
    chunks = Chunks(stores.connect(url), "zstd")
    digest = chunks.put(b"content").digest
    s3.requests.clear()
    chunks.put(b"content")
    assert s3.requests == [], "what was written is known to be there"
    later = Chunks(stores.connect(url), "zstd")
    later.put(b"content")
    later.put(b"content")
    assert [request.partition(" ")[0] for request in s3.requests] == ["HEAD"]
    assert s3.requests[0].endswith(digest.hex())


def test_a_restore_has_many_fetches_in_flight(s3: Service, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar: at 20 ms for each answer at least four times as fast as one at a time. Busy machines get room here."""
    image = os.urandom(48 * WINDOW)
    point = images.full(Repository.init(url, WINDOW), image)
    s3.delay = 0.05
    seconds = {}
    for side_by_side in (1, 16):
        monkeypatch.setattr(Bucket, "side_by_side", side_by_side)
        repository = Repository.open(url)
        began = time.monotonic()
        assert images.restore(repository, point) == image
        seconds[side_by_side] = time.monotonic() - began
    assert seconds[1] / seconds[16] > 3
