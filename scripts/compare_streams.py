"""Compare what editing's guidance says when nothing is asked: our stream, and Meta's shorter one.

    PYTHONPATH=. python scripts/compare_streams.py default runs/shards-test --limit 500

For edits of token shards, evenly spaced: bits per image token of the picture after the edit, given
the picture before (`blank`), and under the guidance of all three streams at the model's own scales
(`guided`). Text to image without retrieved documents has the same streams in both forms.
"""

# Shapes: W = streams, L = codes of a picture, V = image codes, D = width

import argparse
import math
from typing import get_args

import torch
from torch import Tensor

from cm3leon import prompts
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import combine
from eval.figures import evenly, ratio
from tokenizer.document import Document, Picture
from tokenizer.shards import Shards


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the streams of editing's guidance.")
    parser.add_argument("model")
    parser.add_argument("shards")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    leon = CM3Leon.from_pretrained(given.model)
    shards = Shards.open(given.shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    edits = evenly(shards.numbers("edit").tolist(), given.limit)
    print(f"model {leon.hash}, {len(edits)} edits, {leon.sampling.edit}")
    for form in get_args(prompts.StreamForm):
        found = [edit_bits(leon, shards, number, form) for number in edits]
        sizes = [float(leon.codec.picture_codes)] * len(found)
        for name, values in zip(("blank", "guided"), zip(*found, strict=True), strict=True):
            figure = ratio(values, sizes)
            print(f"{form} {name}: {figure.value:.3f} ± {figure.error:.3f}")


@torch.inference_mode()
def edit_bits(
    leon: CM3Leon, shards: Shards, number: int, form: prompts.StreamForm
) -> tuple[float, float]:
    """Bits of one edit's second picture: after the blank stream alone, and guided."""
    edit = shards.document(number)
    source, target = (
        shards.picture(shards.number_of(edit[name]))[1] for name in ("source", "target")
    )
    documents = prompts.change(edit["instructions"][0], Picture(source), form=form)
    logits_WLV = torch.stack([code_logits(leon, document, target) for document in documents])
    guided_LV = combine(logits_WLV, leon.sampling.edit)
    return bits(logits_WLV[1], target), bits(guided_LV, target)


def code_logits(leon: CM3Leon, document: Document, target: tuple[int, ...]) -> Tensor:
    """logits_LV of the codes of a picture behind an open prompt."""
    vocabulary = leon.codec.vocabulary
    prompt = leon.codec.open(document)
    ids = (*prompt, *(vocabulary.image_id(code) for code in target[:-1]))
    hidden_LD = leon.model(torch.tensor([ids]))[0, len(prompt) - 1 :]
    return leon.model.logits(hidden_LD, vocabulary.image_ids)


def bits(logits_LV: Tensor, target: tuple[int, ...]) -> float:
    """-log2 p of the codes."""
    nats_L1 = -logits_LV.log_softmax(-1).gather(1, torch.tensor(target).unsqueeze(1))
    return float(nats_L1.sum()) / math.log(2)


if __name__ == "__main__":
    main()
