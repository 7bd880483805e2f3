"""Groups of what is measured: by kind of image, and evenly spaced parts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

ALL = "all"


def kind_of(picture: Mapping[str, Any]) -> str:
    """The kind that a picture's metadata gives, if any."""
    return str(picture.get("kind", "picture"))


def by_kind(kinds: Sequence[str]) -> dict[str, list[int]]:
    """The places of each kind, by name; of several kinds, then of all together."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        found[kind].append(place)
    table = dict(sorted(found.items()))
    return table if len(table) == 1 else {**table, ALL: list(range(len(kinds)))}


def evenly(things: Sequence[int], limit: int | None) -> list[int]:
    """At most `limit` of the things, evenly spaced and in their order; None takes all."""
    if limit is None or limit >= len(things):
        return list(things)
    return [things[number * len(things) // limit] for number in range(limit)]
