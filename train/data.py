"""Which rows stand in which step: documents drawn from token shards, encoded and masked.

After the shards, before the objective's loss. Every draw is a function of (seed, place): the row's
number decides its form, the place within the form decides the document, and both together seed
the choice of caption and masks. No reader has a state, so a run resumed anywhere goes on exactly.
"""

# Shapes: B = rows, L = ids of the longest row

import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cm3leon import prompts
from tokenizer.codec import Codec, Encoded
from tokenizer.document import Document, Picture
from tokenizer.shards import TASKS, Shards
from tokenizer.vocabulary import PAD
from train.config import RowsConfig
from train.forms import FORMS
from train.objective import Ids, MaskConfig, Span, mask_row
from train.source import DECK, Deck, Source, grouped

TONE = re.compile("-1F3F[B-F]")  # a skin tone in a code point


# The forms of a picture under one of its captions
CAPTIONED = {"pair": prompts.pair, "described": prompts.described}


class Rows:
    """Training rows by number: form, document, caption, retrieved documents, masks.

    neighbours_PN: for each picture of the shards the numbers of those that may be retrieved for it
    (`retrieval/neighbours.py`); None retrieves nothing. views_VPN: their codes seen anew (`views`).
    Raises UserError where the shards lack what `config` asks for.
    """

    def __init__(
        self,
        shards: Shards,
        codec: Codec,
        config: RowsConfig,
        mask: MaskConfig,
        seed: int,
        neighbours_PN: NDArray[np.int32] | None = None,
        views_VPN: NDArray[np.uint16] | None = None,
    ) -> None:
        assert codec.context is not None
        self.shards, self.config, self.mask, self.seed = shards, config, mask, seed
        self.neighbours_PN, self.views_VPN = neighbours_PN, views_VPN
        # without a context: what is too long is cut here, where others refuse it
        self.codec = Codec(codec.vocabulary, codec.text, codec.picture_codes)
        self.room = codec.context + 1  # one more: the last id is only predicted
        self.pictures = list(shards.every_picture())
        self.number = {p["id"]: number for number, p in enumerate(self.pictures)}
        self.kinds: dict[str, list[int]] = defaultdict(list)
        for number, p in enumerate(self.pictures):
            self.kinds[p.get("kind", "picture")].append(number)
        self.deck = Deck(config.forms, (seed, 2))
        self.loose = Deck({k: v for k, v in config.forms.items() if k != "packed"}, (seed, 3))
        wanted = {name for name, share in config.forms.items() if share > 0}
        self.sources: dict[str, Source] = {}
        if wanted & CAPTIONED.keys():
            pairs = grouped(
                (p.get("kind", "picture"), unit_of(p), number)
                for number, p in enumerate(self.pictures)
                if p.get("captions")
            )
            for offset, form in enumerate(CAPTIONED):
                if form in wanted:
                    self.sources[form] = Source(form, pairs, config.kinds, (seed, 5 + offset))
        documents = list(shards.every_document())
        typed = {"edit": config.edits, "question": config.questions}
        for offset, form in enumerate(FORMS):
            if form in wanted:
                found = grouped(
                    (d.get("type", form), number, d)
                    for number, d in enumerate(documents)
                    if d["task"] == form
                )
                self.sources[form] = Source(form, found, typed.get(form, {}), (seed, 7 + offset))

    def picture(self, number: int, view: int | None = None) -> Picture:
        codes_PN = self.shards.codes_PN
        if view is not None:
            assert self.views_VPN is not None
            codes_PN = self.views_VPN[view]
        return Picture(tuple(codes_PN[number].tolist()))

    def encoded(self, form: str, place: int | None, rng: np.random.Generator) -> Encoded:
        """The document of a form at its place, behind those retrieved for it; `rng` chooses among
        captions, wordings, neighbours and views."""
        item = self.sources[form].at(place, rng)
        if form in FORMS:
            own = [self.number[item[key]] for key in TASKS[form][0]]
            shown = [self.picture(number) for number in own]
            document = FORMS[form](item, shown, lambda count: int(rng.integers(count)))
            return self.codec.encode(document, self.retrieved(own, rng)[0])
        captions: Sequence[str] = self.pictures[item]["captions"]
        first = rng.random() < self.config.first_caption
        caption = captions[0 if first else int(rng.integers(len(captions)))]
        documents, view = self.retrieved((item,), rng, seen_anew=True)
        return self.codec.encode(CAPTIONED[form](caption, self.picture(item, view)), documents)

    def retrieved(
        self, own: Sequence[int], rng: np.random.Generator, *, seen_anew: bool = False
    ) -> tuple[list[Document], int | None]:
        """K neighbours of the first of a document's own pictures, K drawn evenly from 0 to
        `config.retrieved` (RA-CM3; CM3Leon's K in training is not told but for its 3 of long rows).

        They are worded as a memory words them: the first caption, then the picture. With
        `seen_anew`, and the number of that view, in a share `config.seen_anew` of the times that
        there are any; the document itself must then be seen through it too.
        """
        if self.neighbours_PN is None:
            return [], None
        count = int(rng.integers(self.config.retrieved + 1))
        known = self.neighbours_PN[own[0]].tolist() if count else []
        others = rng.permutation([one for one in known if one >= 0 and one not in own])[:count]
        if len(others) and self.config.unrelated:
            lot = self.kinds[self.pictures[own[0]].get("kind", "picture")]
            drawn = np.array(lot)[rng.integers(len(lot), size=len(others))]
            swapped = (rng.random(len(others)) < self.config.unrelated) & ~np.isin(drawn, own)
            others = rng.permutation(np.unique(np.where(swapped, drawn, others)))
        view: int | None = None
        views = 0 if self.views_VPN is None or not seen_anew else len(self.views_VPN)
        if views and len(others) and rng.random() < self.config.seen_anew:
            view = int(rng.integers(views))
        documents: list[Document] = [
            prompts.pair(self.pictures[one]["captions"][0], self.picture(one, view))
            if self.pictures[one].get("captions")
            else (self.picture(one, view),)
            for one in others.astype(int).tolist()
        ]
        return documents, view

    def packed(self, rng: np.random.Generator) -> Encoded:
        """Documents one after another, as many as the room wants; the last is too long for it."""
        ids: list[int] = []
        fields: list[Span] = []
        while len(ids) < self.room:
            form, _ = self.loose.at(int(rng.integers(DECK)))
            found = self.encoded(form, None, rng)
            fields += [(len(ids) + a, len(ids) + b) for a, b in found.fields]
            ids += found.ids
        return Encoded(tuple(ids), tuple(fields))

    def at(self, row: int) -> Ids:
        """Row number `row` of the run, masked: at most context + 1 ids."""
        rng = np.random.default_rng((self.seed, 4, row))
        form, place = self.deck.at(row)
        if form == "packed":
            encoded, room = self.packed(rng), None
        else:
            encoded, room = self.encoded(form, place, rng), self.room
        return mask_row(
            encoded.ids[: self.room],
            [field for field in encoded.fields if field[1] <= self.room],
            self.codec.vocabulary,
            self.mask,
            rng,
            room=room,
            grid=self.shards.grid,
        )


