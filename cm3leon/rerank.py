"""Several candidates for every picture, of which the best is kept: sample and rerank.

pipeline -> `samplings` (how each candidate is drawn) -> generate -> `pick`. CM3Leon keeps the best
of 8 samples by a CLIP model, and its Figure 4 (right) goes on improving where half are drawn by
top-p and half by CD-K. Who scores is not known here: the score function is handed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from cm3leon.sampling import Sampling
from tokenizer.errors import UserError

Score = Callable[[str, Sequence[Image.Image]], Sequence[float]]
"""How well each picture shows what the text says; more is better."""

SHARE = 0.9  # top-p of a mix whose task has none: without one there would be no top-p half


def check(sampling: Sampling, candidates: int, mix: bool) -> None:
    """Raise UserError for candidates that cannot be drawn, or would all be one picture."""
    if candidates < 1:
        raise UserError(f"candidates is {candidates}; ask for at least 1")
    if mix and (candidates < 2 or candidates % 2):
        raise UserError(
            f"a mix is half top-p and half CD-K, but there are {candidates} candidates; ask for an "
            "even number"
        )
    if candidates > 1 and sampling.temperature == 0:
        raise UserError(
            "at temperature 0 every candidate is the same picture; give a temperature above 0"
        )
    if mix and sampling.contrastive:
        raise UserError("a mix draws half of its candidates by CD-K; leave 'contrastive' off")


def samplings(sampling: Sampling, candidates: int, mix: bool) -> list[Sampling]:
    """How each candidate of one picture is drawn: all as the task says, or half of them by top-p
    and guidance, then half by CD-K, whose set of plausible ids stands in top-p's place."""
    check(sampling, candidates, mix)
    if not mix:
        return [sampling] * candidates
    by_share = replace(sampling, top_p=sampling.top_p or SHARE)
    by_contrast = replace(sampling, top_p=None, contrastive=True)
    return [by_share] * (candidates // 2) + [by_contrast] * (candidates // 2)


def best(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equals. Raises UserError for no numbers."""
    if any(score != score for score in scores):
        raise UserError("a score is not a number; the encoder's weights are bad")
    return max(range(len(scores)), key=scores.__getitem__)


def pick(
    prompt: str, painted: Sequence[Image.Image], candidates: int, score: Score | None
) -> list[Image.Image]:
    """The best of every `candidates` pictures. Raises UserError where nobody can say which."""
    if candidates == 1:
        return list(painted)
    if score is None:
        raise UserError("candidates need someone to choose between them; give a score function")
    groups = [painted[at : at + candidates] for at in range(0, len(painted), candidates)]
    return [group[best(score(prompt, group))] for group in groups]
