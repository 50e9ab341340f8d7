"""Retention: which points a policy keeps, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

from blockferry import errors
from blockferry.repository.manifest import Manifest

_PERIODS = (
    ("hourly", "%Y-%m-%d %H:00"),
    ("daily", "%Y-%m-%d"),
    ("weekly", "week %G-W%V"),
    ("monthly", "%Y-%m"),
    ("yearly", "%Y"),
)
"""Of each period: the policy's field, and what two points in one period have in common (strftime, UTC)."""


class Policy(NamedTuple):
    """
    What is kept of each VM's points; a point that any of these keeps is kept.

    last: so many newest ones.  hourly … yearly: the newest one of each of so many newest hours … years (UTC) that have
    any.  within: all that are not older, before the VM's newest one.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: timedelta = timedelta()

    def check(self) -> None:
        """Raise ConfigError when this would keep nothing, or cannot be meant."""
        if any(value < 0 for value in self[:6]) or self.within < timedelta():
            raise errors.ConfigError("A policy has no negative numbers.")
        if not any(self):
            raise errors.ConfigError(
                "This policy would keep nothing.",
                "Say what to keep, such as --keep-last 7 --keep-weekly 4; single points are deleted by `delete`.",
            )


class Decision(NamedTuple):
    """What becomes of a point. reasons: why it is kept; none when it is not."""

    point: Manifest
    reasons: tuple[str, ...]

    @property
    def keep(self) -> bool:
        """Whether the point stays."""
        return bool(self.reasons)


def decide(points: Sequence[Manifest], policy: Policy, pinned: Collection[str]) -> list[Decision]:
    """
    Decide about all points of one VM. points: newest first.  pinned: ids of those that stay whatever the policy says.

    The newest point always stays. Raises ConfigError for a policy that would keep nothing.
    """
    policy.check()
    reasons: dict[str, list[str]] = {point.id: [] for point in points}
    for number, point in enumerate(points[: policy.last], 1):
        reasons[point.id].append(f"last {number} of {policy.last}")
    for name, pattern in _PERIODS:
        for number, (period, point) in enumerate(_newest_of_each(points, pattern)[: getattr(policy, name)], 1):
            reasons[point.id].append(f"{name} {number} of {getattr(policy, name)} ({period})")
    for point in points:
        if policy.within and points[0].created - point.created <= policy.within:
            reasons[point.id].append("within the time")
        if point.id in pinned:
            reasons[point.id].append("pinned")
    if points and not reasons[points[0].id]:
        reasons[points[0].id].append("the newest")
    return [Decision(point, tuple(reasons[point.id])) for point in points]


def _newest_of_each(points: Sequence[Manifest], pattern: str) -> list[tuple[str, Manifest]]:
    """Return the newest point of each period, newest first, with the period's name."""
    newest: dict[str, Manifest] = {}
    for point in points:
        newest.setdefault(f"{point.created:{pattern}}", point)
    return list(newest.items())
