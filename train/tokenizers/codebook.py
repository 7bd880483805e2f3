"""Codebook updates: moving-average entries, and re-seeding of unused ones.

Done at every training step of the image tokenizer, in addition to the gradient step.
"""

# Shapes: B = batch, L = codes per image, H, W = feature height and width, E = code width,
#         K = codebook entries, N = B * L

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.vqgan.network import VQGAN


@dataclass(frozen=True, kw_only=True)
class CodebookConfig:
    """Settings of the codebook's moving average and of the re-seeding of unused entries."""

    ema: float | None = 0.99  # decay of the moving average; None: learned by gradient, as in taming
    dead: float = 0.03  # an entry is re-seeded if its moving count is below this share of the mean

    def __post_init__(self) -> None:
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"ema must be between 0 and 1, or null for none, got {self.ema}")
        if not 0 <= self.dead < 1:
            raise UserError(f"dead must be in 0..1, got {self.dead}")


class Codebook:
    """Moving-average entries (van den Oord et al., 1711.00937, appendix A) and their re-seeding."""

    def __init__(
        self, net: VQGAN, config: CodebookConfig, seed: int, *, fixed: bool = False
    ) -> None:
        """Initialise the counts. `fixed`: entries do not change, but their use is still counted."""
        weight_KE = net.quantize.embedding.weight
        weight_KE.requires_grad_(config.ema is None and not fixed)
        self.net, self.config, self.seed, self.fixed = net, config, seed, fixed
        self.count_K = weight_KE.new_zeros(len(weight_KE))
        self.sum_KE = torch.zeros_like(weight_KE)

    def tensors(self) -> dict[str, Tensor]:
        return {"codebook.count": self.count_K, "codebook.sum": self.sum_KE}

    def restore(self, table: Mapping[str, Tensor]) -> None:
        self.count_K.copy_(table["codebook.count"])
        self.sum_KE.copy_(table["codebook.sum"])

    @torch.no_grad()
    def update(self, z_BEHW: Tensor, codes_BL: Tensor, step: int) -> int:
        """Move entries to the mean of their assigned vectors; return how many were re-seeded."""
        decay = self.config.ema if self.config.ema is not None else 0.99
        z_NE = z_BEHW.permute(0, 2, 3, 1).reshape(-1, z_BEHW.shape[1])
        codes_N = codes_BL.flatten()
        count_K = torch.bincount(codes_N, minlength=len(self.count_K)).float()
        sum_KE = torch.zeros_like(self.sum_KE).index_add_(0, codes_N, z_NE)
        self.count_K.lerp_(count_K, 1 - decay)
        self.sum_KE.lerp_(sum_KE, 1 - decay)
        if self.fixed:
            return 0
        weight_KE = self.net.quantize.embedding.weight
        if self.config.ema is not None:
            known = self.count_K > 1e-8  # the others are unchanged
            weight_KE[known] = self.sum_KE[known] / self.count_K[known].unsqueeze(1)
        mean = len(codes_N) / len(self.count_K)
        dead = (self.count_K < self.config.dead * mean).nonzero().flatten()
        if step == 0:  # no counts yet: every entry is initialised with an encoder output
            dead = torch.arange(len(self.count_K), device=dead.device)
        if len(dead):
            rng = np.random.default_rng((self.seed, step, 1))
            # in proportion to the error, so that frequent equal vectors do not get a second entry
            far_N = (z_NE - self.net.quantize.entries()[codes_N]).square().sum(1).double() + 1e-9
            share_N = (far_N / far_N.sum()).cpu().numpy()
            chosen = rng.choice(len(z_NE), size=len(dead), p=share_N)
            picked = torch.from_numpy(chosen).to(dead.device)
            weight_KE[dead] = z_NE[picked]
            # An initial count that leaves time to be used before the entry counts as dead again.
            self.count_K[dead] = mean * max(10 * (1 - decay), 3 * self.config.dead)
            self.sum_KE[dead] = z_NE[picked] * self.count_K[dead].unsqueeze(1)
        return len(dead)


def keep_codes(net: VQGAN, folder: Path) -> None:
    """Load encoder and codebook of the image tokenizer in `folder` into `net`, and freeze them.

    The decoder is initialised from it too if both have the same shape. Raises UserError if the two
    networks compute codes differently, and like `ImageTokenizer.load`.
    """
    other = ImageTokenizer.load(folder).net
    wanted = replace(net.config, decoder_ch=other.config.decoder_ch)
    if wanted != other.config:
        unlike = [k for k, v in asdict(wanted).items() if v != getattr(other.config, k)]
        raise UserError(
            f"{folder} makes its codes otherwise: its {unlike[0]} is "
            f"{getattr(other.config, unlike[0])}, the recipe's {getattr(wanted, unlike[0])}; only "
            "decoder_ch may differ"
        )
    for name in ("encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"):
        part = getattr(net, name)
        if name != "decoder" or net.config == other.config:
            part.load_state_dict(getattr(other, name).state_dict())
        part.requires_grad_(name in ("post_quant_conv", "decoder"))
