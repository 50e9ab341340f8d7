"""The border where what obstore and the operating system raise becomes our errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions as obstore_exceptions

from blockferry import errors

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_HINTS = {
    errno.EACCES: "Run as a user who may, or mend the owner and the mode of the repository.",
    errno.EPERM: "Run as a user who may, or mend the owner and the mode of the repository.",
    errno.EROFS: "The file system is mounted read-only: see the kernel's log for the reason.",
}

_SPELLING = "Check repository.url in the configuration: blockferry makes no bucket itself."
_CREDENTIALS = "Check the credentials (AWS_…, AZURE_… or GOOGLE_… variables, or AWS_PROFILE), and what they may do."
_AGAIN = "Check the network and the service, then run this again: what is stored already is used."

_NO_ROOM = "QuotaExceeded|InsufficientStorage|507 Insufficient"
# What is looked for in the service's answer, what it means, and what to do. The first that fits counts.
_SERVERS_WORDS = (
    ("NoSuchBucket|ContainerNotFound|specified bucket does not exist", "there is no such bucket", _SPELLING),
    ("ExpiredToken|TokenRefreshRequired|token .*expired", "the credentials have expired", "Get new ones."),
    ("InvalidAccessKeyId|InvalidToken", "the service does not know the access key", _CREDENTIALS),
    ("SignatureDoesNotMatch", "the secret does not belong to the access key", _CREDENTIALS),
    (
        "RequestTimeTooSkewed",
        "this machine's clock and the service's differ by more than it allows",
        "Set the clock (chrony or systemd-timesyncd does it).",
    ),
    (
        "AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint|301 Moved|BareRedirect"
        "|without LOCATION",
        "the bucket is in another region, or at another endpoint",
        "Set AWS_REGION, and AWS_ENDPOINT_URL when it is not at AWS.",
    ),
    ("AccessDenied|AuthorizationFailure|403 Forbidden|401 Unauthorized", "access is denied", _CREDENTIALS),
    (
        "NotImplemented|501 ",
        "the service does not know what is asked",
        "Blockferry needs conditional puts (If-None-Match): choose a service, or a version of it, that has them.",
    ),
    ("SlowDown|ServerBusy|429 Too Many|503 Service", "the service asks to slow down", _AGAIN),
    ("dns error|failed to lookup", "the endpoint's name is not known", "Check AWS_ENDPOINT_URL or AWS_REGION."),
    ("169\\.254\\.169\\.254|metadata.google|must be specified", "there are no credentials", _CREDENTIALS),
    (
        "certificate|CertificateUnknown|UnknownIssuer",
        "the endpoint's certificate is not trusted",
        "Set AWS_CA_BUNDLE to the file with its CA.",
    ),
    ("Connection refused|ConnectError|kind: Connect", "the service does not answer", _AGAIN),
    ("TimedOut|timed out|Timeout", "the service did not answer in time", _AGAIN),
    ("Server returned non-2xx status code: 5", "the service failed", _AGAIN),
)


@contextmanager
def of_a_directory(doing: str) -> Iterator[None]:
    """Turn the errors of a directory into ours. doing: the sentence so far, such as "/x/y cannot be read"."""
    try:
        yield
    except FileNotFoundError:
        raise errors.NotFound(f"{doing}: it is not there.") from None
    except FileExistsError:
        raise errors.Conflict(f"{doing}: it is there already.") from None
    except OSError as error:
        raise from_errno(error.errno, doing, error.strerror or str(error)) from None


@contextmanager
def of_a_bucket(doing: str) -> Iterator[None]:
    """Turn the errors of an object store into ours. doing: the sentence so far."""
    try:
        yield
    except (FileNotFoundError, obstore_exceptions.NotFoundError) as error:
        if re.search(_SERVERS_WORDS[0][0], str(error)):
            raise _from_server(error, doing) from None
        raise errors.NotFound(f"{doing}: it is not there.") from None
    except obstore_exceptions.AlreadyExistsError:
        raise errors.Conflict(f"{doing}: it is there already.") from None
    except (obstore_exceptions.BaseError, OSError, ValueError) as error:
        raise _from_server(error, doing) from None


def from_errno(number: int | None, doing: str, reason: str) -> errors.RepositoryError:
    """Return the error for what the operating system said. reason: its words."""
    if number in _FULL:
        return errors.RepositoryFull(f"{doing}: {reason}.", "Make room in the repository, then run this again.")
    if number == errno.EIO:
        return errors.StorageFailing(f"{doing}: {reason}.", "The storage is failing: see the kernel's log.")
    return errors.RepositoryError(f"{doing}: {reason}.", _HINTS.get(number or 0, ""))


def _from_server(error: Exception, doing: str) -> errors.Error:
    # The debug part says what the text does not, such as that a connection was refused; but it also names the object,
    # and a VM's id may contain anything that is looked for.
    text = _without_names(str(error))
    if re.search(_NO_ROOM, text):
        return errors.RepositoryFull(
            f"{doing}: the service has no room for it.", "Raise the quota, then run this again."
        )
    for words, reason, hint in _SERVERS_WORDS:
        if re.search(words, text):
            return errors.RepositoryError(f"{doing}: {reason}.", hint)
    return errors.RepositoryError(f"{doing}: {_first_part(error)}.", _AGAIN)


def _first_part(error: Exception) -> str:
    """Return what obstore says without Rust's view of it, and without the document that a service answered with."""
    return str(error).split("\n", 1)[0].rstrip(". ")


def _without_names(text: str) -> str:
    """Leave out URLs and paths, but for the service that gives credentials to machines."""
    return re.sub(r"https?://(?!169\.254\.169\.254|metadata)\S+|path: \"[^\"]*\"|location \S+", "", text)
