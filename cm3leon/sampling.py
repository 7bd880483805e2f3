"""Sampling of the next token from logits: small pure functions, in the order of their use.

Called by the engine at every step: logits of several streams -> `combine` (guidance) -> temperature
-> `top_k` -> `top_p` -> `draw`. The input logits are those of allowed ids only.

Shapes: W = guidance streams (with the prompt first), B = samples, V = ids that may be drawn.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenizer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters.

    The scales for editing are the paper's; it gives no temperature, top-p, k or alpha, and its
    guidance scale only in a plot (CM3Leon, Figure 4).
    """

    temperature: float = 1.0  # 0 takes the likeliest token
    top_k: int | None = None
    top_p: float | None = None
    cfg_scale: float = 3.0
    contrastive: bool = False  # CD-K instead of classifier-free guidance
    contrastive_k: int = 8
    contrastive_alpha: float = 0.5
    image_scale: float = 1.5  # editing: guidance scale of the source image
    text_scale: float = 7.5  # editing: guidance scale of the instruction
    keep: float = 0.0  # editing: nats added to the source's code at its own position (ours)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.contrastive_k < 1:
            raise UserError(f"contrastive_k is {self.contrastive_k}; it must be at least 1")
        if not 0 < self.contrastive_alpha <= 1:
            raise UserError(
                f"contrastive_alpha is {self.contrastive_alpha}; it must be above 0 and at most 1"
            )
        for name in ("cfg_scale", "image_scale", "text_scale", "keep"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")


def combine(logits_WBV: Tensor, sampling: Sampling) -> Tensor:
    """Combine the logits of all streams into one guided distribution.

    One stream is returned unchanged. Two streams are with and without the prompt; three are
    instruction and image, image only, neither.
    """
    if len(logits_WBV) == 1:
        return logits_WBV[0]
    if len(logits_WBV) == 2:
        cond_BV, uncond_BV = logits_WBV
        if sampling.contrastive:
            k, alpha = sampling.contrastive_k, sampling.contrastive_alpha
            return contrast(cond_BV, uncond_BV, k, alpha)
        return guide(cond_BV, uncond_BV, sampling.cfg_scale)
    full_BV, image_only_BV, uncond_BV = logits_WBV
    return guide_edit(full_BV, image_only_BV, uncond_BV, sampling.image_scale, sampling.text_scale)


def guide(cond_BV: Tensor, uncond_BV: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance: move away from the prediction without the prompt."""
    return uncond_BV + scale * (cond_BV - uncond_BV)


def guide_edit(
    full_BV: Tensor, image_only_BV: Tensor, uncond_BV: Tensor, image_scale: float, text_scale: float
) -> Tensor:
    """Apply guidance with one weight each for image and instruction (after InstructPix2Pix)."""
    towards_image_BV = image_scale * (image_only_BV - uncond_BV)
    towards_text_BV = text_scale * (full_BV - image_only_BV)
    return uncond_BV + towards_image_BV + towards_text_BV


def contrast(cond_BV: Tensor, uncond_BV: Tensor, k: int, alpha: float) -> Tensor:
    """Apply CM3Leon's contrastive decoding, CD-K: log p_cond - log p_uncond over the plausible ids.

    An id is plausible with at least `alpha` times the k-th largest p_cond; k = 1 is plain
    contrastive decoding. All other ids get -inf.
    """
    cond_BV, uncond_BV = cond_BV.log_softmax(-1), uncond_BV.log_softmax(-1)
    kth_B1 = cond_BV.topk(min(k, cond_BV.shape[-1])).values[:, -1:]
    plausible_BV = cond_BV >= kth_B1 + math.log(alpha)
    return (cond_BV - uncond_BV).masked_fill(~plausible_BV, -torch.inf)


def favour(logits_BV: Tensor, columns_B: Tensor, keep: float) -> Tensor:
    """Make one id of each row `keep` nats likelier.

    An edit leaves most of its source unchanged, and a code shows only its own surroundings, so the
    source's code is a good guess at its position.
    """
    return logits_BV.scatter_add(
        1, columns_B.unsqueeze(1), logits_BV.new_full((len(columns_B), 1), keep)
    )


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Mask all but the k likeliest ids of each row (and ties with the last of them)."""
    kth_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Mask all but the fewest likeliest ids whose total probability is at least `p`."""
    sorted_BV, order_BV = logits_BV.softmax(-1).sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    outside_BV = torch.zeros_like(before_BV, dtype=torch.bool)
    outside_BV.scatter_(-1, order_BV, before_BV >= p)
    outside_BV.scatter_(-1, order_BV[:, :1], False)  # the likeliest stays, whatever p is
    return logits_BV.masked_fill(outside_BV, -torch.inf)


def draw(logits_BV: Tensor, noise_B: Tensor) -> Tensor:
    """Draw one id per row: where the uniform `noise_B` in [0, 1) falls on the cumulative softmax.

    One random number per row, whatever V is: a row draws the same id alone and in a batch.
    """
    cumulated_BV = logits_BV.double().softmax(-1).cumsum(-1)
    point_B1 = noise_B.to(cumulated_BV).unsqueeze(-1) * cumulated_BV[:, -1:]
    return torch.searchsorted(cumulated_BV, point_B1, right=True).squeeze(-1)


def choose(logits_BV: Tensor, sampling: Sampling, noise_B: Tensor) -> Tensor:
    """Apply temperature, top-k and top-p, then draw; at temperature 0 return the likeliest id."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        logits_BV = top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = top_p(logits_BV, sampling.top_p)
    return draw(logits_BV, noise_B)
