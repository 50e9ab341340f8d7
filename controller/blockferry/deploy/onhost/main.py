"""One request, one answer: what the loader (`blockferry.deploy.directory`) calls."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from blockferry.deploy.onhost import checks
from blockferry.deploy.onhost.deployment import Deployment
from blockferry.deploy.onhost.refusal import Refused, as_refused

ACTIONS = frozenset({"inspect", "install", "rollback", "renew", "logs", "remove"})
"""What may be asked for: methods of `Deployment`, with the request's fields, and files, as their arguments."""


def answer(request: dict[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """
    Do what is asked for.

    The answer is {"done": …}, or {"refused": a sentence, "hint": the next step, "kind": of `refusal`}.
    """
    os.umask(0o022)
    try:
        return {"done": _do(request, files)}
    except (Refused, OSError) as error:
        refused = as_refused(error)
        return {"refused": refused.sentence, "hint": refused.hint, "kind": refused.kind}


def _do(request: dict[str, Any], files: Mapping[str, bytes]) -> object:
    deployment = Deployment(request.pop("directory"))
    do = request.pop("do")
    if do == "check":
        return checks.run(deployment, **request)
    if do not in ACTIONS:
        raise Refused(f"Nobody knows how to {do}.")
    if files:
        request["files"] = files
    return getattr(deployment, do)(**request)
