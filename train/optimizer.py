"""What moves the decoder's weights: AdamW alone, or Muon for the matrices of its blocks.

Made by `pretrain`, stepped by `loop`, its moments kept by `state`.
"""

import torch

from cm3leon.model import Decoder
from train.config import OptimizerConfig


def new_optimizer(model: Decoder, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser; the decoder has matrices only, so every weight decays."""
    if config.matrices == "muon":
        return MuonAndAdamW(model, config)
    return adamw(list(model.parameters()), config)


def adamw(weights: list[torch.nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        weights,
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (arXiv 2502.16982: momentum made orthogonal, scaled to AdamW's size, so one rate suits
    both) for the matrices of the blocks, AdamW for the rest; ours, the paper has Adam alone.

    One optimiser to those who use it: the parts share its groups and its state.
    """

    def __init__(self, model: Decoder, config: OptimizerConfig) -> None:
        named = list(model.named_parameters())
        inside = [w for name, w in named if name.startswith("blocks.") and w.ndim == 2]
        known = {id(weight) for weight in inside}
        beside = [w for _, w in named if id(w) not in known]  # embeddings, and norms that learn
        self.parts = (
            torch.optim.Muon(
                inside,
                lr=0.0,
                weight_decay=config.weight_decay,
                momentum=config.betas[1],
                adjust_lr_fn="match_rms_adamw",
            ),
            adamw(beside, config),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        for part in self.parts:
            part.state = self.state

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for part in self.parts:
            part.step()
