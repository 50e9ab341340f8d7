"""
Image transfers.
"""

from __future__ import annotations

import flask

from tests.lab.engine import model, rejections, xml
from tests.lab.engine.routes import query
from tests.lab.engine.routes.table import Table
from tests.lab.engine.services import Services
from tests.lab.engine.transfers.requests import Request

_TRANSFERS = f"{xml.BASE}/imagetransfers"
# Nothing listens there: the lab has no proxy. Clients prefer transfer_url.
_PROXY = "https://localhost:54323"


def routes(services: Services) -> Table:
    table = Table()
    db = services.db

    @table.get(_TRANSFERS)
    def transfers() -> xml.Element:
        with db.changed:
            return xml.collection("image_transfers", [render_transfer(each) for each in db.transfers.values()])

    @table.post(_TRANSFERS)
    def add() -> object:
        request = _request(xml.parse(flask.request.data, "image_transfer"))
        transfer = services.transfers.add(request, query.correlation_id())
        with db.changed:
            return render_transfer(transfer), 201

    @table.get(f"{_TRANSFERS}/<uuid:transfer_id>")
    def transfer(transfer_id: str) -> xml.Element:
        with db.changed:
            return render_transfer(services.transfers.find(transfer_id))

    @table.post(f"{_TRANSFERS}/<uuid:transfer_id>/finalize")
    def finalize(transfer_id: str) -> xml.Element:
        services.transfers.finalize(transfer_id)
        return query.complete()

    @table.post(f"{_TRANSFERS}/<uuid:transfer_id>/cancel")
    def cancel(transfer_id: str) -> xml.Element:
        services.transfers.cancel(transfer_id)
        return query.complete()

    @table.post(f"{_TRANSFERS}/<uuid:transfer_id>/pause")
    def pause(transfer_id: str) -> xml.Element:
        services.transfers.pause(transfer_id, query.correlation_id())
        return query.complete()

    @table.post(f"{_TRANSFERS}/<uuid:transfer_id>/resume")
    def resume(transfer_id: str) -> xml.Element:
        services.transfers.resume(transfer_id, query.correlation_id())
        return query.complete()

    @table.post(f"{_TRANSFERS}/<uuid:transfer_id>/extend")
    def extend(transfer_id: str) -> xml.Element:
        services.transfers.extend(transfer_id)
        return query.complete()

    return table


def render_transfer(transfer: model.Transfer) -> xml.Element:
    """URLs and host are there while the transfer has a ticket. Disk and backup are never told."""
    path = f"imagetransfers/{transfer.id}"
    host, image = transfer.host, f"/images/{transfer.ticket_id}"
    return xml.entity(
        "image_transfer",
        path,
        transfer.id,
        {
            "active": transfer.active,
            "direction": transfer.direction,
            "format": transfer.format,
            "inactivity_timeout": transfer.inactivity_timeout,
            "phase": transfer.phase,
            "proxy_url": _PROXY + image if host else None,
            "shallow": transfer.shallow,
            "timeout_policy": transfer.timeout_policy,
            "transfer_url": f"https://{host.address}:{host.imageio_port}{image}" if host else None,
            "transferred": transfer.transferred,
            "host": xml.Reference(f"hosts/{host.id}") if host else None,
            "image": xml.Identity(transfer.disk_id),
        },
        xml.actions(path, "cancel", "extend", "finalize", "pause", "resume"),
    )


def _request(body: xml.Element) -> Request:
    disk_id = xml.id_of(body, "disk") or xml.id_of(body, "image")
    if disk_id is None:
        raise rejections.Incomplete("ImageTransfer", "disk.id", "add")
    timeout = xml.text(body, "inactivity_timeout")
    return Request(
        disk_id=disk_id,
        direction=xml.text(body, "direction") or "upload",
        format=xml.text(body, "format"),
        backup_id=xml.id_of(body, "backup"),
        inactivity_timeout=None if timeout is None else int(timeout),
        timeout_policy=xml.text(body, "timeout_policy") or "legacy",
        shallow=xml.boolean(xml.text(body, "shallow")),
        host_id=xml.id_of(body, "host"),
    )
