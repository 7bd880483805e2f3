"""How surprised the model is: bits per token under the grammar of a task.

Scores what is already written by walking the grammar that generate would have walked: each id is
measured against the ids that were allowed at its step, and what is given costs nothing. Training
reports, evaluation and reranking all use it.

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
SCORED = 4096  # tokens whose logits are held at once


@dataclass(frozen=True)
class Written:
    """A prompt, what follows it, and the grammar under which it follows."""

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    grammar: Grammar


@torch.inference_mode()
def bits(model: Decoder, rows: Sequence[Written]) -> list[Tensor]:
    """-log2 p of every id of every continuation (float32, on the CPU); 0 where the id was given.

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
    """Mean bits of the pictures' codes after their open prompts (`</s> text <break>`), among image
    ids; `pictures` are codes, row by row."""
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
    """Mean bits of the texts that fill hole 0, and of the `<eoss>` after each, among text ids and
    `<eoss>`; the prompts end with `<sentinel:0>`, `texts` are ids of text pieces."""
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
    """One forward pass over right-padded rows, then the head where something was drawn."""
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
    """Every (row, step) at which an id was drawn, by what could have been drawn there."""
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
