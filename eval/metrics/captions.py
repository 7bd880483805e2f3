"""Does the model say what a picture shows: its captions against the picture's label and style.

token shards -> `prompts.describe` -> greedy captions, many in one batch -> which words are named.
Made for the held-out pairs of the corpus, whose first caption is `THING, STYLE`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cm3leon import grammar, prompts
from cm3leon.engine.request import Request, Streams
from cm3leon.generate import generate_batch
from cm3leon.model import Decoder
from cm3leon.pipeline import TEXT_LIMIT
from cm3leon.sampling import Sampling
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture

GREEDY = Sampling(temperature=0.0)

# Hyphens and apostrophes inside belong to a word: "medium-light" does not name "light".
_WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*")


@dataclass(frozen=True, kw_only=True)
class Said:
    """A picture's label, its first caption, and what the model said."""

    id: str
    label: str
    wanted: str
    caption: str

    @property
    def names_label(self) -> bool:
        """Every word of the label stands somewhere in the caption."""
        named = words(self.label)
        return bool(named) and named <= words(self.caption)

    @property
    def names_style(self) -> bool:
        """After its last comma the caption says what the first caption says there."""
        return _style(self.caption) == _style(self.wanted)

    @property
    def exact(self) -> bool:
        """The caption is the first caption."""
        return self.caption == self.wanted


def describe(
    model: Decoder,
    codec: Codec,
    pictures: Sequence[Picture],
    fronts: Sequence[Sequence[Document]] | None = None,
) -> list[str]:
    """What `CM3Leon.caption` would say at temperature 0 of each picture behind its documents, in
    one batch."""
    requests: list[Request] = []
    for picture, front in zip(pictures, fronts or [()] * len(pictures), strict=True):
        ids = codec.infill(prompts.describe(picture), front)
        limit = min(TEXT_LIMIT, model.config.context - len(ids))
        rule = grammar.text(codec.vocabulary, limit)
        requests.append(Request(streams=Streams((ids,)), grammar=rule, seeds=(0,), sampling=GREEDY))
    rows = generate_batch(model, requests)
    return [codec.decode_text(row).strip() for (row,) in rows]


def words(text: str) -> set[str]:
    """The different words of a text, in small letters."""
    return set(_WORD.findall(text.casefold()))


def _style(caption: str) -> str:
    return caption.casefold().rpartition(",")[2].strip()
