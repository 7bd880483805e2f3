"""What documents in front of a prompt are worth: the bits of a picture with them and without.

token shards -> a picture's first caption -> documents found by these words alone, as generation
finds them -> codec -> `cm3leon.likelihood`. As many documents drawn by lot tell how much of a gain
comes from what was found, and how much from any pictures in front.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

from cm3leon import prompts
from eval.stats import kind_of
from retrieval.embed import Embedder, document_vectors
from retrieval.memory import Memory
from retrieval.rules import Candidate, Rules, select
from tokenizer.codec import Codec
from tokenizer.document import Document


def look_up(
    memory: Memory, embedder: Embedder, captions: Sequence[str], ids: Sequence[str], count: int
) -> list[list[Candidate]]:
    """For each caption the documents that generation would put in front of it, never the one in
    `ids` whose caption it is."""
    rules = Rules(count=count, near=memory.contents.near, least=memory.contents.least)
    queries_QE = document_vectors(embedder, captions, [None] * len(captions))
    found = memory.search(queries_QE, rules.pool)
    return [select(candidates, rules, {own}) for candidates, own in zip(found, ids, strict=True)]


def lots(memory: Memory) -> dict[str, list[str]]:
    """The ids of a memory's documents by kind, in their order."""
    found: dict[str, list[str]] = defaultdict(list)
    for place in memory.places():
        metadata, _ = memory.segments[place.segment].document(place.row)
        found[kind_of(metadata)].append(metadata["id"])
    return found


def draw(lot: Sequence[str], own: str, count: int) -> list[str]:
    """`count` different ids of a lot, never `own`, which is the seed; all others if too few."""
    drawn = random.Random(own).sample(lot, min(len(lot), count + 1))
    return [one for one in drawn if one != own][:count]


def fitting(codec: Codec, caption: str, documents: Sequence[Document]) -> list[Document]:
    """The first documents for which the prompt and its picture have room; generation would refuse
    the others, an evaluation goes on without them."""
    endless = Codec(codec.vocabulary, codec.text, codec.picture_codes)
    prompt, _ = prompts.paint(caption)
    kept = list(documents)
    while kept and codec.context is not None:
        if len(endless.open(prompt, kept)) + codec.picture_codes <= codec.context:
            break
        kept.pop()
    return kept
