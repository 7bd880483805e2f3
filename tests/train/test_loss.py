"""The head in chunks: its loss, and what the loss teaches, are those of whole logits."""

import pytest
import torch
from torch import Tensor

from tokenizer.vocabulary import Vocabulary
from train import loss as head
from train.objective import Loss, masked_cross_entropy

VOCABULARY = Vocabulary(image_codes=50, text_pieces=60, sentinels=16)
WIDTH, COUNT = 12, 23
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def drawn(dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(COUNT, WIDTH, generator=draw).to(dtype)
    weight_VD = torch.randn(VOCABULARY.size, WIDTH, generator=draw).to(dtype)
    targets_T = torch.randint(VOCABULARY.size, (COUNT,), generator=draw)
    weights_T = torch.rand(COUNT, generator=draw)
    return [hidden_TD.requires_grad_(), weight_VD.requires_grad_(), targets_T, weights_T]


def learnt(loss: Loss, inputs: list[Tensor]) -> list[Tensor]:
    gradients = torch.autograd.grad(0.25 * loss.total, inputs[:2])
    assert [one.dtype for one in gradients] == [one.dtype for one in inputs[:2]]
    return [*(one.float() for one in gradients), *(one.detach() for one in loss)]


def check(dtype: torch.dtype, close: float, z_loss: float) -> None:
    inputs = hidden_TD, weight_VD, targets_T, weights_T = drawn(dtype)
    plain = masked_cross_entropy(hidden_TD @ weight_VD.T, targets_T, weights_T, VOCABULARY, z_loss)
    wanted = learnt(plain, inputs)
    found = learnt(head.head_loss(*inputs, VOCABULARY, z_loss), inputs)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=close, atol=close * float(two.abs().max()))


@pytest.mark.parametrize("rows", [1, 5, COUNT, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_are_as_whole_logits(
    monkeypatch: pytest.MonkeyPatch, rows: int, z_loss: float, dtype: torch.dtype
) -> None:
    monkeypatch.setitem(head.CHUNK, "cpu", rows * VOCABULARY.size)
    check(dtype, CLOSE[dtype], z_loss)


def test_autocast_is_obeyed() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        check(torch.float32, CLOSE[torch.bfloat16], 0.01)
        exact = drawn(torch.float32)
        rough = head.head_loss(*exact, VOCABULARY).total
    assert rough != head.head_loss(*exact, VOCABULARY).total


def test_nothing_to_predict_is_a_loss_of_zero() -> None:
    inputs = [one[:0] if number != 1 else one for number, one in enumerate(drawn(torch.float32))]
    loss = head.head_loss(*inputs, VOCABULARY)
    hidden_TD, weight_VD, *sums = learnt(loss, inputs)
    assert hidden_TD.shape == (0, WIDTH)
    assert not weight_VD.any()
    assert not any(one.any() for one in sums)


def test_without_gradients_the_loss_is_the_same() -> None:
    inputs = drawn(torch.float32)
    wanted = head.head_loss(*inputs, VOCABULARY)
    with torch.no_grad():
        silent = head.head_loss(*inputs, VOCABULARY)
    for one, two in zip(silent, wanted, strict=True):
        assert torch.equal(one, two.detach())
