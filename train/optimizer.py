"""The decoder's optimisers: AdamW alone, or Muon for the matrices of its blocks and AdamW beside.

Made by `engine`, stepped by `loop`, its moments kept by `state`.
"""

import torch
from torch import Tensor

from cm3leon.model import Decoder
from tokenizer.distributed import DistributedContext
from train.config import OptimizerConfig

ALONE = DistributedContext()
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic's coefficients of Muon's authors
ITERATIONS = 5


def new_optimizer(
    model: Decoder, config: OptimizerConfig, dist: DistributedContext = ALONE, *, bf16: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimiser; the decoder has matrices only, so every weight decays.

    bf16: whether Muon's products may be in bf16, which a CPU without circuits for it makes 28 times
    slower than fp32.
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
    """Muon: momentum made orthogonal, scaled to AdamW's size so that one rate suits both.

    What `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`, in a type of one's choice,
    each process making the updates of its share of the matrices. Source: arXiv 2502.16982.
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
        """The gradient after Nesterov's momentum."""
        assert weight.grad is not None
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(state["momentum_buffer"], momentum)

    def _updates(self, ahead: list[Tensor]) -> list[Tensor]:
        """Each made orthogonal, by one process for all."""
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
    """About U V^T of the matrix U S V^T, by Newton and Schulz; in the matrix's own type."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the blocks, AdamW for the rest; ours, the paper has Adam alone.

    One optimiser to those who use it: the parts share its groups and its state.
    """

    def __init__(
        self, model: Decoder, config: OptimizerConfig, dist: DistributedContext, dtype: torch.dtype
    ) -> None:
        named = list(model.named_parameters())
        inside = [w for name, w in named if name.startswith("blocks.") and w.ndim == 2]
        known = {id(weight) for weight in inside}
        beside = [w for _, w in named if id(w) not in known]  # embeddings, and norms that learn
        self.parts = (Muon(inside, config, dist, dtype), adamw(beside, config))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()
