"""The rules of retrieval: each alone, and what holds of all of them together."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.rules import (
    Candidate,
    Rules,
    by_modality,
    by_relevance,
    diverse,
    drop_words,
    select,
    threshold,
    unlike_query,
)
from tokenizer.errors import UserError


def one(
    name: str, score: float, direction: Sequence[float] = (1, 0), *, text: bool = True
) -> Candidate:
    vector_E = np.array(direction, dtype=np.float32)
    vector_E /= np.linalg.norm(vector_E)
    return Candidate(id=name, score=score, vector_E=vector_E, has_text=text)


def names(candidates: Sequence[Candidate]) -> str:
    return " ".join(candidate.id for candidate in candidates)


def test_the_best_score_comes_first_and_ties_go_by_id() -> None:
    found = [one("c", 0.2), one("b", 0.7), one("a", 0.2)]
    assert names(by_relevance(found)) == "b a c"


def test_documents_of_text_and_picture_come_first() -> None:
    found = [one("a", 0.9, text=False), one("b", 0.8), one("c", 0.7, text=False), one("d", 0.1)]
    assert names(by_modality(found)) == "b d a c"


def test_near_copies_of_the_query_go() -> None:
    assert names(unlike_query([one("a", 0.95), one("b", 0.9), one("c", 0.1)], 0.9)) == "b c"


def test_near_copies_of_a_chosen_one_go() -> None:
    found = [one("a", 0.9, (1, 0)), one("b", 0.8, (1, 0.1)), one("c", 0.7, (0, 1)), one("d", 0.1)]
    assert names(diverse(found, 0.9, 2)) == "a c"
    assert names(diverse(found, 0.9, 9)) == "a c"
    assert diverse(found, 0.9, 0) == []


def test_the_query_document_itself_never_comes() -> None:
    rules = Rules(count=1)
    assert names(select([one("a", 0.5), one("b", 0.4)], rules, frozenset("a"))) == "b"


CANDIDATES = st.lists(
    st.builds(
        one,
        st.text("abcdef", min_size=1, max_size=3),
        st.floats(-1, 1),
        st.tuples(st.floats(0.1, 1), st.floats(-1, 1)),
        text=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda candidate: candidate.id,
)


@given(
    CANDIDATES,
    st.integers(0, 5),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.sets(st.sampled_from("abcdef")),
)
def test_what_is_selected_keeps_every_rule(
    candidates: list[Candidate], count: int, near: float, least: float, never: set[str]
) -> None:
    rules = Rules(count=count, near=near, least=least)
    chosen = select(candidates, rules, never)
    assert len(chosen) <= count
    assert not {candidate.id for candidate in chosen} & never
    assert all(least <= candidate.score <= near for candidate in chosen)
    pairs = [(a, b) for a in chosen for b in chosen if a is not b]
    assert all(float(a.vector_E @ b.vector_E) <= near for a, b in pairs)
    keys = [(not candidate.is_full, -candidate.score) for candidate in chosen]
    assert keys == sorted(keys)
    assert names(chosen) == names(select(candidates[::-1], rules, never))
    if len(chosen) < count:  # nobody who could have come was left out
        others = [c for c in candidates if least <= c.score <= near and c.id not in never]
        for left in others:
            assert left in chosen or any(float(left.vector_E @ c.vector_E) > near for c in chosen)


@given(st.text("ab \n", max_size=40), st.floats(0, 0.99), st.text(max_size=5))
def test_dropped_words_are_a_function_of_the_id(text: str, share: float, name: str) -> None:
    found = drop_words(text, share, name)
    assert found == drop_words(text, share, name)
    words, left = text.split(), iter(text.split())
    assert all(word in left for word in found.split())  # in their order
    assert bool(found.split()) == bool(words)
    if share == 0:
        assert found.split() == words


def test_a_fifth_of_the_words_is_dropped() -> None:
    text = " ".join(map(str, range(50)))
    kept = [len(drop_words(text, 0.2, str(number)).split()) for number in range(200)]
    assert sum(kept) / (200 * 50) == pytest.approx(0.8, abs=0.02)
    assert len(set(kept)) > 5


def test_the_threshold_is_a_percentile_and_at_least_the_papers() -> None:
    assert threshold([number / 100 for number in range(101)]) == pytest.approx(0.99)
    assert threshold([1.0000001]) == 1.0
    assert threshold([0.1, 0.2, 0.3]) == 0.9
    with pytest.raises(UserError, match="at least one score"):
        threshold([])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"count": -1}, "count must"),
        ({"near": 1.5}, "near is 1.5; a score lies in -1..1"),
        ({"least": -2}, "least is -2"),
        ({"dropout": 1.0}, "below"),
    ],
)
def test_rules_out_of_range_are_refused(change: dict[str, float], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Rules(**change)  # type: ignore[arg-type]
