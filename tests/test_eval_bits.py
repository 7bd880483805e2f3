"""Bits of pictures and captions against a softmax written out by hand."""

import math
from pathlib import Path

import pytest
import torch

from cm3leon import prompts
from cm3leon.likelihood import bits_per_image_token
from cm3leon.pipeline import CM3Leon
from eval.bits import Pair, figures, measure
from eval.sets import captioned
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.shard_writer import write_shards
from tokenizer.shards import Shards
from tokenizer.vocabulary import EOS


@pytest.fixture(scope="module")
def shards(shards_folder: Path) -> Shards:
    return Shards.open(shards_folder)


@pytest.fixture(scope="module")
def pairs(tiny: CM3Leon, shards: Shards) -> list[Pair]:
    return measure(tiny.model, tiny.codec, shards)


def test_image_bits_agree_with_the_reports_of_training(
    tiny: CM3Leon, shards: Shards, pairs: list[Pair]
) -> None:
    assert [pair.id for pair in pairs] == [f"p{number}" for number in range(6)]
    told = [shards.picture(number) for number in range(6)]
    open_prompts = [tiny.codec.open(prompts.paint(meta["captions"][0])[0]) for meta, _ in told]
    codes = [codes for _, codes in told]
    expected = bits_per_image_token(tiny.model, tiny.codec.vocabulary, open_prompts, codes)
    row = figures(pairs, 16)["all"]
    assert row.image_token.value == pytest.approx(expected, rel=1e-5)
    assert row.picture.value == pytest.approx(16 * expected, rel=1e-5)


def test_caption_bits_agree_with_a_softmax_by_hand(
    tiny: CM3Leon, shards: Shards, pairs: list[Pair]
) -> None:
    codec, vocabulary = tiny.codec, tiny.codec.vocabulary
    metadata, codes = shards.picture(2)
    prompt = codec.infill(prompts.describe(Picture(codes)))
    pieces = codec.text.encode(f" {metadata['captions'][0]}")
    ids = [*(vocabulary.text_id(piece) for piece in pieces), vocabulary.eoss_id]
    texts = range(vocabulary.text_ids.start, vocabulary.text_ids.stop)
    allowed = [*texts, vocabulary.eoss_id, EOS]
    expected = 0.0
    with torch.no_grad():
        for step, token in enumerate(ids):
            hidden_BLD = tiny.model(torch.tensor([[*prompt, *ids[:step]]]))
            logits_V = tiny.model.logits(hidden_BLD)[0, -1]
            expected -= math.log2(logits_V[allowed].softmax(-1)[allowed.index(token)].item())
    assert pairs[2].caption_bits == pytest.approx(expected, rel=1e-4)


def test_captions_are_measured_in_bytes() -> None:
    def pair(caption: str, bits: float) -> Pair:
        return Pair(id=caption, kind="a", caption=caption, image_bits=32.0, caption_bits=bits)

    row = figures([pair("ab", 6.0), pair("é", 2.0)], 16)["a"]
    assert row.caption_byte.value == 2.0
    assert row.image_token.value == 2.0
    assert row.image_token.error == 0.0


def test_a_limit_holds_for_each_kind(tiny: CM3Leon, shards: Shards, pairs: list[Pair]) -> None:
    told: list[tuple[int, int]] = []
    some = measure(
        tiny.model, tiny.codec, shards, limit=2, progress=lambda *counts: told.append(counts)
    )
    assert [one.id for one in some] == ["p0", "p1", "p2", "p3", "p5"]
    whole = {pair.id: pair for pair in pairs}
    for one in some:
        assert one.image_bits == pytest.approx(whole[one.id].image_bits, rel=1e-4)
    assert told == [(5, 5)]


def test_pictures_without_captions_are_passed_over(tmp_path: Path) -> None:
    pictures = [({"id": "a", "captions": []}, [0]), ({"id": "b", "captions": ["bat"]}, [1])]
    told = {"image_tokenizer_hash": "h", "size": 8, "grid": 1, "codes": 2}
    write_shards(tmp_path / "s", pictures, [], **told)
    ((found,),) = captioned(Shards.open(tmp_path / "s"), None, None)
    assert (found[0]["id"], found[1].codes) == ("b", (1,))
    write_shards(tmp_path / "none", pictures[:1], [], **told)
    with pytest.raises(UserError, match=r"no picture of .*none' has a caption"):
        list(captioned(Shards.open(tmp_path / "none"), None, None))
