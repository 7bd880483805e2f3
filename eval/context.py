"""Evaluation context: the model, the evaluation images, and the images generated for them.

All metrics of one run share it; everything is computed once, on first use. Data path: a source's
images -> items; its edits and questions; captions -> generated images -> `eval/metrics`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cm3leon.batch import Wish, paint_codes
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from eval.corpus import EDITS, Asking, Source, captioned, chosen
from eval.protocol import best_of
from eval.retrieved import retrieve_for_prompts
from eval.stats import evenly
from retrieval.embed import Embedder, closeness
from retrieval.memory import Memory
from retrieval.retrieve import Query, retrieve
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation run.

    At most `limit` of a source's captioned images are used, evenly spaced, or of those whose ids a
    file lists; the same holds for its edits and questions.
    """

    ids: Path | None = None
    limit: int | None = None
    seed: int = 0
    retrieve: int = 0
    """Number of documents before a prompt."""
    candidates: int = 1
    """Generated for each image; the nearest to the prompt by the retriever's encoder is kept."""
    samples: Path | None = None
    """Folder written by `eval samples`: images that are already generated."""
    weights: Path | None = None
    """Folder with weights of evaluation networks that are not shipped."""
    cache: Path = Path()
    """Folder for results that can be reused."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """Real image, `size` x `size`, and its codes."""

    metadata: Mapping[str, Any]
    image: Image.Image
    picture: Picture

    @property
    def caption(self) -> str:
        """First caption."""
        return self.metadata["captions"][0]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Edit of the corpus: the source image, the instruction, and the real edited image."""

    source: Item
    target: Item
    instruction: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """Question with its image."""

    item: Item
    asking: Asking


