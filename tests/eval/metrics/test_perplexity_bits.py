"""Bits of images and captions against a softmax written out by hand."""

import math
from pathlib import Path

import pytest
import torch

from cm3leon import likelihood, prompts
from cm3leon.likelihood import bits_per_image_token
from cm3leon.pipeline import CM3Leon
from eval.metrics.perplexity import written_caption, written_picture
from tokenizer.data.shards import Shards
from tokenizer.document import Picture
from tokenizer.vocabulary import EOS


@pytest.fixture(scope="module")
def shards(shards_folder: Path) -> Shards:
    return Shards.open(shards_folder)


def test_image_bits_agree_with_the_reports_of_training(tiny: CM3Leon, shards: Shards) -> None:
    told = [shards.picture(number) for number in range(6)]
    open_prompts = [tiny.codec.open(prompts.paint(meta["captions"][0])[0]) for meta, _ in told]
    codes = [codes for _, codes in told]
    expected = bits_per_image_token(tiny.model, tiny.codec.vocabulary, open_prompts, codes)
    written = [
        written_picture(tiny.codec, meta["captions"][0], Picture(codes)) for meta, codes in told
    ]
    found = torch.cat(likelihood.bits(tiny.model, written))
    assert float(found.mean()) == pytest.approx(expected, rel=1e-5)


def test_caption_bits_agree_with_a_softmax_by_hand(tiny: CM3Leon, shards: Shards) -> None:
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
    written = written_caption(codec, metadata["captions"][0], Picture(codes))
    (bits_L,) = likelihood.bits(tiny.model, [written])
    assert float(bits_L.sum()) == pytest.approx(expected, rel=1e-4)
