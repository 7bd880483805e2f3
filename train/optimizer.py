"""Optimizers of the decoder: AdamW, or Muon for the matrices of the blocks with AdamW for the rest.

Created and stepped by `engine`; the moments are saved by `state`.
"""

import torch
from torch import Tensor

from cm3leon.model import Decoder
from tokenizer.distributed import DistributedContext
from train.config import OptimizerConfig

ALONE = DistributedContext()
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic, by Muon's authors
ITERATIONS = 5


def new_optimizer(
    model: Decoder, config: OptimizerConfig, dist: DistributedContext = ALONE, *, bf16: bool = False
) -> torch.optim.Optimizer:
    """Return the recipe's optimizer. Every parameter has weight decay: by default all are matrices.

    bf16: compute Muon's matrix products in bf16, which is 28 times slower than fp32 on a CPU
    without hardware support.
    """
    if config.matrices == "muon":
        return MuonAndAdamW(model, config, dist, torch.bfloat16 if bf16 else torch.float32)
    return adamw(list(model.parameters()), config)


def adamw(weights: list[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights,
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


class Muon(torch.optim.Optimizer):
    """Muon: orthogonalised momentum, scaled to the RMS of AdamW's updates so that both can share a
    learning rate.

    Same update as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`, but in a configurable
    type, and with the matrices distributed over the processes. Source: arXiv 2502.16982.
    """

    def __init__(
        self,
        weights: list[torch.nn.Parameter],
        config: OptimizerConfig,
        dist: DistributedContext,
        dtype: torch.dtype,
    ) -> None:
        defaults = {"lr": 0.0, "momentum": config.betas[1], "weight_decay": config.weight_decay}
        super().__init__(weights, defaults)
        self.dist, self.dtype = dist, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            ahead = [self._ahead(weight, group["momentum"]) for weight in moved]
            for weight, update in zip(moved, self._updates(ahead), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """Update the momentum and return the gradient with Nesterov momentum."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum_buffer"], momentum)

    def _updates(self, ahead: list[Tensor]) -> list[Tensor]:
        """Return the orthogonalised matrices; each is computed by one process and all-reduced."""
        size, rank = self.dist.size, self.dist.rank
        updates = [
            orthogonal(one, self.dtype) if number % size == rank else torch.zeros_like(one)
            for number, one in enumerate(ahead)
        ]
        if size > 1:
            flat = torch.cat([one.flatten() for one in updates])
            torch.distributed.all_reduce(flat)
            parts = flat.split([one.numel() for one in updates])
            updates = [part.view_as(one) for part, one in zip(parts, updates, strict=True)]
        return updates


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return approximately U V^T for a matrix U S V^T, by Newton-Schulz iterations in `dtype`.

    The result has the matrix's own type.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, AdamW for the rest. Ours; the paper uses Adam alone.

    A single optimizer to its callers: both parts share its parameter groups and state.
    """

    def __init__(
        self, model: Decoder, config: OptimizerConfig, dist: DistributedContext, dtype: torch.dtype
    ) -> None:
        named = list(model.named_parameters())
        inside = [w for name, w in named if name.startswith("blocks.") and w.ndim == 2]
        known = {id(weight) for weight in inside}
        beside = [w for _, w in named if id(w) not in known]  # embeddings and learned norms
        self.parts = (Muon(inside, config, dist, dtype), adamw(beside, config))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()