class Steps(Dataset[list[Ids]]):
    """The rows of a step by its number."""

    def __init__(self, rows: Rows, batch: int) -> None:
        self.rows, self.batch = rows, batch

    def __getitem__(self, step: int) -> list[Ids]:
        return [self.rows.at(step * self.batch + place) for place in range(self.batch)]


def rows_of_steps(rows: Rows, batch: int, steps: range, workers: int) -> Iterator[list[Ids]]:
    """The rows of each step, in order; `workers` processes make the same ones ahead of time.

    A GPU reads as many rows a second as several CPU cores make: with no process beside the loop it
    would wait. Processes, not threads: a thread would take the interpreter from the loop.
    """
    table = Steps(rows, batch)
    if not workers:
        return map(table.__getitem__, steps)
    loader = DataLoader(
        table,
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context="fork",  # they share what `rows` holds
    )
    return iter(loader)


def unit_of(picture: Mapping[str, Any]) -> Hashable:
    """Pictures that are one unit to draw: an emoji's skin tones in one style; else only itself."""
    if "codepoint" in picture and "style" in picture:
        return picture["style"], TONE.sub("", picture["codepoint"])
    return picture["id"]


def micro_batches(rows: Sequence[Ids], tokens: int) -> Iterator[Ids]:
    """Rows of like length together, right-padded: ids_BL of at most `tokens` ids, or one row.

    Every row stands in one of them. It may be a quarter longer than the shortest beside it, so
    little is spent on padding.
    """
    order = sorted(rows, key=len)
    start = 0
    while start < len(order):
        end = start + 1
        most = len(order[start]) * 5 // 4
        while (
            end < len(order)
            and len(order[end]) <= most
            and (end + 1 - start) * len(order[end]) <= tokens
        ):
            end += 1
        ids_BL = np.full((end - start, len(order[end - 1])), PAD, dtype=np.int64)
        for number, row in enumerate(order[start:end]):
            ids_BL[number, : len(row)] = row
        yield ids_BL
        start = end
