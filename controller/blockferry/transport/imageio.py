"""
The fallback: the controller reads over HTTPS from Image I/O on the host, with Image I/O's own client.

No agent takes part; the block reader runs here, over this source, and yields the same blocks.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator

from ovirt_imageio import client

# Its client raises these and exports none of them.
from ovirt_imageio._internal import errors as imageio_errors
from ovirt_imageio._internal import http as imageio_http

from blockferry import errors
from blockferry.transport.disk import Reading, Target
from blockferry_agent import errors as agent_errors
from blockferry_agent import reader
from blockferry_agent.blocks import ReadRequest
from blockferry_agent.source import Extent
from blockferry_agent.units import MiB

# Image I/O serves a ticket to 8 connections. Each is one more client of the same NBD server, which hangs at the ninth,
# and Image I/O's own OPTIONS need one too (ovirt-facts, 5 and 6.4).
WORKERS = 4


class ImageioTransport:
    """
    Reads through Image I/O.

    ca_file: PEM file with the CA that signed the hosts' certificates (the engine's CA).
    """

    name = "imageio"

    def __init__(self, ca_file: str) -> None:
        self._ca_file = ca_file

    def open(self, target: Target) -> ImageioDisk:
        """See `disk.Transport.open`."""
        disk = ImageioDisk(target, self._ca_file)
        disk.connect().close()
        return disk


class ImageioDisk:
    """A disk behind Image I/O (`disk.Disk`). Each reading makes its own connections and closes them."""

    def __init__(self, target: Target, ca_file: str) -> None:
        self.size = target.size
        self._target = target
        self._ca_file = ca_file

    def connect(self) -> ImageioSource:
        """Return a new connection to the disk, which the caller closes."""
        target = self._target
        with _border(target):
            connection = client.ImageioClient(
                target.transfer_url, cafile=self._ca_file, proxy_url=target.proxy_url, buffer_size=1 * MiB
            )
        return ImageioSource(target, connection)

    def read(self, request: ReadRequest) -> Reading:
        """See `disk.Disk.read`."""
        return reader.read(self.connect, request, workers=WORKERS)

    def close(self) -> None:
        """Nothing is held between readings."""


class ImageioSource:
    """
    One HTTPS connection to a disk (`blockferry_agent.source.Source`).

    Image I/O lists all extents of a disk in one answer (ovirt-facts, 5), so the one connection that is asked for them
    holds the whole list. The agent has no such limit.
    """

    def __init__(self, target: Target, connection: client.ImageioClient) -> None:
        self.size = target.size
        self._target = target
        self._connection = connection

    def extents(self, start: int, length: int, incremental: bool) -> Iterator[Extent]:
        """See `Source.extents`."""
        end = start + length
        with _border(self._target):
            extents = self._connection.extents("dirty" if incremental else "zero")
            listed = list(extents)
        for extent in listed:
            first = max(start, extent.start)
            last = min(end, extent.start + extent.length)
            if first < last:
                yield Extent(first, last - first, extent.dirty if incremental else True, extent.zero)

    def readinto(self, start: int, buffer: bytearray | memoryview) -> None:
        """See `Source.readinto`."""
        with _border(self._target):
            # Not `read`: it asks for the disk's size first, for which the client lists all extents on each connection.
            self._connection.write_to(_Sink(buffer), start, len(buffer))

    def close(self) -> None:
        """See `Source.close`."""
        with contextlib.suppress(OSError):
            self._connection.close()


class _Sink:
    """A writer that fills a buffer from its start."""

    def __init__(self, buffer: bytearray | memoryview) -> None:
        self._view = memoryview(buffer)
        self._position = 0

    def write(self, data: memoryview) -> None:
        end = self._position + len(data)
        self._view[self._position : end] = data
        self._position = end


@contextlib.contextmanager
def _border(target: Target) -> Iterator[None]:
    """Turn what Image I/O's client raises into our errors. The ticket, which is in the URL, stays out of the text."""
    where = f"Image I/O on host {target.host_name}"
    try:
        yield
    except imageio_http.Error as error:
        if error.code == http.client.FORBIDDEN:
            raise agent_errors.TicketRefused(
                f"{where} refuses the ticket of transfer {target.transfer_id}: it expired or was cancelled.",
                "See the engine's events, then run the backup again.",
            ) from None
        raise agent_errors.ReadFailed(
            f"{where} answered {error.code} while the disk was read.", "See Image I/O's log on the host."
        ) from None
    except imageio_errors.UnsupportedOperation:
        raise agent_errors.BitmapMissing(f"{where} has no dirty extents for this disk.") from None
    except ssl.SSLCertVerificationError as error:
        raise errors.TransportError(
            f"{where} shows a certificate that the configured CA did not sign ({error.verify_message}).",
            "Check engine.ca_file.",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise errors.TransportError(
            f"{where} does not answer: {type(error).__name__} {error}.",
            "Check that the host's Image I/O port can be reached from here.",
        ) from None
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        # What the client raises when an answer is not what it should be: short bodies, bad JSON, missing keys.
        raise agent_errors.ProtocolError(f"{where} answered nonsense ({type(error).__name__}).") from None
