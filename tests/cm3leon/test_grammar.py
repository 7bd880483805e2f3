import random

import pytest

from cm3leon.grammar import (
    Given,
    Grammar,
    Walk,
    code_filling,
    codes,
    column_of,
    infilling,
    longest,
    picture,
    split_fillings,
    text,
    text_filling,
    token_at,
)
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, Vocabulary

V = Vocabulary(image_codes=16, text_pieces=20, sentinels=8)


def wander(grammar: Grammar, seed: int) -> list[int]:
    """Take anything that is allowed until the grammar says stop."""
    rng, walk = random.Random(seed), Walk(grammar)
    ids = walk.given()
    while walk.choices:
        token = rng.choice(rng.choice(walk.choices))
        walk.take(token)
        ids += [token, *walk.given()]
    return ids


def test_a_picture_holds_exactly_its_codes() -> None:
    for seed in range(20):
        ids = wander(picture(V, 9), seed)
        assert len(ids) == 9
        assert all(V.is_image(token) for token in ids)


def test_known_codes_are_given() -> None:
    known = [3, None, None, 5, None, 7]
    grammar = codes(V, known)
    assert longest(grammar) == 6
    for seed in range(20):
        ids = wander(grammar, seed)
        assert [V.code_of(token) for token in ids][::3] == [3, 5]
        assert V.code_of(ids[5]) == 7
        assert all(V.is_image(token) for token in ids)
    assert codes(V, [1, 2]) == (Given((V.image_id(1), V.image_id(2))),)


def test_text_stops_at_either_stop() -> None:
    stops = set()
    for seed in range(50):
        ids = wander(text(V, 5), seed)
        stops.add(ids[-1])
        assert 1 <= len(ids) <= 6
        assert all(V.is_text(token) for token in ids[:-1])
    assert stops == {V.eoss_id, EOS}


def test_text_at_its_limit_gets_its_stop() -> None:
    walk = Walk(text_filling(V, 2))
    assert walk.given() == []
    for piece in (0, 1):
        assert walk.choices == (
            range(V.text_ids.start, V.text_ids.stop),
            range(V.eoss_id, V.eoss_id + 1),
        )
        walk.take(V.text_id(piece))
    assert walk.given() == [V.eoss_id]
    assert walk.choices == ()


def test_holes_are_filled_one_after_the_other() -> None:
    fillings = [text_filling(V, 4), code_filling(V, [None, 3, None]), text_filling(V, 1)]
    grammar = infilling(V, fillings)
    for seed in range(20):
        ids = wander(grammar, seed)
        assert len(ids) <= longest(grammar)
        assert ids.count(V.eoss_id) == 3
        assert [token for token in ids if V.is_sentinel(token)] == [
            V.sentinel_id(1),
            V.sentinel_id(2),
        ]
        one, two, three = split_fillings(V, ids)
        assert len(one) <= 4
        assert len(three) <= 1
        assert all(V.is_text(token) for token in one + three)
        assert len(two) == 3
        assert V.code_of(two[1]) == 3


def test_a_given_run_after_a_limit_follows_the_stop() -> None:
    walk = Walk(infilling(V, [text_filling(V, 1), text_filling(V, 1)]))
    walk.given()
    walk.take(V.text_id(0))
    assert walk.given() == [V.eoss_id, V.sentinel_id(1)]


def test_columns_and_ids_are_inverse() -> None:
    choices = (range(10, 14), range(40, 41), range(2, 3))
    ids = [token_at(choices, column) for column in range(6)]
    assert ids == [10, 11, 12, 13, 40, 2]
    assert [column_of(choices, token) for token in ids] == list(range(6))
    with pytest.raises(AssertionError, match="5 is not allowed"):
        column_of(choices, 5)


def test_what_is_not_allowed_is_not_taken() -> None:
    walk = Walk(picture(V, 1))
    walk.given()
    with pytest.raises(AssertionError, match="not allowed"):
        walk.take(V.text_id(0))


def test_a_text_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at most 0 tokens"):
        text(V, 0)
