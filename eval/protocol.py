"""What the big protocols ask of a model: a source's captions, several seeds of each.

the metadata of captioned pictures -> `samples.Wanted`; a memory -> the documents in
front of each. Before `samples`; after it `best_of` picks one of each caption's pictures.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cm3leon.pipeline import CM3Leon
from cm3leon.rerank import best
from eval.retrieved import retrieve_for_prompts
from eval.samples import Record, Retrieval, Wanted, read, read_settings
from eval.stats import evenly
from retrieval.embed import Embedder, closeness
from retrieval.memory import Memory
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError

LAST_SEED = 2**32 - 1


def wanted_of(
    pictures: Sequence[Mapping[str, Any]], limit: int | None, each: int, seed: int
) -> list[Wanted]:
    """Ask for the first caption of at most `limit` pictures, evenly spaced, `each` times; the seeds
    count on from `seed`. The n-th sample for a picture has the id `PICTURE#n`."""
    chosen = [pictures[place] for place in evenly(range(len(pictures)), limit)]
    last = seed + len(chosen) * each - 1
    if last > LAST_SEED:
        raise UserError(
            f"seed is {seed}, so that the last of {len(chosen) * each:,} pictures would have "
            f"{last}, above {LAST_SEED}; begin lower"
        )
    return [
        Wanted(id=f"{one['id']}#{n}", prompt=one["captions"][0], seed=seed + place * each + n)
        for place, one in enumerate(chosen)
        for n in range(each)
    ]


def retrieval_of(memory: Memory, embedder: Embedder, codec: Codec, count: int) -> Retrieval:
    """Up to `count` documents for each prompt: those that generation would find, as many as have
    room, never the picture itself whose caption it is."""

    def find(wanted: Sequence[Wanted]) -> list[list[tuple[str, Document]]]:
        prompts = [one.prompt for one in wanted]
        own = [one.id.rpartition("#")[0] for one in wanted]
        return retrieve_for_prompts(memory, embedder, codec, prompts, own, count)

    told = f"{embedder.id} {memory.contents!r}"
    return Retrieval(memory=hashlib.sha256(told.encode()).hexdigest()[:12], count=count, find=find)


def best_of(
    folder: Path, captions: Mapping[str, str], leon: CM3Leon, embedder: Embedder
) -> list[tuple[int, ...]]:
    """Of the pictures that were painted of each caption (by its picture's id) the codes of the one
    that the encoder finds nearest to it: CM3Leon keeps the best of 8 by a CLIP (section 3.1).

    Raises UserError for samples of another model or of other captions, and as `read`.
    """
    model = read_settings(folder)["model"]
    if model != leon.hash:
        raise UserError(
            f"{folder} was painted by model {model}, this is {leon.hash}; name that one"
        )
    records = read(folder)
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.id.rpartition("#")[0], []).append(record)
    strange = [
        name
        for name, caption in captions.items()
        if not groups.get(name) or groups[name][0].prompt != caption
    ]
    if strange:
        raise UserError(
            f"{folder} has no picture of the captions of {len(strange)} pictures, {strange[0]!r} "
            "for one; measure on what 'eval samples' was asked for"
        )
    chosen: list[tuple[int, ...]] = []
    for name, caption in captions.items():
        codes = [record.codes for record in groups[name]]
        scores = [0.0]
        if len(codes) > 1:
            images = [leon.to_image(Picture(one)) for one in codes]
            scores = closeness(embedder, caption, images)
        chosen.append(codes[best(scores)])
    return chosen
