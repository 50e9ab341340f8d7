"""
The query parameter `follow`: replaces links by what they lead to, as in `follow=disk_attachments.disk,snapshots`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.lab.engine import xml

Get = Callable[[str], xml.Element]


def inline(element: xml.Element, paths: str, get: Get) -> None:
    """get: what a GET of an href answers."""
    for path in filter(None, paths.split(",")):
        for entity in _entities(element):
            _descend(entity, path.strip().split("."), get)


def _descend(entity: xml.Element, names: list[str], get: Get) -> None:
    for target in list(_targets(entity, names[0])):
        href = target.get("href")
        if href is None:
            continue
        found = get(href)
        entity.replace(target, found)
        if names[1:]:
            for member in _entities(found):
                _descend(member, names[1:], get)


def _entities(element: xml.Element) -> list[xml.Element]:
    """A collection's members, or the entity itself."""
    return [element] if element.get("id") else list(element)


def _targets(entity: xml.Element, name: str) -> Iterator[xml.Element]:
    """Links are called `diskattachments` where `follow` says `disk_attachments`."""
    for child in entity:
        is_link = child.tag == "link" and child.get("rel") == name.replace("_", "")
        if is_link or child.tag == name:
            yield child
