"""What documents in front of a prompt are worth: the bits of a picture with them and without.

token shards -> a picture's first caption -> documents found by these words alone, as generation
finds them -> codec -> `cm3leon.likelihood`. As many documents drawn by lot tell how much of a gain
comes from what was found, and how much from any pictures in front.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cm3leon import likelihood, prompts
from cm3leon.model import Decoder
from eval.bits import written_picture
from eval.figures import Figure, by_kind, kind_of, ratio
from eval.sets import captioned
from retrieval.embed import Embedder, document_vectors
from retrieval.memory import Memory
from retrieval.retrieve import Candidate, Rules, select
from tokenizer.codec import Codec
from tokenizer.document import Document
from tokenizer.shards import Shards

NONE = "none"


@dataclass(frozen=True)
class Condition:
    """What stands in front of a prompt: up to `count` documents, found or (`drawn`) by lot."""

    count: int
    drawn: bool = False

    @property
    def name(self) -> str:
        """`none`, `2 retrieved`, `2 random`."""
        return f"{self.count} {'random' if self.drawn else 'retrieved'}" if self.count else NONE


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A picture's bits given its first caption, and how many documents stood in front of it, by
    condition; the documents of the largest condition by id."""

    id: str
    kind: str
    caption: str
    bits: dict[str, float]
    documents: dict[str, int]
    retrieved: tuple[str, ...]
    random: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Bits per image token of one kind of picture; errors are over pictures."""

    bits: dict[str, Figure]
    """By condition."""
    differences: dict[str, Figure]
    """By pair of conditions, `2 retrieved - none`: means of what each picture gained or lost."""
    fewer: dict[str, int]
    """Pictures that had fewer documents than the condition says."""


def conditions(counts: Iterable[int]) -> list[Condition]:
    """Nothing in front, then each count both ways."""
    wanted = sorted({count for count in counts if count})
    return [Condition(0), *(Condition(count, drawn) for count in wanted for drawn in (False, True))]


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


def measure(
    model: Decoder,
    codec: Codec,
    shards: Shards,
    memory: Memory,
    embedder: Embedder,
    wanted: Sequence[Condition],
    *,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scored]:
    """Score the captioned pictures of token shards under all conditions, at most `limit` of each
    kind. By lot come as many documents as were found, of the picture's own kind.

    Raises UserError for a caption that does not fit even with nothing in front.
    """
    most, by_lot = max(one.count for one in wanted), lots(memory)
    scored: list[Scored] = []
    for group in captioned(shards, limit, progress):
        ids = [metadata["id"] for metadata, _ in group]
        kinds = [kind_of(metadata) for metadata, _ in group]
        captions = [metadata["captions"][0] for metadata, _ in group]
        looked_up = look_up(memory, embedder, captions, ids, most)
        found = [[one.id for one in row] for row in looked_up]
        drawn = [
            draw(by_lot.get(kind, []), own, len(row))
            for kind, own, row in zip(kinds, ids, found, strict=True)
        ]
        bits: list[dict[str, float]] = [{} for _ in ids]
        documents: list[dict[str, int]] = [{} for _ in ids]
        for one in wanted:
            rows = [names[: one.count] for names in (drawn if one.drawn else found)]
            front = [
                fitting(codec, caption, [memory.document(name) for name in names])
                for caption, names in zip(captions, rows, strict=True)
            ]
            written = [
                written_picture(codec, caption, picture, examples)
                for caption, (_, picture), examples in zip(captions, group, front, strict=True)
            ]
            for place, tokens_L in enumerate(likelihood.bits(model, written)):
                bits[place][one.name] = float(tokens_L.sum())
                documents[place][one.name] = len(front[place])
        scored += [
            Scored(
                id=ids[place],
                kind=kinds[place],
                caption=captions[place],
                bits=bits[place],
                documents=documents[place],
                retrieved=tuple(found[place]),
                random=tuple(drawn[place]),
            )
            for place in range(len(group))
        ]
    return scored


def figures(
    scored: Sequence[Scored], wanted: Sequence[Condition], picture_codes: int
) -> dict[str, Row]:
    """The figures by kind of picture; differences are of the same picture under two conditions."""
    pairs = _pairs(wanted)
    rows: dict[str, Row] = {}
    for kind, places in by_kind([one.kind for one in scored]).items():
        chosen = [scored[place] for place in places]
        each = {one.name: [row.bits[one.name] / picture_codes for row in chosen] for one in wanted}
        rows[kind] = Row(
            bits={name: ratio(values) for name, values in each.items()},
            differences={f"{a} - {b}": ratio(_minus(each, a, b)) for a, b in pairs},
            fewer={
                one.name: sum(row.documents[one.name] < one.count for row in chosen)
                for one in wanted
                if one.count
            },
        )
    return rows


def _pairs(wanted: Sequence[Condition]) -> list[tuple[str, str]]:
    """Which condition is held against which: found and drawn ones against none, then found ones
    against as many drawn."""
    counts = sorted({one.count for one in wanted if one.count})
    found: list[tuple[str, str]] = []
    for count in counts:
        retrieved, by_lot = Condition(count).name, Condition(count, True).name
        found += [(retrieved, NONE), (retrieved, by_lot), (by_lot, NONE)]
    return found


def _minus(each: Mapping[str, Sequence[float]], one: str, other: str) -> list[float]:
    return [a - b for a, b in zip(each[one], each[other], strict=True)]
