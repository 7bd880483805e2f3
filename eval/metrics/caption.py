"""Captioning metric: generated captions against people's, and against the image's label and style.

Data path: evaluation context -> `prompts.describe` -> greedy captions, many in one batch -> COCO's
scores, and the shares that name label and style. The held-out pairs of the corpus have `THING,
STYLE` as first caption.
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
from eval.context import EvalContext
from eval.metrics.coco_caption import caption_scores, caption_values, check_scorers
from eval.report import SHOWN, MetricResult, Value, mean
from eval.stats import evenly
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError
from tokenizer.pixels import sheet

GROUP = 32  # images captioned together
GREEDY = Sampling(temperature=0.0)

# Hyphens and apostrophes inside a word are part of it: "medium-light" does not name "light".
_WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*")


@dataclass(frozen=True, kw_only=True)
class CaptionPair:
    """Image's label, its first caption, and the generated caption."""

    id: str
    label: str
    wanted: str
    caption: str

    @property
    def names_label(self) -> bool:
        """True if every word of the label occurs in the caption."""
        named = words(self.label)
        return bool(named) and named <= words(self.caption)

    @property
    def names_style(self) -> bool:
        """True if the caption's text after its last comma equals that of the first caption."""
        return _style(self.caption) == _style(self.wanted)

    @property
    def exact(self) -> bool:
        """True if the caption equals the first caption."""
        return self.caption == self.wanted


def caption(context: EvalContext) -> MetricResult:
    """Score greedy captions against the items' own.

    Returns COCO's scores, if they can be computed, and the shares of captions that name label and
    style.
    """
    said: list[str] = []
    steps = context.steps("captions")
    for start in range(0, len(context.items), GROUP):
        group = context.items[start : start + GROUP]
        fronts = context.fronts_by_picture(group, context.asked.retrieve)
        pictures = [item.picture for item in group]
        said += describe(context.leon.model, context.leon.codec, pictures, fronts)
        if steps is not None:
            steps(len(said), len(context.items))
    rows = [
        CaptionPair(
            id=item.metadata["id"],
            label=str(item.metadata.get("label", "")),
            wanted=item.caption,
            caption=text,
        )
        for item, text in zip(context.items, said, strict=True)
    ]
    values: dict[str, Value] = {}
    if any(one.label for one in rows):
        values = {
            "label named": mean([float(one.names_label) for one in rows]),
            "style named": mean([float(one.names_style) for one in rows]),
            "any word of the label named": mean(
                [float(bool(words(one.label) & words(one.caption))) for one in rows]
            ),
        }
    labels = [f"{one.caption} | {one.wanted}" for one in rows]
    chosen = evenly(range(len(rows)), SHOWN)
    images = [context.items[place].image for place in chosen]
    shown = sheet(images, 6, [labels[place] for place in chosen])
    further, notes = _scores(context, said)
    results = [{"image_id": plain_id(one.id), "caption": one.caption} for one in rows]
    return MetricResult(
        values=values | further,
        notes=notes,
        pictures={"said-and-wanted": shown},
        results=results,
    )


def _scores(context: EvalContext, said: Sequence[str]) -> tuple[dict[str, Value], Sequence[str]]:
    """Return COCO's scores against all captions of each image, or the reason for having none."""
    try:
        check_scorers()
        found = caption_scores(
            {item.metadata["id"]: item.metadata["captions"] for item in context.items},
            {item.metadata["id"]: text for item, text in zip(context.items, said, strict=True)},
        )
    except UserError as error:
        return {}, [f"no scores of the field: {error}"]
    return caption_values(found), found.notes


def describe(
    model: Decoder,
    codec: Codec,
    pictures: Sequence[Picture],
    fronts: Sequence[Sequence[Document]] | None = None,
) -> list[str]:
    """Return greedy captions of images after their documents, in one batch.

    They are those of `CM3Leon.caption` at temperature 0.
    """
    requests: list[Request] = []
    for picture, front in zip(pictures, fronts or [()] * len(pictures), strict=True):
        ids = codec.infill(prompts.describe(picture), front)
        limit = min(TEXT_LIMIT, model.config.context - len(ids))
        rule = grammar.text(codec.vocabulary, limit)
        requests.append(Request(streams=Streams((ids,)), grammar=rule, seeds=(0,), sampling=GREEDY))
    rows = generate_batch(model, requests)
    return [codec.decode_text(row).strip() for (row,) in rows]


def words(text: str) -> set[str]:
    """Return the distinct words of a text, in lower case."""
    return set(_WORD.findall(text.casefold()))


def _style(caption: str) -> str:
    return caption.casefold().rpartition(",")[2].strip()


def plain_id(name: str) -> str | int:
    """Return an id in its publisher's type: COCO's are numbers, which its own scorers require."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name
