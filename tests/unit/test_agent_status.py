"""Errors on the wire: one code for each, and back."""

from __future__ import annotations

import grpc
import pytest

from blockferry_agent import errors, status


def tree(root: type[errors.Error]) -> set[type[errors.Error]]:
    own = {cls for cls in root.__subclasses__() if cls.__module__ == errors.__name__}
    return {root}.union(*(tree(cls) for cls in own))


RAISED = tree(errors.Error) - {errors.SourceError}


def test_every_error_that_is_raised_has_its_own_code() -> None:
    assert set(status.CODES) == RAISED
    assert len(set(status.CODES.values())) == len(status.CODES)


def test_no_code_is_one_that_grpc_uses_for_a_broken_call() -> None:
    grpcs = {"OK", "CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNAVAILABLE", "UNAUTHENTICATED"}
    codes = {code.value[0]: code.name for code in grpc.StatusCode}
    assert not grpcs & {codes[code] for code in status.CODES.values()}


@pytest.mark.parametrize("cls", sorted(RAISED, key=lambda cls: cls.__name__))
def test_an_error_survives_the_way(cls: type[errors.Error]) -> None:
    error = cls("Disk 1: «weg».\t", "Sieh nach: 100 % (host's log)?\n")
    metadata = {status.HINT_KEY: status.hint_of(error)}
    assert metadata[status.HINT_KEY].isascii()
    assert metadata[status.HINT_KEY].isprintable()
    back = status.error_from(status.code_of(error), error.message, metadata)
    assert (type(back), str(back)) == (cls, str(error))


def test_a_class_outside_the_table_has_the_code_of_the_one_above() -> None:
    class Special(errors.ReadFailed):
        pass

    assert status.code_of(Special("x")) == status.CODES[errors.ReadFailed]
    assert status.code_of(errors.SourceError("x")) == status.CODES[errors.Error]


def test_grpcs_own_codes_are_nobodys_error() -> None:
    assert status.error_from(grpc.StatusCode.UNAVAILABLE.value[0], "connection refused", {}) is None


@pytest.mark.parametrize("code", sorted(status.CODES.values()))
def test_a_status_without_our_hint_is_grpcs_own(code: int) -> None:
    assert status.error_from(code, "Received message larger than max", {"other": "x"}) is None
    assert status.error_from(code, "No hint.", {status.HINT_KEY: ""}) is not None


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("999999999999", status.MAX_RETRY_AFTER),
        ("soon", errors.RETRY_AFTER),
        ("-1", errors.RETRY_AFTER),
        (b"1", errors.RETRY_AFTER),
    ],
)
def test_busy_says_when_to_come_back(said: str | bytes, seconds: int) -> None:
    busy = errors.Busy("Enough to do.", "Wait.", retry_after=9)
    assert (status.RETRY_KEY, "9") in status.metadata_of(busy)
    metadata = {**dict(status.metadata_of(busy)), status.RETRY_KEY: said}
    back = status.error_from(status.code_of(busy), busy.message, metadata)
    assert isinstance(back, errors.Busy)
    assert back.retry_after == seconds
