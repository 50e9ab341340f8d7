"""
qemu-nbd for transfers that no running VM serves: hybrid, cold and plain ones (vdsm's lib/vdsm/storage/nbd.py).
"""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path

from tests.lab import errors, storage
from tests.lab.places import Place, Service
from tests.lab.storage import Format


class Servers:
    """
    The host's NBD servers: one qemu-nbd, with one unix socket, per transfer.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._overlays = place.directory(place.files / "transient_disks", "vdsm")
        self._servers: dict[str, Service] = {}
        self._lock = threading.Lock()

    def start(
        self,
        transfer_id: str,
        path: Path,
        format: Format,
        readonly: bool,
        bitmap: str | None,
        backing_chain: bool,
    ) -> str:
        _check_options(format, readonly, bitmap, backing_chain)
        holders = _layers_with(bitmap, path) if bitmap is not None else []
        overlay = None
        if bitmap is not None and len(holders) > 1:
            overlay = self._overlays / transfer_id
            _merge_into_overlay(overlay, path, holders, bitmap)
        try:
            return self._serve(transfer_id, overlay or path, format, readonly, bitmap, backing_chain)
        finally:
            if overlay is not None:
                storage.remove(overlay)  # qemu-nbd has it open

    def stop(self, transfer_id: str) -> None:
        """One that does not run is ignored."""
        with self._lock:
            server = self._servers.pop(transfer_id, None)
        if server is not None:
            server.stop()
            self._place.seen(self._socket(transfer_id)).unlink(missing_ok=True)

    def stop_all(self) -> None:
        for transfer_id in list(self._servers):
            self.stop(transfer_id)

    def _serve(
        self,
        transfer_id: str,
        path: Path,
        format: Format,
        readonly: bool,
        bitmap: str | None,
        backing_chain: bool,
    ) -> str:
        address = self._socket(transfer_id)
        seen = self._place.seen(address)
        command = ["qemu-nbd", "--socket", str(address), "--persistent", "--shared=8"]
        command += ["--export-name=", "--cache=none", "--aio=native"]
        if format != "raw":
            command.append("--allocation-depth")
        if readonly:
            command.append("--read-only")
        else:
            command += ["--discard=unmap", "--detect-zeroes=unmap"]
        if bitmap is not None:
            command.append(f"--bitmap={bitmap}")
        command.append("json:" + json.dumps(_image(path, format, backing_chain)))
        server = self._place.daemon(f"vdsm-nbd-{transfer_id}", command, "vdsm", {}, lasting=False)
        try:
            server.wait_until(lambda: _greets(seen))
        except errors.LabError as error:
            server.stop()
            raise errors.HostError(str(error)) from error
        seen.chmod(0o660)
        with self._lock:
            self._servers[transfer_id] = server
        return f"nbd:unix:{address}"

    def _socket(self, transfer_id: str) -> Path:
        return self._place.nbd / f"{transfer_id}.sock"


def _image(path: Path, format: Format, backing_chain: bool) -> dict[str, object]:
    image: dict[str, object] = {
        "driver": format,
        "file": {"driver": "file", "filename": str(path)},
    }
    if format != "raw" and not backing_chain:
        image["backing"] = None
    return image


def _greets(path: Path) -> bool:
    """
    Whether a server greets a client; its socket appears earlier, before it listens and before it has the image open.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        try:
            client.connect(str(path))
            return client.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


def _check_options(format: Format, readonly: bool, bitmap: str | None, backing_chain: bool) -> None:
    if bitmap is None:
        return
    if not readonly:
        raise errors.HostError("Cannot export bitmap for writing")
    if not backing_chain:
        raise errors.HostError("Cannot export bitmap with shallow export")
    if format == "raw":
        raise errors.HostError("Cannot export bitmap from RAW volume")


def _layers_with(bitmap: str, path: Path) -> list[Path]:
    """
    The layers of a volume's chain that hold a bitmap, top first: every layer from the top down to some layer.

    Raises HostError when there is none, when one is broken, or when a layer between has none.
    """
    holders: list[Path] = []
    without: list[Path] = []
    for layer in storage.chain(path):
        if layer.format == "raw":
            continue
        flags = layer.bitmaps.get(bitmap)
        if flags is None:
            without.append(layer.path)
        elif without:
            missing = [str(path) for path in without]
            raise errors.HostError(f"Bitmap is missing in {missing}")
        elif "in-use" in flags:
            raise errors.HostError("Bitmap in use")
        elif "auto" not in flags:
            raise errors.HostError("Bitmap is disabled")
        else:
            holders.append(layer.path)
    if not holders:
        raise errors.HostError(f"Bitmap does not exist in {path}", errors.BITMAP_DOES_NOT_EXIST)
    return holders


def _merge_into_overlay(overlay: Path, path: Path, holders: list[Path], bitmap: str) -> None:
    """Make a temporary volume over the chain whose bitmap is the union of those of the layers."""
    storage.create(overlay, "qcow2", storage.info(path).size, backing=path)
    try:
        storage.add_bitmap(overlay, bitmap)
        for layer in holders:
            storage.merge_bitmap(layer, overlay, bitmap)
    except errors.HostError:
        storage.remove(overlay)
        raise
