"""Captions in people's words: rules of kinds of words, which know none of the sheet's prompts."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cm3leon.pipeline import CM3Leon
from tokenizer.data.shards import Shards
from train.config import RowsConfig
from train.data import paraphrase
from train.data.paraphrase import STYLES, reword, with_article
from train.data.rows import Rows
from train.objective import MaskConfig

PROMPTS = Path(__file__).parents[3] / "docs" / "sheets" / "people.json"

pictures = st.fixed_dictionaries(
    {"label": st.text(min_size=1).filter(str.strip)},
    optional={
        "tags": st.none() | st.lists(st.text(min_size=1)),
        "style": st.sampled_from([*STYLES, "nobody's"]),
    },
)


def some(picture: dict[str, Any], count: int = 400) -> set[str]:
    return {reword(picture, np.random.default_rng(seed)) or "" for seed in range(count)}


@given(pictures, st.integers(0, 2**32))
@example({"label": ":"}, 0)
@example({"label": "wolf", "tags": 5}, 0)
@example({"label": "wolf", "tags": "grey"}, 0)
def test_whatever_stands_there_becomes_words(picture: dict[str, Any], seed: int) -> None:
    found = reword(picture, np.random.default_rng(seed))
    assert found
    assert found == reword(picture, np.random.default_rng(seed))


@pytest.mark.parametrize("picture", [{}, {"label": " "}, {"label": None, "tags": ["cat"]}])
def test_without_a_label_there_are_no_words(picture: dict[str, Any]) -> None:
    assert reword(picture, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("picture", "wanted"),
    [
        ({"label": "wolf", "style": "fluent-3d"}, {"wolf", "a wolf", "the wolf", "3D wolf"}),
        ({"label": "wolf"}, {"draw a wolf", "show me the wolf", "two wolfs", "An emoji of wolf"}),
        ({"label": "ox", "tags": ["animal", "bull"]}, {"an ox", "a bull", "bull ox"}),
        ({"label": "red tomato"}, {"tomato", "a red tomato", "some tomatos"}),
        ({"label": "goat face"}, {"goat", "a goat face"}),
        ({"label": "flag: Chad"}, {"flag of Chad", "Chad flag", "Chad"}),
        ({"label": "keycap: 8"}, {"number 8", "8"}),
        ({"label": "woman judge"}, {"a female judge", "a woman judge"}),
        (
            {"label": "nurse: medium-dark skin tone"},
            {"nurse with medium dark skin", "a medium dark skinned nurse"},
        ),
    ],
)
def test_people_say_it_so(picture: dict[str, Any], wanted: set[str]) -> None:
    found = some(picture, 4000)
    assert wanted <= {one.rstrip(".!") for one in found}
    assert not any("animal" in one for one in found)


@pytest.mark.parametrize(
    ("thing", "allowed"),
    [
        ("owl", {"an owl", "the owl", "some owls", "two owls", "many owls"}),
        ("cherry", {"a cherry", "the cherry", "some cherries", "two cherries", "many cherries"}),
        ("glasses", {"glasses", "some glasses"}),
        ("cactus", {"a cactus", "the cactus", *(f"{n} cactuses" for n in ("some", "two", "many"))}),
        ("face with tears", {"a face with tears", "the face with tears"}),
        ("the moon", {"the moon"}),
    ],
)
def test_articles_and_plurals(thing: str, allowed: set[str]) -> None:
    found = {with_article(thing, np.random.default_rng(seed)) for seed in range(300)}
    assert found == allowed


def test_no_rule_knows_a_prompt_of_the_sheet() -> None:
    rules = inspect.getsource(paraphrase).lower()
    table = json.loads(PROMPTS.read_text())
    for row in table["open"] + table["sealed"]:
        if " " in row["prompt"]:
            assert row["prompt"].lower() not in rules
        assert f'"{row["prompt"].lower()}"' not in rules


def test_people_s_words_stand_in_rows_and_are_never_asked_back(
    shards_folder: Path, tiny: CM3Leon
) -> None:
    shards, codec = Shards.open(shards_folder), tiny.codec
    mask = MaskConfig(spans_mean=0, field=1)
    kinds = {"forms": {"pair": 1.0}, "kinds": {}}
    plain = Rows(shards, codec, RowsConfig(**kinds), mask, 0)
    reworded = Rows(shards, codec, RowsConfig(**kinds, reworded=1.0), mask, 0)
    captions = {text for n in range(6) for text in shards.metadata(n)["captions"]}
    sentinel = codec.vocabulary.sentinel_id(0)
    for row in range(50):
        assert sentinel in plain.at(row)
        assert sentinel not in reworded.at(row)
        rng = np.random.default_rng(row)
        caption, own_words = reworded.caption(row % 6, rng)
        assert own_words
        assert caption not in captions
    half = Rows(shards, codec, RowsConfig(**kinds, reworded=0.5), mask, 0)
    asked = [sentinel in half.at(row) for row in range(200)]
    assert 60 < sum(asked) < 140