class EvalContext:
    """Evaluation context that loads, retrieves and generates only on first use."""

    def __init__(
        self,
        asked: EvalOptions,
        source: Source,
        leon: CM3Leon,
        embedder: Embedder,
        memory: Memory | None = None,
        progress: Callable[[str], Progress] | None = None,
    ) -> None:
        self.asked, self.source, self.leon = asked, source, leon
        self.embedder, self.memory = embedder, memory
        self.progress = progress

    def steps(self, what: str) -> Progress | None:
        """Return the progress callback of a stage, if any."""
        return None if self.progress is None else self.progress(what)

    @cached_property
    def listed(self) -> dict[str, dict[str, Any]]:
        """Metadata of all images to choose from, by id."""
        return chosen(self.source, self.asked.ids)

    @cached_property
    def items(self) -> list[Item]:
        """Captioned images to evaluate on. Raises UserError if there are none."""
        ids = [one["id"] for one in captioned(self.source, self.listed)]
        return self.find(evenly(range(len(ids)), self.asked.limit), ids)

    def find(self, places: Sequence[int], ids: Sequence[str]) -> list[Item]:
        """Return the images at these indices of `ids`, in that order.

        Damaged images of a corpus are left out.
        """
        order = [ids[place] for place in places]
        read = self.source.read(frozenset(order), self.leon.image_tokenizer.size)
        found = {
            metadata["id"]: Item(
                metadata=metadata, image=image, picture=self.leon.to_picture(image)
            )
            for metadata, image in read
        }
        return [found[name] for name in order if name in found]

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.leon.model.embed.weight.device

    @cached_property
    def painted_codes(self) -> list[tuple[int, ...]]:
        """Codes of an image generated from the first caption of every item, each with its own seed.

        If samples were generated before, they are the codes of the sample nearest to the caption.
        """
        if self.asked.samples is not None:
            captions = {item.metadata["id"]: item.caption for item in self.items}
            return best_of(self.asked.samples, captions, self.leon, self.embedder)
        return self.paint_codes(self.items, self.leon.sampling.text_to_image, self.asked.retrieve)

    @cached_property
    def painted(self) -> list[Image.Image]:
        """Images of `painted_codes`."""
        return [self.leon.to_image(Picture(codes)) for codes in self.painted_codes]

    @cached_property
    def rebuilt(self) -> list[Image.Image]:
        """Every item's image, reconstructed through the codebook."""
        return [self.leon.to_image(item.picture) for item in self.items]

    def paint(self, items: Sequence[Item], sampling: Sampling, retrieve: int) -> list[Image.Image]:
        """Generate images of the items' first captions: `paint_codes`, decoded."""
        painted = self.paint_codes(items, sampling, retrieve)
        return [self.leon.to_image(Picture(codes)) for codes in painted]

    def paint_codes(
        self, items: Sequence[Item], sampling: Sampling, retrieve: int
    ) -> list[tuple[int, ...]]:
        """Generate the codes of an image of each item's first caption.

        `retrieve` documents are placed before each prompt.
        """
        captions = [item.caption for item in items]
        return self.paint_words(captions, self.fronts(items, retrieve), sampling)

    def paint_words(
        self, prompts: Sequence[str], fronts: Sequence[Sequence[Document]], sampling: Sampling
    ) -> list[tuple[int, ...]]:
        """Generate the codes of an image of each prompt, after its documents.

        The best of the requested number of candidates is kept; seeds are consecutive.
        """
        count, steps = self.asked.candidates, self.steps("painting")
        wishes = [
            Wish(prompt=prompt, seed=self.asked.seed + place * count, retrieved=front)
            for place, (prompt, front) in enumerate(zip(prompts, fronts, strict=True))
        ]
        score = partial(closeness, self.embedder)
        painted = paint_codes(
            self.leon, wishes, sampling, progress=steps, candidates=count, score=score
        )
        done = dict(painted)
        return [done[place] for place in range(len(wishes))]

    def fronts(self, items: Sequence[Item], count: int) -> list[list[Document]]:
        """Return the documents before each item's prompt.

        They are those that generation would retrieve, without the item itself, as many as fit.
        """
        return [[document for _, document in row] for row in self.named_fronts(items, count)]

    def fronts_by_picture(self, items: Sequence[Item], count: int) -> list[list[Document]]:
        """Return the documents that captioning would retrieve for each image, never the item."""
        if not count or self.memory is None:
            return [[] for _ in items]
        queries = [Query(image=item.image, own=item.metadata["id"]) for item in items]
        found = retrieve(queries, self.memory, self.embedder, count)
        return [[self.memory.document(one.id) for one in row] for row in found]

    def named_fronts(self, items: Sequence[Item], count: int) -> list[list[tuple[str, Document]]]:
        """Return `fronts` with the documents' ids."""
        if not count or self.memory is None:
            return [[] for _ in items]
        captions = [item.caption for item in items]
        return self.found(captions, [item.metadata["id"] for item in items], count)

    def found(
        self, captions: Sequence[str], ids: Sequence[str], count: int
    ) -> list[list[tuple[str, Document]]]:
        """Return the documents that generation would retrieve for each caption.

        The document of the caption's own id is never among them.
        """
        assert self.memory is not None
        return retrieve_for_prompts(
            self.memory, self.embedder, self.leon.codec, captions, ids, count
        )

    def seed_of(self, place: int) -> int:
        """Return the seed of the item at an index: the run's seed plus the index."""
        return self.asked.seed + place

    @cached_property
    def changes(self) -> list[Change]:
        """Edits of which both images are listed. Raises UserError if there are none."""
        rows = [
            row
            for row in self.source.edits()
            if row["source"] in self.listed and row["target"] in self.listed
        ]
        rows = [rows[place] for place in evenly(range(len(rows)), self.asked.limit)]
        if not rows:
            raise UserError(f"{EDITS} has no edit within {self.source}; name another split")
        ids = list(dict.fromkeys(row[key] for row in rows for key in ("source", "target")))
        by_id = {one.metadata["id"]: one for one in self.find(range(len(ids)), ids)}
        return [
            Change(
                source=by_id[row["source"]],
                target=by_id[row["target"]],
                instruction=row["instructions"][0],
                kind=str(row.get("type", "edit")),
            )
            for row in rows
            if row["source"] in by_id and row["target"] in by_id
        ]

    @cached_property
    def questions(self) -> list[Question]:
        """Questions about listed images. Raises UserError if there are none."""
        rows = [one for one in self.source.questions() if one.picture in self.listed]
        rows = [rows[place] for place in evenly(range(len(rows)), self.asked.limit)]
        if not rows:
            raise UserError(f"no question is about a listed image of {self.source}; name others")
        ids = list(dict.fromkeys(one.picture for one in rows))
        by_id = {one.metadata["id"]: one for one in self.find(range(len(ids)), ids)}
        return [
            Question(item=by_id[one.picture], asking=one) for one in rows if one.picture in by_id
        ]
