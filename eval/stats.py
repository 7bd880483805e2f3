"""Groups of evaluation items: by kind of image, and evenly spaced subsets."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

ALL = "all"


def kind_of(picture: Mapping[str, Any]) -> str:
    """Return the kind in an image's metadata, by default "picture"."""
    return str(picture.get("kind", "picture"))


def by_kind(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of each kind, by name; if there are several kinds, also those of all."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        found[kind].append(place)
    table = dict(sorted(found.items()))
    return table if len(table) == 1 else {**table, ALL: list(range(len(kinds)))}


def evenly(things: Sequence[int], limit: int | None) -> list[int]:
    """Return at most `limit` values, evenly spaced and in order; None returns all."""
    if limit is None or limit >= len(things):
        return list(things)
    return [things[number * len(things) // limit] for number in range(limit)]
