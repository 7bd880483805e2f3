"""Rules that select the retrieved documents to prepend to a prompt, as pure functions.

Data path: index -> scored candidates -> `select` -> memory returns their Documents. The same rules
apply at generation and to the table of neighbours used in training (CM3Leon, section 2.1; choices
that the paper leaves open are marked as ours).
"""

# Shapes: E = vector width

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
    """Number of documents, and limits on their similarity to the query and to each other.

    near: a document with a higher score is a near duplicate. The paper's 0.9 applies to its CLIP; a
    memory of another encoder stores its own value (`threshold`).
    least: a document with a lower score is irrelevant, and does the image more harm than good
    (ours; the value also depends on the encoder, and applies to text-only queries).
    """

    count: int = 2  # the paper's K at generation is 0, 1 or 2
    near: float = 0.9
    least: float = -1.0
    pool: int = 64  # candidates considered per query
    dropout: float = 0.2  # share of the words of a text query that is dropped, in training only

    def __post_init__(self) -> None:
        if self.count < 0 or self.pool < 1:
            raise UserError(f"count must be at least 0 and pool at least 1, got {self}")
        for name in ("near", "least"):
            if not -1 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; a score lies in -1..1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it must be at least 0 and below 1")


class Candidate(NamedTuple):
    """Retrieved document: its score against the query, its vector, and its modalities."""

    id: str
    score: float
    vector_E: Vector  # of length 1
    has_text: bool = True
    has_picture: bool = True

    @property
    def is_full(self) -> bool:
        """True if the document has both a text and an image."""
        return self.has_text and self.has_picture


def by_relevance(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Sort by score, best first, and by id for equal scores, so that the order does not depend on
    the index (section 2.1, relevance)."""
    return sorted(candidates, key=lambda one: (-one.score, one.id))


def relevant(candidates: Iterable[Candidate], least: float) -> list[Candidate]:
    """Drop irrelevant candidates: keep scores of at least `least` (ours)."""
    return [one for one in candidates if one.score >= least]


def by_modality(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Move documents with text and image before those with only one of them; otherwise keep the
    order (section 2.1, modality)."""
    return sorted(candidates, key=lambda one: not one.is_full)


def unlike_query(candidates: Iterable[Candidate], near: float) -> list[Candidate]:
    """Drop near duplicates of the query itself: keep scores of at most `near` (section 2.1)."""
    return [one for one in candidates if one.score <= near]


def unlike(candidates: Iterable[Candidate], vector_E: Vector, near: float) -> list[Candidate]:
    """Drop near duplicates of the document with this vector: the query's own document, in training,
    where a query is its text or its image alone (section 2.1)."""
    return [one for one in candidates if float(one.vector_E @ vector_E) <= near]


def diverse(candidates: Iterable[Candidate], near: float, count: int) -> list[Candidate]:
    """Return the first `count` candidates, without near duplicates of candidates already chosen
    (section 2.1, diversity)."""
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
    """Apply all rules in order; `never` holds excluded ids, such as the query document's own.

    The result may have fewer than `rules.count` documents: no rule is relaxed to reach that number.
    """
    allowed = [one for one in candidates if one.id not in never]
    fitting = relevant(unlike_query(allowed, rules.near), rules.least)
    ordered = by_modality(by_relevance(fitting))
    return diverse(ordered, rules.near, rules.count)


def drop_words(text: str, share: float, query_id: str) -> str:
    """Return a text query with each word dropped with probability `share`; at least one word is
    kept (section 2.1, query dropout; words instead of tokens, as each embedder has its own
    tokeniser).

    The dropped words are a function of the query's id, so a table of neighbours is reproducible.
    """
    words = text.split()
    if not words:
        return text
    seed = int.from_bytes(hashlib.sha256(query_id.encode()).digest()[:8])
    draws = np.random.default_rng(seed).random(len(words))
    kept = [word for word, draw in zip(words, draws.tolist(), strict=True) if draw >= share]
    return " ".join(kept or [words[int(draws.argmax())]])


def threshold(nearest_scores: Sequence[float]) -> float:
    """Return `Rules.near` of an encoder other than the paper's: the 99th percentile of the score of
    each document with its nearest other document (ours), at least the paper's 0.9 and at most 1.

    Reason for the lower bound: if no two documents are similar, the percentile would treat a
    document that a prompt describes word for word as a duplicate of the prompt.
    """
    if not nearest_scores:
        raise UserError("a threshold needs at least one score of a nearest document")
    return min(1.0, max(Rules().near, float(np.percentile(np.asarray(nearest_scores), 99))))
