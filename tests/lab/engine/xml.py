"""
The engine's XML: entities are built from plain fields, request bodies are read with paths.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lxml import etree

from tests.lab.engine.rejections import Malformed

BASE = "/ovirt-engine/api"

Element = etree._Element


class Reference(NamedTuple):
    """A field that names another entity: an element with href and id, without content. path: below the API."""

    path: str

    @property
    def href(self) -> str:
        return f"{BASE}/{self.path}"

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2]


class Identity(NamedTuple):
    """A reference with an id and no href."""

    id: str


Value = None | bool | int | str | datetime.datetime | Reference | Identity | Mapping[str, "Value"] | list[Element]


def entity(tag: str, path: str | None, id: str, fields: Mapping[str, Value], *parts: Element) -> Element:
    """An entity with its own address. path: below the API, or None for an entity without href."""
    element = etree.Element(tag)
    if path is not None:
        element.set("href", f"{BASE}/{path}")
    element.set("id", id)
    element.extend(parts)
    _fill(element, fields)
    return element


def plain(tag: str, fields: Mapping[str, Value], *parts: Element) -> Element:
    """An element without an identity."""
    element = etree.Element(tag)
    element.extend(parts)
    _fill(element, fields)
    return element


def collection(tag: str, members: Iterable[Element]) -> Element:
    """Nothing but members: the SDK parses every child of a collection as one."""
    element = etree.Element(tag)
    element.extend(members)
    return element


def actions(path: str, *names: str) -> Element:
    return collection("actions", [link(f"{path}/{name}", name) for name in names])


def link(path: str, rel: str) -> Element:
    return etree.Element("link", {"href": f"{BASE}/{path}", "rel": rel})


def fault(reason: str, detail: str) -> Element:
    return plain("fault", {"detail": detail, "reason": reason})


def render(element: Element) -> bytes:
    etree.indent(element, "    ")
    return etree.tostring(element, xml_declaration=True, encoding="UTF-8", standalone=True)


def timestamp(time: datetime.datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03}Z"


def _fill(element: Element, fields: Mapping[str, Value]) -> None:
    for name, value in fields.items():
        if value is None:
            continue
        child = etree.SubElement(element, name)
        if isinstance(value, Reference):
            child.set("href", value.href)
            child.set("id", value.id)
        elif isinstance(value, Identity):
            child.set("id", value.id)
        elif isinstance(value, Mapping):
            _fill(child, value)
        elif isinstance(value, list):
            child.extend(value)
        elif isinstance(value, bool):
            child.text = "true" if value else "false"
        elif isinstance(value, datetime.datetime):
            child.text = timestamp(value)
        elif value != "":
            child.text = str(value)


# Request bodies.


def parse(body: bytes, tag: str) -> Element:
    """Read a request body whose root element must be `tag`. Raises Malformed."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError as error:
        raise Malformed(f"The request body is not valid XML: {error.msg}") from error
    if root.tag != tag:
        raise Malformed(f"The request body should be <{tag}>, but it is <{root.tag}>")
    return root


def text(element: Element, path: str) -> str | None:
    """Text of a descendant, or None when it is missing or empty."""
    return element.findtext(path) or None


def id_of(element: Element, path: str) -> str | None:
    """The id attribute of a descendant, or None."""
    found = element.find(path)
    return None if found is None else found.get("id")


def boolean(value: str | None, default: bool = False) -> bool:
    """A boolean as the engine reads it in queries and bodies; anything else is ignored."""
    match (value or "").lower():
        case "t" | "true" | "y" | "yes" | "1":
            return True
        case "f" | "false" | "n" | "no" | "0":
            return False
        case _:
            return default
