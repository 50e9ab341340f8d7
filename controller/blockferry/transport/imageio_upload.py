"""
Writing without an agent: over HTTPS, to Image I/O on the host, with Image I/O's own client.

The agent's writer and comparison run here. So a comparison reads the disk over the network, but for its zeros.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

from blockferry.transport.disk import Target
from blockferry.transport.imageio import WORKERS, Connections, ImageioDisk, ImageioReading, ImageioTransport
from blockferry_agent import compare, writer
from blockferry_agent import errors as agent_errors
from blockferry_agent.blocks import Block, Known, Range

BATCH = 16384
"""Ranges that are compared in one reading, which makes connections of its own."""


class ImageioUploads:
    """Writes through Image I/O (`uploading.UploadTransport`)."""

    name = "imageio"
    is_last_resort = True

    def __init__(self, ca_file: str, bytes_per_second: int = 0) -> None:
        """See `ImageioTransport`."""
        self._transport = ImageioTransport(ca_file, bytes_per_second)

    def open(self, target: Target) -> ImageioUpload:
        """See `uploading.UploadTransport.open`."""
        disk = self._transport.open(target)
        if not disk.is_writable:
            raise agent_errors.TicketRefused(
                f"Image I/O on host {target.host_name} lets nobody write the disk of transfer {target.transfer_id}.",
                "See the engine's events: the transfer must be an upload.",
            )
        return ImageioUpload(disk)


class ImageioUpload:
    """A disk behind Image I/O (`uploading.Upload`)."""

    def __init__(self, disk: ImageioDisk) -> None:
        self.size = disk.size
        self.remark = disk.remark
        self._disk = disk
        self._connections = Connections(disk)
        self._written_to = 0

    def compare(self, known: Iterable[Known]) -> Iterator[Range]:
        """See `uploading.Upload.compare`."""
        remaining = iter(known)
        while batch := list(itertools.islice(remaining, BATCH)):
            if batch[0].start < self._written_to:
                self._disk.forget()
                self._written_to = 0
            request = compare.request(batch)
            with contextlib.closing(ImageioReading(self._disk, request, compare.cut(batch))) as reading:
                yield from compare.differences(request, reading)

    def write(self, blocks: Iterable[Block], window: int, compress: bool = False) -> Iterator[int]:
        """See `uploading.Upload.write`. Nothing is compressed: Image I/O would not know what to do with it."""
        target = writer.Target(self._connections.open, self.size, may_punch=True)
        # Forgotten whatever comes of it: nobody knows what a writing that failed has written.
        self._written_to = self.size
        for position in writer.Writing(target, blocks, window, WORKERS, self._disk.throttles):
            self._written_to = position
            yield position

    def close(self) -> None:
        """See `uploading.Upload.close`."""
        self._connections.hang_up()
