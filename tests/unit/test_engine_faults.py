"""Every foreign error becomes one of ours that names the thing and the next step."""

from __future__ import annotations

from pathlib import Path

import ovirtsdk4
import pytest
from ovirtsdk4 import types

from blockferry import errors
from blockferry.engine import faults

PLACE = faults.Place("https://engine/ovirt-engine/api", "admin@internal", Path("/etc/ca.pem"), 30)
TASK = "read VM 'db01'"


def fault(cls: type[ovirtsdk4.Error], status: int, detail: str | None) -> ovirtsdk4.Error:
    return cls(
        "text", code=status, fault=None if detail is None else types.Fault(reason="Operation Failed", detail=detail)
    )


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (fault(ovirtsdk4.Error, 409, "[Disk is locked.]"), faults.Occupied, "Disk is locked"),
        (fault(ovirtsdk4.Error, 400, "[Bad one., Bad two.]"), faults.Refused, "Bad one., Bad two"),
        (fault(ovirtsdk4.Error, 400, "[]"), faults.Refused, "HTTP status 400, without a reason"),
        (fault(ovirtsdk4.Error, 500, None), faults.Refused, "HTTP status 500, without a reason"),
        (fault(ovirtsdk4.NotFoundError, 404, None), errors.NotFound, "knows no such thing"),
        (fault(ovirtsdk4.AuthError, 403, "[Not yours.]"), errors.EngineDenied, "may not read VM 'db01': Not yours"),
        (fault(ovirtsdk4.AuthError, 401, None), errors.EngineDenied, "does not accept the session"),
        (faults.NotXml("html", code=401), errors.EngineDenied, "does not accept the session"),
        (faults.NotXml("html", code=404), errors.EngineUnreachable, "is not an oVirt engine"),
        (faults.NotXml("html", code=503), errors.EngineUnreachable, "still starting: HTTP status 503"),
    ],
)
def test_answers(error: ovirtsdk4.Error, expected: type[errors.Error], words: str) -> None:
    mapped = faults.from_sdk(error, TASK, PLACE)
    assert type(mapped) is expected
    assert words in mapped.message


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (6, "has no address"),
        (7, "Nothing listens at https://engine/ovirt-engine/api"),
        (28, "did not answer within 30 s"),
        (56, "broke: Recv failure"),
        (60, "not one that /etc/ca.pem vouches for"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "Failed to read response: [(<pycurl.Curl object at 0x7f1c>, {}, 'Recv failure')]",
        "Error while sending HTTP request: ({}, 'Recv failure')",
    ],
)
def test_failures_of_curl(text: str, number: int, words: str) -> None:
    mapped = faults.from_sdk(ovirtsdk4.Error(text.format(number)), TASK, PLACE)
    assert isinstance(mapped, errors.EngineUnreachable)
    assert words in mapped.message
    assert mapped.hint


def test_an_answer_that_makes_no_sense_is_no_outage() -> None:
    mapped = faults.from_sdk(ovirtsdk4.Error("Expected a fault, but got Action"), TASK, PLACE)
    assert type(mapped) is errors.EngineError
    assert "Expected a fault" in mapped.message
