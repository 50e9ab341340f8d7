"""
The API's common ground: who may come in, how answers and refusals look.
"""

from __future__ import annotations

import time
from typing import Any

import flask
import werkzeug.exceptions
from werkzeug.routing import BaseConverter

from tests.lab.engine import rejections, xml
from tests.lab.engine.routes import backups, disks, follow, imports, infrastructure, transfers, vms
from tests.lab.engine.services import Services

_PUBLIC = ("/ovirt-engine/sso/", "/ovirt-engine/services/")
_XML = "application/xml;charset=UTF-8"


class Uuid(BaseConverter):
    """A UUID in a path; anything else is a 404."""

    regex = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

    def to_python(self, value: str) -> str:
        return value.lower()


class Api(flask.Flask):
    """Turns what views return (see table.Table) into responses."""

    def make_response(self, value: Any) -> flask.Response:
        if value is None:
            return flask.Response(status=200)
        if isinstance(value, xml.Element):
            value = value, 200
        if isinstance(value, tuple) and isinstance(value[0], xml.Element):
            element, status = value
            follow.inline(element, flask.request.args.get("follow", ""), self._get)
            return flask.Response(xml.render(element), status, content_type=_XML)
        return super().make_response(value)

    def _get(self, href: str) -> xml.Element:
        endpoint, values = self.url_map.bind("").match(href, method="GET")
        element = self.view_functions[endpoint](**values)
        assert isinstance(element, xml.Element)
        return element


def create(services: Services) -> Api:
    api = Api("engine", static_folder=None)
    api.url_map.converters["uuid"] = Uuid
    api.url_map.strict_slashes = False
    for module in (infrastructure, vms, imports, disks, backups, transfers):
        for route in module.routes(services):
            name = f"{module.__name__.rpartition('.')[2]}-{route.view.__name__}"
            api.add_url_rule(route.path, name, route.view, methods=[route.method])

    def admit() -> flask.Response | None:
        request = flask.request
        time.sleep(services.faults.delay_of(request.path))
        if request.path.startswith(_PUBLIC):
            return None
        if not services.sessions.admit(request.headers.get("Authorization", "")):
            return _unauthorized()
        if request.headers.get("Version", "4") != "4":
            return flask.Response(status=400)
        services.faults.check(request.path)
        return None

    api.before_request(admit)
    api.register_error_handler(rejections.Rejection, _refuse)
    api.register_error_handler(werkzeug.exceptions.HTTPException, _refuse_http)
    return api


def _unauthorized() -> flask.Response:
    """WildFly's error page: HTML, which the SDK does not understand."""
    return flask.Response(
        "<html><head><title>Error</title></head><body>Unauthorized</body></html>",
        401,
        {"WWW-Authenticate": 'Basic realm="RESTAPI"'},
        content_type="text/html;charset=UTF-8",
    )


def _refuse(rejection: rejections.Rejection) -> flask.Response:
    if rejection.reason is None:
        return flask.Response(status=rejection.status)
    fault = xml.fault(rejection.reason, rejection.detail)
    return flask.Response(xml.render(fault), rejection.status, content_type=_XML)


def _refuse_http(error: werkzeug.exceptions.HTTPException) -> flask.Response:
    """No such address, no such method: an empty body."""
    return flask.Response(status=error.code)
