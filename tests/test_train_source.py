"""Decks, shuffles and sources: every share is met, every item comes once before any comes twice."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from train.source import DECK, Deck, Shuffle, Source, grouped


@settings(max_examples=30)
@given(
    shares=st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(any),
    number=st.integers(0, 10**6),
)
def test_a_deck_meets_its_shares_every_thousand_places(shares: list[float], number: int) -> None:
    named = {str(name): share for name, share in enumerate(shares)}
    deck = Deck(named, (0, 1))
    dealt = [deck.at(number * DECK + slot) for slot in range(DECK)]
    counts = Counter(name for name, _ in dealt)
    for name, share in named.items():
        assert abs(counts[name] - share / sum(shares) * DECK) < 1
        ranks = [rank for each, rank in dealt if each == name]
        assert ranks == list(range(number * counts[name], (number + 1) * counts[name]))


def test_decks_are_shuffled_each_in_its_own_way() -> None:
    deck = Deck({"a": 1.0, "b": 1.0}, (0,))
    first, second = ([deck.at(n * DECK + slot)[0] for slot in range(DECK)] for n in (0, 1))
    assert first != second
    assert first != sorted(first)


@given(count=st.integers(1, 50), epoch=st.integers(0, 10**6))
def test_a_shuffle_covers_every_item_once_an_epoch(count: int, epoch: int) -> None:
    shuffle = Shuffle(count, (0, 1))
    places = range(epoch * count, (epoch + 1) * count)
    assert sorted(shuffle.at(place) for place in places) == list(range(count))


def test_every_unit_of_a_group_comes_once_before_any_comes_twice() -> None:
    groups = {"a": [["a0"], ["a1", "a1'"], ["a2"]], "b": [["b0"]]}
    source = Source("pair", groups, {"a": 0.75}, (0,))
    rng = np.random.default_rng(0)
    drawn = [source.at(place, rng) for place in range(DECK)]
    assert Counter(item[0] for item in drawn) == {"a": 750, "b": 250}
    of_a = [item[:2] for item in drawn if item[0] == "a"]
    for start in range(0, 750, 3):
        assert sorted(of_a[start : start + 3]) == ["a0", "a1", "a2"]
    assert {"a1", "a1'"} <= set(drawn)


def test_groups_are_in_order_of_first_sight() -> None:
    items = [("b", 1, "x"), ("a", 1, "y"), ("b", 2, "z"), ("b", 1, "w")]
    assert grouped(items) == {"b": [["x", "w"], ["z"]], "a": [["y"]]}
