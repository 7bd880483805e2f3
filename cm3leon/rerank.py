"""Reranking: several candidates for every image, of which the best is kept.

Data path: pipeline -> `samplings` (of each candidate) -> generate -> `pick`. CM3Leon keeps the best
of 8 samples by a CLIP model, and its Figure 4 (right) continues to improve where half are drawn by
top-p and half by CD-K. The scoring model is unknown here: the caller passes a score function.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from cm3leon.sampling import Sampling
from tokenizer.errors import UserError

Score = Callable[[str, Sequence[Image.Image]], Sequence[float]]
"""Function that scores how well each image matches a text; higher is better."""

SHARE = 0.9  # top-p of a mix whose task has none, which would leave no top-p half


def check(sampling: Sampling, candidates: int, mix: bool) -> None:
    """Raise UserError for candidates that cannot be drawn, or would all be the same image."""
    if candidates < 1:
        raise UserError(f"candidates is {candidates}; ask for at least 1")
    if mix and (candidates < 2 or candidates % 2):
        raise UserError(
            f"a mix is half top-p and half CD-K, but there are {candidates} candidates; ask for an "
            "even number"
        )
    if candidates > 1 and sampling.temperature == 0:
        raise UserError(
            "at temperature 0 every candidate is the same image; give a temperature above 0"
        )
    if mix and sampling.contrastive:
        raise UserError("a mix draws half of its candidates by CD-K; leave 'contrastive' off")


def samplings(sampling: Sampling, candidates: int, mix: bool) -> list[Sampling]:
    """Return the sampling parameters of each candidate of an image.

    All are the task's, or half are drawn by top-p and guidance, then half by CD-K, whose set of
    plausible ids replaces top-p.
    """
    check(sampling, candidates, mix)
    if not mix:
        return [sampling] * candidates
    by_share = replace(sampling, top_p=sampling.top_p or SHARE)
    by_contrast = replace(sampling, top_p=None, contrastive=True)
    return [by_share] * (candidates // 2) + [by_contrast] * (candidates // 2)


def best(scores: Sequence[float]) -> int:
    """Return the index of the highest score, the first of equals. Raises UserError for NaN."""
    if any(score != score for score in scores):
        raise UserError("a score is not a number; the encoder's weights are bad")
    return max(range(len(scores)), key=scores.__getitem__)


def pick(
    prompt: str, painted: Sequence[Image.Image], candidates: int, score: Score | None
) -> list[Image.Image]:
    """Return the best of every `candidates` images.

    Raises UserError if there are several candidates and no score function.
    """
    if candidates == 1:
        return list(painted)
    if score is None:
        raise UserError("candidates need someone to choose between them; give a score function")
    groups = [painted[at : at + candidates] for at in range(0, len(painted), candidates)]
    return [group[best(score(prompt, group))] for group in groups]
