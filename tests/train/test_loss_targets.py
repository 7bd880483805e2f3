"""The loss of masked rows: what is predicted, what it weighs, and that parts add up."""

import math

import numpy as np
import torch

from tokenizer.vocabulary import EOS, PAD, Vocabulary
from train.objective import KINDS, MaskConfig, masked_cross_entropy, targets_and_weights

VOCABULARY = Vocabulary(image_codes=50, text_pieces=60, sentinels=16)
BREAK, EOSS = VOCABULARY.break_id, VOCABULARY.eoss_id


def test_targets_are_the_next_ids_and_padding_weighs_nothing() -> None:
    hole = VOCABULARY.sentinel_id(0)
    ids_BL = np.array([[EOS, 10, hole, EOS, hole, 11, EOSS], [EOS, 10, EOS, PAD, PAD, PAD, PAD]])
    targets_BL, weights_BL = targets_and_weights(ids_BL, VOCABULARY, MaskConfig())
    assert targets_BL.tolist() == ids_BL[:, 1:].tolist()
    assert weights_BL.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    half = MaskConfig(sentinel_weight=0.5)
    _, weights_BL = targets_and_weights(ids_BL, VOCABULARY, half)
    assert weights_BL[0].tolist() == [1, 0.5, 1, 0.5, 1, 1]
    assert weights_BL.dtype == np.float32
    _, weights_BL = targets_and_weights(ids_BL, VOCABULARY, MaskConfig(predict="image"))
    assert weights_BL[0].tolist() == [1, 0, 0, 0, 1, 0]  # 10 and 11 are codes


def test_loss_is_the_weighted_sum_of_what_each_token_costs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(6, VOCABULARY.size, generator=generator)
    hole, word, code = VOCABULARY.sentinel_id(2), VOCABULARY.text_id(3), VOCABULARY.image_id(49)
    targets_T = torch.tensor([word, code, hole, BREAK, EOS, PAD])
    weights_T = torch.tensor([1.0, 1.0, 0.5, 1.0, 1.0, 0.0])
    loss = masked_cross_entropy(logits_TV, targets_T, weights_T, VOCABULARY)

    nats = [-math.log(row[t]) for row, t in zip(logits_TV.softmax(-1), targets_T, strict=True)]
    wanted = {
        "text": (nats[0], 1),
        "image": (nats[1], 1),
        "sentinel": (nats[2] / 2, 0.5),
        "mark": (nats[3] + nats[4], 2),
    }
    torch.testing.assert_close(loss.kinds_K2, torch.tensor([wanted[kind] for kind in KINDS]))
    torch.testing.assert_close(loss.kinds_K2.sum(0), torch.stack([loss.total, loss.weight]))

    with_z = masked_cross_entropy(logits_TV, targets_T, weights_T, VOCABULARY, z_loss=0.1)
    extra = 0.1 * (logits_TV.exp().sum(-1).log() ** 2 * weights_T).sum()
    torch.testing.assert_close(with_z.total, loss.total + extra)
    torch.testing.assert_close(with_z.kinds_K2, loss.kinds_K2)


def test_losses_of_parts_add_up_and_weightless_tokens_teach_nothing() -> None:
    logits_TV = torch.randn(8, VOCABULARY.size, dtype=torch.bfloat16).requires_grad_()
    targets_T = torch.arange(8) + 20
    weights_T = torch.tensor([1.0, 0, 1, 1, 0.5, 1, 1, 0])
    whole = masked_cross_entropy(logits_TV, targets_T, weights_T, VOCABULARY, 1e-5)
    halves = [
        masked_cross_entropy(logits_TV[cut], targets_T[cut], weights_T[cut], VOCABULARY, 1e-5)
        for cut in (slice(0, 3), slice(3, 8))
    ]
    for one, two, both in zip(*halves, whole, strict=True):
        torch.testing.assert_close(one + two, both)
    whole.total.backward()
    assert logits_TV.grad is not None
    silent = (logits_TV.grad == 0).all(dim=1)
    assert silent.tolist() == (weights_T == 0).tolist()
    assert not whole.kinds_K2.requires_grad
