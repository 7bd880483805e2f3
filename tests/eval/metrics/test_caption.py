"""What counts as named, and captions in a batch against the pipeline's."""

from pathlib import Path

import pytest

from cm3leon.pipeline import CM3Leon
from eval.metrics.caption import CaptionPair, describe, words
from tokenizer.data.tars import Tally, find_tars, read_samples
from tokenizer.pixels import open_image

FIRST = "woman judge, light skin tone, Noto emoji style"


def said(
    caption: str, label: str = "woman judge: light skin tone", wanted: str = FIRST
) -> CaptionPair:
    return CaptionPair(id="x", label=label, wanted=wanted, caption=caption)


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


def test_captions_of_a_batch_are_those_of_the_pipeline(tiny: CM3Leon, corpus_folder: Path) -> None:
    samples = read_samples(find_tars(corpus_folder, "test-"), Tally())
    images = [open_image(sample.picture) for sample in samples]
    codes = [tiny.to_picture(image) for image in images]
    for image, caption in zip(images, describe(tiny.model, tiny.codec, codes), strict=True):
        assert [caption] == tiny.caption(image)
