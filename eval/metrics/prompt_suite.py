"""Prompt suite: generated images for prompts in people's own words, scored by accepted families.

`docs/sheets/people.json` has 150 prompts for development (`open`) and 75 that are scored once
(`sealed`), each with the families that it accepts. Data path: such a file -> one half -> images ->
the classifier of `concept`, and a sheet for people who have not seen the prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from eval.context import EvalContext
from eval.metrics.concept import judge_of
from eval.report import MetricResult, mean
from tokenizer import config as settings
from tokenizer.document import Document, Picture
from tokenizer.pixels import fit, sheet

Half = Literal["open", "sealed"]
CELL = 128  # side of an image on a sheet, in pixels
COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Prompt as a user may type it, and the families that it may mean."""

    topic: str
    prompt: str
    families: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompt suite of two halves."""

    open: tuple[Prompt, ...]
    sealed: tuple[Prompt, ...]

    @classmethod
    def read(cls, path: Path) -> "Prompts":
        """Read a file. Raises UserError for another format."""
        return settings.load(cls, path)

    def half(self, name: Half) -> tuple[Prompt, ...]:
        return self.open if name == "open" else self.sealed


def people(context: EvalContext, prompts: Sequence[Prompt]) -> MetricResult:
    """Generate one image per prompt and return the share that shows an accepted family.

    The seeds are the numbers of the prompts, counted from the run's seed.
    """
    net, _, _ = judge_of(context)
    words, count = [one.prompt for one in prompts], context.asked.retrieve
    fronts: list[list[Document]] = [[] for _ in words]
    if count and context.memory is not None:
        found = context.found(words, [""] * len(words), count)
        fronts = [[document for _, document in row] for row in found]
    painted = context.paint_words(words, fronts, context.leon.sampling.text_to_image)
    images = [context.leon.to_image(Picture(codes)) for codes in painted]
    seen = [families for families, _ in net.look(images)]
    right = [best[0] in one.families for best, one in zip(seen, prompts, strict=True)]
    five = [bool({*best} & {*one.families}) for best, one in zip(seen, prompts, strict=True)]
    results: list[dict[str, Any]] = [
        {"number": number, "prompt": one.prompt, "seen": best, "right": hit}
        for number, (one, best, hit) in enumerate(zip(prompts, seen, right, strict=True))
    ]
    return MetricResult(
        values={
            "an accepted family": mean([float(one) for one in right]),
            "an accepted family among five": mean([float(one) for one in five]),
        },
        pictures=_sheets(images, prompts),
        results=results,
    )


def _sheets(images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> dict[str, Image.Image]:
    """Return two sheets of the images: with numbers only, and with the prompts too.

    The first is for people who have not seen the prompts.
    """
    cells = [fit(image, CELL) for image in images]
    numbers = [str(number) for number in range(len(cells))]
    told = [f"{number} {one.prompt}" for number, one in zip(numbers, prompts, strict=True)]
    return {"sheet": sheet(cells, COLUMNS, numbers), "sheet-told": sheet(cells, COLUMNS, told)}
