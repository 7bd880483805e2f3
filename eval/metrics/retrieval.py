"""Retrieval metric: bits of images after retrieved documents, after random ones, and after none."""

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from eval.context import EvalContext
from eval.metrics.perplexity import picturebits_of
from eval.report import MetricResult, mean
from eval.retrieved import fitting
from eval.stats import kind_of
from retrieval.memory import Memory
from tokenizer.errors import UserError


def retrieval(context: EvalContext) -> MetricResult:
    """Compute bits of images after retrieved documents, after random ones, and after none.

    Documents are retrieved for the image's caption; the random documents are as many, of the same
    kind, from the memory. Raises UserError if there is no memory.
    """
    count, memory = context.asked.retrieve, context.memory
    if not count or memory is None:
        raise UserError("there is no memory to retrieve from; name one with --memory")
    fronts = context.fronts(context.items, count)
    by_lot = lots(memory)
    others = [
        fitting(
            context.leon.codec,
            item.caption,
            [
                memory.document(name)
                for name in draw(
                    by_lot.get(kind_of(item.metadata), []), item.metadata["id"], len(front)
                )
            ],
        )
        for item, front in zip(context.items, fronts, strict=True)
    ]
    bits = {
        f"{count} retrieved": picturebits_of(context, fronts),
        f"{count} random": picturebits_of(context, others),
        "none": picturebits_of(context, [[] for _ in context.items]),
    }
    codes = [float(context.leon.codec.picture_codes)] * len(context.items)
    values = {f"bits an image token, {name}": mean(each, codes) for name, each in bits.items()}
    for one, other in combinations(bits, 2):
        less = [a - b for a, b in zip(bits[one], bits[other], strict=True)]
        values[f"{one} less {other}"] = mean(less, codes)
    short = sum(len(front) < count for front in fronts)
    return MetricResult(
        values=values, notes=[f"{short:,} prompts had fewer than {count} documents"]
    )


def lots(memory: Memory) -> dict[str, list[str]]:
    """Return the ids of a memory's documents by kind, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for place in memory.places():
        metadata, _ = memory.segments[place.segment].document(place.row)
        found[kind_of(metadata)].append(metadata["id"])
    return found


def draw(lot: Sequence[str], own: str, count: int) -> list[str]:
    """Sample `count` distinct ids, never `own`, which is the seed; all others if too few."""
    drawn = random.Random(own).sample(lot, min(len(lot), count + 1))
    return [one for one in drawn if one != own][:count]
