"""What counts as named, and captions in a batch against the pipeline's."""

from pathlib import Path

import pytest

from cm3leon.pipeline import CM3Leon
from eval.captions import Said, figures, measure, words
from eval.sets import find_images
from tokenizer.shards import Shards
from tokenizer.tars import find_tars

FIRST = "woman judge, light skin tone, Noto emoji style"


def said(caption: str, label: str = "woman judge: light skin tone", wanted: str = FIRST) -> Said:
    return Said(id="x", label=label, wanted=wanted, caption=caption)


@pytest.mark.parametrize(
    ("caption", "label", "style", "exact"),
    [
        (FIRST, True, True, True),
        ("Woman Judge, light skin tone, noto emoji style", True, True, False),
        ("a judge, woman, light skin tone", True, False, False),
        ("woman judge, medium-light skin tone, Noto emoji style", False, True, False),
        ("woman judge, light skin tone, Noto emoji", True, False, False),
        ("Noto emoji style", False, True, False),
        ("", False, False, False),
    ],
)
def test_what_is_named(caption: str, label: bool, style: bool, exact: bool) -> None:
    one = said(caption)
    assert (one.names_label, one.names_style, one.exact) == (label, style, exact)


def test_a_label_without_words_is_never_named() -> None:
    assert not said("anything", label="").names_label


def test_words_keep_their_hyphens_and_apostrophes() -> None:
    assert words("Mrs. Claus: cat's twelve-thirty o\u2019clock “A”") == {
        "mrs",
        "claus",
        "cat's",
        "twelve-thirty",
        "o\u2019clock",
        "a",
    }


def test_shares_are_counted() -> None:
    found = figures([said(FIRST), said("judge, Noto emoji style"), said("a fox"), said("")])
    shares = {name: figure.value for name, figure in found.items()}
    assert shares == {"label": 0.25, "style": 0.5, "both": 0.25, "exact": 0.25}
    assert found["style"].error == pytest.approx((1 / 3) ** 0.5 / 2)


def test_captions_of_a_batch_are_those_of_the_pipeline(
    tiny: CM3Leon, shards_folder: Path, corpus_folder: Path
) -> None:
    found = measure(tiny.model, tiny.codec, Shards.open(shards_folder), limit=1)
    assert [one.id for one in found] == ["p0", "p1", "p5"]
    assert found[1].label == "red heart"
    assert found[1].wanted == "red heart, Noto emoji style"
    ids = frozenset(one.id for one in found)
    images = find_images(find_tars(corpus_folder, "test-"), 16, ids)
    for one in found:
        assert [one.caption] == tiny.caption(images[one.id])
