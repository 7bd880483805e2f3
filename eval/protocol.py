"""Sampling protocol of large evaluations: a source's captions, with several seeds each.

Data path: metadata of captioned images -> `samples.Wanted`; a memory -> the documents before each
prompt. `samples` generates the images; `best_of` then selects one for each caption.
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
    """Return the list of samples to generate: the first captions of some images, `each` times.

    They are at most `limit` images, evenly spaced. The seeds count up from `seed`. The n-th sample
    for an image has the id `PICTURE#n`. Raises UserError if the last seed is above `LAST_SEED`.
    """
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
    """Return the retrieval of up to `count` documents for each prompt.

    They are those that generation would retrieve, as many as fit, never the image that the prompt
    is the caption of.
    """

    def find(wanted: Sequence[Wanted]) -> list[list[tuple[str, Document]]]:
        prompts = [one.prompt for one in wanted]
        own = [one.id.rpartition("#")[0] for one in wanted]
        return retrieve_for_prompts(memory, embedder, codec, prompts, own, count)

    told = f"{embedder.id} {memory.contents!r}"
    return Retrieval(memory=hashlib.sha256(told.encode()).hexdigest()[:12], count=count, find=find)


def best_of(
    folder: Path, captions: Mapping[str, str], leon: CM3Leon, embedder: Embedder
) -> list[tuple[int, ...]]:
    """Return the codes of the sample nearest to each caption (by its image's id), by the encoder.

    CM3Leon keeps the best of 8 by a CLIP (section 3.1). Raises UserError for samples of another
    model or of other captions, and as `read`.
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
