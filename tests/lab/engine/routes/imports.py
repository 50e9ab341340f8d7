"""
VMs that are made from configurations.
"""

from __future__ import annotations

import flask

from tests.lab.engine import rejections, xml
from tests.lab.engine.imports import Request
from tests.lab.engine.routes import query
from tests.lab.engine.routes.table import Table
from tests.lab.engine.routes.vms import render_vm
from tests.lab.engine.services import Services


def routes(services: Services) -> Table:
    table = Table()

    @table.post(f"{xml.BASE}/vms")
    def add() -> object:
        """Only from a configuration; the lab has no templates."""
        body = xml.parse(flask.request.data, "vm")
        configuration = xml.text(body, "initialization/configuration/data")
        if configuration is None:
            raise rejections.Incomplete("Vm", "initialization.configuration", "add")
        request = Request(
            configuration=configuration,
            name=xml.text(body, "name"),
            cluster_id=_cluster(services, body),
            regenerate_ids=xml.boolean(xml.text(body, "initialization/regenerate_ids")),
        )
        vm = services.imports.add(request, query.correlation_id())
        with services.db.changed:
            return render_vm(services, vm), 201

    return table


def _cluster(services: Services, body: xml.Element) -> str:
    """By id or by name."""
    wanted, name = xml.id_of(body, "cluster"), xml.text(body, "cluster/name")
    if wanted is None and name is None:
        raise rejections.Incomplete("Vm", "cluster.id|name", "add")
    for cluster in services.db.clusters.values():
        if wanted == cluster.id or (wanted is None and name == cluster.name):
            return cluster.id
    raise rejections.NotFound
