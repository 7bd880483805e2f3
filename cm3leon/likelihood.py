"""Likelihood of given sequences: bits per token under the grammar of a task.

Scores existing sequences by following the grammar of generation: each id is scored against the ids
allowed at its step, and given ids cost nothing. Used by training reports, evaluation and reranking.

Shapes: B = rows, L = tokens, D = width, V = ids that may be drawn, K = tokens scored at once.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3leon.engine.engine import logits_of
from cm3leon.grammar import Choices, Grammar, Walk, column_of, picture, text_filling
from cm3leon.model import Decoder
from tokenizer.errors import UserError
from tokenizer.vocabulary import PAD, Vocabulary

ROWS = 16  # rows read in one forward pass
SCORED = 4096  # tokens whose logits are in memory at once


@dataclass(frozen=True)
class Written:
    """Prompt, its continuation, and the grammar of the continuation."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    grammar: Grammar


@torch.inference_mode()
def bits(model: Decoder, rows: Sequence[Written]) -> list[Tensor]:
    """Return -log2 p of every id of every continuation (float32, on the CPU); 0 for given ids.

    Raises UserError when a row is longer than the model's context.
    """
    found: list[Tensor] = []
    for start in range(0, len(rows), ROWS):
        found += _bits_of_batch(model, rows[start : start + ROWS])
    return found


def bits_per_image_token(
    model: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[Sequence[int]],
) -> float:
    """Return the mean bits of the images' codes, among image ids.

    The codes follow their open prompts (`</s> text <break>`); `pictures` are codes in raster order.
    """
    rows = [
        Written(
            tuple(prompt),
            tuple(vocabulary.image_id(code) for code in codes),
            picture(vocabulary, len(codes)),
        )
        for prompt, codes in zip(prompts, pictures, strict=True)
    ]
    return _mean(bits(model, rows))


def bits_per_text_token(
    model: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
) -> float:
    """Return the mean bits of the texts that fill hole 0, and of the `<eoss>` after each.

    They are scored among text ids and `<eoss>`; the prompts end with `<sentinel:0>`, `texts` are
    ids of text pieces.
    """
    rows = [
        Written(
            tuple(prompt),
            (*ids, vocabulary.eoss_id),
            text_filling(vocabulary, len(ids) + 1),  # so that <eoss> is drawn, not given
        )
        for prompt, ids in zip(prompts, texts, strict=True)
    ]
    return _mean(bits(model, rows))


def _mean(found: Sequence[Tensor]) -> float:
    return float(torch.cat(list(found)).mean())


def _bits_of_batch(model: Decoder, rows: Sequence[Written]) -> list[Tensor]:
    """Run one forward pass over right-padded rows, then the head where an id was drawn."""
    device = model.embed.weight.device
    seen = [(*row.prompt, *row.continuation[:-1]) for row in rows]
    length = max(len(ids) for ids in seen)
    if length > model.config.context:
        raise UserError(
            f"a row of {length} tokens is to be scored, but the model has room for "
            f"{model.config.context}; shorten it"
        )
    padded = [[*ids, *[PAD] * (length - len(ids))] for ids in seen]
    hidden_BLD = model(torch.tensor(padded, device=device))
    found = [torch.zeros(len(row.continuation)) for row in rows]
    for choices, steps in _drawn(rows).items():
        for start in range(0, len(steps), SCORED):
            part = steps[start : start + SCORED]
            places = [len(rows[row].prompt) - 1 + step for row, step in part]
            hidden_KD = hidden_BLD[[row for row, _ in part], places]
            targets = [column_of(choices, rows[row].continuation[step]) for row, step in part]
            logits_KV = logits_of(model, hidden_KD, choices)
            targets_K = torch.tensor(targets, device=device).unsqueeze(1)
            nats_K = -logits_KV.log_softmax(-1).gather(1, targets_K).squeeze(1)
            for (row, step), nats in zip(part, nats_K.tolist(), strict=True):
                found[row][step] = nats / math.log(2)
    return found


def _drawn(rows: Sequence[Written]) -> dict[Choices, list[tuple[int, int]]]:
    """Return every (row, step) at which an id was drawn, grouped by the ids allowed there."""
    steps: dict[Choices, list[tuple[int, int]]] = defaultdict(list)
    for number, row in enumerate(rows):
        walk = Walk(row.grammar)
        given = walk.given()
        for step, token in enumerate(row.continuation):
            if given:
                assert token == given.pop(0), "the continuation breaks its grammar"
                continue
            steps[walk.choices].append((number, step))
            walk.take(token)
            given = walk.given()
    return steps
