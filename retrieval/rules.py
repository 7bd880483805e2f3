"""Which of the documents found go in front of the prompt: the rules, each a pure function.

On the path: index -> candidates with their scores -> `select` -> memory gives their Documents. The
same rules hold at generation and for the table of neighbours that training reads (CM3Leon,
section 2.1; what the paper leaves open is decided here and said so).
"""

# Shapes: E = width of a vector

import hashlib
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer.errors import UserError

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How many documents, and how unlike the query and each other they must be.

    near: a score above it is a near copy. The paper's 0.9 belongs to its CLIP; a memory of another
    encoder keeps a number of its own (`threshold`).
    least: a score below it is of something else, which does the picture more harm than good (ours;
    it belongs to an encoder too, and to queries of words alone).
    """

    count: int = 2  # the paper's K at generation is 0, 1 or 2
    near: float = 0.9
    least: float = -1.0
    pool: int = 64  # candidates looked at for each query
    dropout: float = 0.2  # of the words of a text query, in training alone

    def __post_init__(self) -> None:
        if self.count < 0 or self.pool < 1:
            raise UserError(f"count must be at least 0 and pool at least 1, got {self}")
        for name in ("near", "least"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; a score lies in -1..1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


class Candidate(NamedTuple):
    """A document that was found: its score against the query, and what it is made of."""

    id: str
    score: float
    vector_E: Vector  # of length 1
    has_text: bool = True
    has_picture: bool = True

    @property
    def is_full(self) -> bool:
        """Both a text and a picture."""
        return self.has_text and self.has_picture


def by_relevance(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The best score first; equal scores by id, so that the order never depends on the index
    (section 2.1, relevance)."""
    return sorted(candidates, key=lambda one: (-one.score, one.id))


def relevant(candidates: Iterable[Candidate], least: float) -> list[Candidate]:
    """Without what is of something else: a score of at least `least` (ours)."""
    return [one for one in candidates if one.score >= least]


def by_modality(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Documents of text and picture before those of one alone, else in the order given
    (section 2.1, modality)."""
    return sorted(candidates, key=lambda one: not one.is_full)


def unlike_query(candidates: Iterable[Candidate], near: float) -> list[Candidate]:
    """Without near copies of the query itself: a score of at most `near` (section 2.1)."""
    return [one for one in candidates if one.score <= near]


def unlike(candidates: Iterable[Candidate], vector_E: Vector, near: float) -> list[Candidate]:
    """Without near copies of the document with this vector: the query's own, in training, where a
    query is its text or its picture alone (section 2.1)."""
    return [one for one in candidates if float(one.vector_E @ vector_E) <= near]


def diverse(candidates: Iterable[Candidate], near: float, count: int) -> list[Candidate]:
    """The first `count` that are no near copies of one chosen before (section 2.1, diversity)."""
    chosen: list[Candidate] = []
    for one in candidates:
        if len(chosen) == count:
            break
        if all(float(one.vector_E @ other.vector_E) <= near for other in chosen):
            chosen.append(one)
    return chosen


def select(
    candidates: Iterable[Candidate], rules: Rules, never: Set[str] = frozenset()
) -> list[Candidate]:
    """All rules in their order; `never` holds ids that may not come, as the query document's own.

    There may be fewer than `rules.count`: a rule is not bent to fill a place.
    """
    allowed = [one for one in candidates if one.id not in never]
    fitting = relevant(unlike_query(allowed, rules.near), rules.least)
    ordered = by_modality(by_relevance(fitting))
    return diverse(ordered, rules.near, rules.count)


def drop_words(text: str, share: float, query_id: str) -> str:
    """A text query without some of its words, each gone with probability `share`; one stays
    (section 2.1, query dropout; words in the place of tokens, which embedders cut each their way).

    What goes is a function of the query's id, so a table of neighbours is the same every time.
    """
    words = text.split()
    if not words:
        return text
    seed = int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8])
    draws = np.random.default_rng(seed).random(len(words))
    kept = [word for word, draw in zip(words, draws.tolist(), strict=True) if draw >= share]
    return " ".join(kept or [words[int(draws.argmax())]])


def threshold(nearest_scores: Sequence[float]) -> float:
    """`Rules.near` of an encoder that is not the paper's: the 99th percentile of how near each
    document's nearest other one is (ours), at least the paper's 0.9 and at most 1.

    At least: of documents that are all unlike, the percentile would take the one that a prompt
    names word for word for a copy of the prompt.
    """
    if not nearest_scores:
        raise UserError("a threshold needs at least one score of a nearest document")
    return min(1.0, max(Rules().near, float(np.percentile(np.asarray(nearest_scores), 99))))
