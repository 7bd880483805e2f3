"""Training rows by step: documents sampled from token shards, encoded and masked.

Reads token shards; its micro-batches go to the model and the loss. Every draw is a function of
(seed, place): the row number decides the form, the place within the form decides the document, and
both together seed the choice of caption and masks. There is no reader state, so a run resumed at
any step continues with exactly the same rows.
"""

# Shapes: B = rows, L = ids of the longest row, P = images, N = codes per image, V = views

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from cm3leon import prompts
from tokenizer.codec import Codec, Encoded
from tokenizer.data.columns import Columns
from tokenizer.data.shards import Shards
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError
from train.config import RowsConfig
from train.data.paraphrase import reword
from train.data.sampler import DECK, Deck, Source
from train.data.templates import FORMS
from train.objective import Ids, MaskConfig, Span, mask_row

PACKED = "packed"
WINDOW = 8  # consecutive packed blocks that are cut from one sequence of documents

Swap = NDArray[np.int64]  # a permutation of the codes: code -> its replacement

# Forms of an image with one of its captions
CAPTIONED = {"pair": prompts.pair, "described": prompts.described}


class Rows:
    """Training rows by number: form, document, caption, retrieved documents, masks.

    neighbours_PN: for each image of the shards, the numbers of the images that may be retrieved for
    it (`retrieval/neighbours.py`); None disables retrieval. views_VPN: the images' codes in
    augmented views (`train/data/views.py`). Raises UserError if the shards lack what `config` asks
    for.
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
        self.codes_PN = shards.codes_PN
        # no context limit in the codec, which would refuse long documents: they are truncated here
        self.codec = Codec(codec.vocabulary, codec.text, codec.picture_codes)
        self.room = codec.context + 1  # one more: the last id is only a target
        as_found = {task: float(n) for task, n in shards.counts.items() if task != "pictures"}
        forms = config.forms or as_found
        whole = sum(forms.values())
        if not whole:
            raise UserError(f"{shards.folder} holds no documents, only images")
        shares = {k: v / whole * (1 - config.packed) for k, v in forms.items()}
        self.deck = Deck({**shares, PACKED: config.packed}, (seed, 2))
        self.stream = Deck(forms, (seed, 3))
        self.window = lru_cache(1)(self._window)
        self.columns = Columns.open(shards)
        wanted = {name for name, share in forms.items() if share > 0}
        self.sources: dict[str, Source] = {}
        pairs = self.columns.captioned() if wanted & CAPTIONED.keys() else {}
        for offset, form in enumerate(CAPTIONED):
            if form in wanted:
                self.sources[form] = Source(form, pairs, config.kinds, (seed, 5 + offset))
        typed = {"edit": config.edits, "question": config.questions}
        for offset, form in enumerate(FORMS):
            if form in wanted:
                found = self.columns.documents(form)
                self.sources[form] = Source(form, found, typed.get(form, {}), (seed, 7 + offset))

    @property
    def documents(self) -> int:
        """Number of documents that the forms draw from; an image with captions counts as one."""
        counts = {
            "captioned" if form in CAPTIONED else form: source.count
            for form, source in self.sources.items()
        }
        return sum(counts.values())

    def picture(self, number: int, view: int | None = None, swap: Swap | None = None) -> Picture:
        codes_PN = self.shards.codes_PN
        if view is not None:
            assert self.views_VPN is not None
            codes_PN = self.views_VPN[view]
        codes_N = codes_PN[number]
        return Picture(tuple((codes_N if swap is None else swap[codes_N]).tolist()))

    def swap(self, rng: np.random.Generator) -> Swap | None:
        """Return a random permutation of the codes, with probability `config.swapped`, else None.

        It is applied to all images of a row with several. Memorised images do not teach the model
        to attend to the preceding image; permuted codes cannot be memorised, so only what the
        images have in common can be predicted. Ours.
        """
        if not self.config.swapped or rng.random() >= self.config.swapped:
            return None
        return rng.permutation(self.shards.codes)

    def encoded(self, form: str, place: int | None, rng: np.random.Generator) -> Encoded:
        """Return the encoded document at a place of a form, after the documents retrieved for it.

        `rng` chooses captions, wordings, neighbours and views; without a place, the document too.
        Raises UserError for a damaged document.
        """
        item = self.sources[form].at(place, rng)
        if form in FORMS:
            own, table = self.columns.pictures(item), self.shards.document(item)
            view, swap = self.moved(rng), self.swap(rng) if len(own) > 1 else None
            shown = [self.picture(number, view, swap) for number in own]
            try:
                document = FORMS[form](table, shown, lambda count: int(rng.integers(count)))
                return self.codec.encode(document, self.retrieved(own, rng, swap)[0])
            except UserError:
                raise
            except Exception as error:  # the fields of a foreign JSON may have any type
                raise UserError(
                    f"{self.shards.folder}: a document of task '{form}' is damaged ({error!r})"
                ) from error
        caption, own_words = self.caption(item, rng)
        swap = self.swap(rng)
        documents, view = self.retrieved((item,), rng, swap, seen_anew=True)
        picture = self.picture(item, view, swap if documents else None)
        document = CAPTIONED[form](caption, picture)
        encoded = self.codec.encode(document, documents)
        return Encoded(encoded.ids, ()) if own_words else encoded

    def caption(self, item: int, rng: np.random.Generator) -> tuple[str, bool]:
        """Return a caption of an image, or a paraphrase (`reword`), and whether it is a paraphrase.

        Raises UserError for an image without captions.
        """
        metadata = self.shards.metadata(item)
        captions: Sequence[str] = metadata.get("captions", ())
        if not captions:
            raise UserError(f"{self.shards.folder} is damaged: image {item} lost its captions")
        first = rng.random() < self.config.first_caption
        caption = captions[0 if first else int(rng.integers(len(captions)))]
        if self.config.reworded and rng.random() < self.config.reworded:
            found = reword(metadata, rng)
            return found or caption, found is not None
        return caption, False

    def retrieved(
        self,
        own: Sequence[int],
        rng: np.random.Generator,
        swap: Swap | None = None,
        *,
        seen_anew: bool = False,
    ) -> tuple[list[Document], int | None]:
        """Return K neighbours of a document's first image as documents, and their view's number.

        K is drawn uniformly from 0 to `config.retrieved` (RA-CM3; CM3Leon does not state its K in
        training, except 3 for long rows). A neighbour has the form of a retrieved document: its
        first caption, then the image. With `seen_anew`, if there are neighbours, they are encoded
        in a random view with probability `config.seen_anew`; the document itself must then use the
        same view. The view is None if the codes are the original ones.
        """
        if self.neighbours_PN is None:
            return [], self.moved(rng) if seen_anew else None
        count = int(rng.integers(self.config.retrieved + 1))
        known = self.neighbours_PN[own[0]].tolist() if count else []
        others = rng.permutation([one for one in known if one >= 0 and one not in own])[:count]
        if len(others) and self.config.unrelated:
            lot = self.columns.like(own[0])
            drawn = lot[rng.integers(len(lot), size=len(others))]
            swapped = (rng.random(len(others)) < self.config.unrelated) & ~np.isin(drawn, own)
            others = rng.permutation(np.unique(np.where(swapped, drawn, others)))
        view: int | None = None
        views = 0 if self.views_VPN is None or not seen_anew else len(self.views_VPN)
        if views and len(others) and rng.random() < self.config.seen_anew:
            view = int(rng.integers(views))
        documents: list[Document] = [
            prompts.pair(captions[0], self.picture(one, view, swap))
            if (captions := self.shards.metadata(one).get("captions"))
            else (self.picture(one, view, swap),)
            for one in others.astype(int).tolist()
        ]
        return documents, view

    def moved(self, rng: np.random.Generator) -> int | None:
        """Return a random view with probability `config.moved`, else None.

        Only for sources with views and without a table of neighbours.
        """
        if self.views_VPN is None or self.neighbours_PN is not None or not self.config.moved:
            return None
        return int(rng.integers(len(self.views_VPN))) if rng.random() < self.config.moved else None

    @cached_property
    def window_places(self) -> int:
        """Estimated number of documents of the stream that fill a window."""
        tried = [len(self.streamed(place, 0, place).ids) for place in range(64)]
        return max(1, round(WINDOW * self.room * len(tried) / sum(tried)))

    def streamed(self, place: int | None, window: int, number: int) -> Encoded:
        """Return the document at a place of the stream, or a random one if `place` is None.

        `window` and `number` seed all random choices.
        """
        rng = np.random.default_rng((self.seed, 10, window, number))
        form, rank = self.stream.at(int(rng.integers(DECK)) if place is None else place)
        return self.encoded(form, None if place is None else rank, rng)

    def _window(self, number: int) -> Encoded:
        """Return the consecutive documents of WINDOW blocks.

        Each window has its own range of `window_places` places in the stream, so that a block does
        not depend on all blocks before it. The range is an estimate: the last few places may stay
        unused, or a few more documents are drawn at random.
        """
        ids: list[int] = []
        fields: list[Span] = []
        for step in count():
            if len(ids) >= WINDOW * self.room:
                return Encoded(tuple(ids), tuple(fields))
            own = step < self.window_places
            place = number * self.window_places + step if own else None
            found = self.streamed(place, number, step)
            fields += [(len(ids) + a, len(ids) + b) for a, b in found.fields]
            ids += found.ids
        raise AssertionError

    def packed(self, place: int) -> Encoded:
        """Return block number `place` of the stream, of context + 1 ids as in metaseq."""
        window = self.window(place // WINDOW)
        start = place % WINDOW * self.room
        end = start + self.room
        fields = [(a - start, b - start) for a, b in window.fields if start <= a and b <= end]
        return Encoded(window.ids[start:end], tuple(fields))

    def at(self, row: int) -> Ids:
        """Return row number `row` of the run, masked: at most context + 1 ids."""
        rng = np.random.default_rng((self.seed, 4, row))
        form, place = self.deck.at(row)
        if form == PACKED:
            encoded, room = self.packed(place), None
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


class Mixture:
    """Mixture of several sources, each with its share of the rows."""

    def __init__(self, sources: Mapping[str, Rows], shares: Mapping[str, float], seed: int) -> None:
        self.sources = sources
        self.deck = Deck(shares, (seed, 11))
        self.codes_PN = sources[max(shares, key=lambda name: shares[name])].codes_PN

    def at(self, row: int) -> Ids:
        name, rank = self.deck.at(row)
        return self.sources[name].at(rank)


def balanced(
    weights: Mapping[str, float], documents: Mapping[str, int], limits: tuple[float, float]
) -> dict[str, float]:
    """Return shares proportional to the weights, each clamped to its share of the documents times
    the two `limits`.

    Our reading of the paper's balancing of tasks (section 4.1: limits 0.3 and 3).
    """
    found = {name: count / sum(documents.values()) for name, count in documents.items()}
    least, most = limits

    def shares(factor: float) -> dict[str, float]:
        return {
            name: min(max(factor * weight, least * found[name]), most * found[name])
            for name, weight in weights.items()
        }

    low, high = 0.0, max(most * found[name] / weight for name, weight in weights.items())
    for _ in range(100):  # bisection: find the factor at which the clamped shares add up to 1
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle).values()) < 1 else (low, middle)
    return shares(high)
