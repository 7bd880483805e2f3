"""Muon as PyTorch has it, in a type of one's choice."""

import pytest
import torch

from tokenizer.distributed import DistributedContext
from train.config import OptimizerConfig
from train.optimizer import Muon, orthogonal


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_moves_weights_as_pytorchs_does(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(16, 48), (48, 16), (8, 8)]
    starts = [torch.randn(shape, generator=draw) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in starts] for _ in range(2))
    config = OptimizerConfig(matrices="muon")
    mine = Muon(ours, config, DistributedContext(), dtype)
    other = torch.optim.Muon(
        theirs, lr=0.0, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        for one, two in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=draw)
            two.grad = one.grad.clone()
        for optimiser in (mine, other):
            optimiser.param_groups[0]["lr"] = 1e-2
            optimiser.step()
    apart = 0.0 if dtype == torch.bfloat16 else 2e-3  # theirs is in bf16
    for one, two, start in zip(ours, theirs, starts, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=apart)
        assert (one - start).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_what_is_made_orthogonal_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix, torch.float32))
    assert values.min() > 0.6
    assert values.max() < 1.25
