"""Chunked output head and cross-entropy, without materialising all logits.

Computes the objective's sums from the decoder's hidden states in every training step; same result
as `Decoder.logits` and `masked_cross_entropy`. The gradient of a chunk is computed in the forward
pass, while its logits are still in the cache: this makes a step on a CPU faster (docs/log.md),
and on a GPU avoids the largest tensors of a step.
"""

# Shapes: T = target tokens, C = target tokens of a chunk, D = width, V = vocabulary

from typing import Any

import torch
from torch import Tensor

from tokenizer.vocabulary import Vocabulary
from train.objective import Loss, kinds_of

CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits per chunk


def head_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    vocabulary: Vocabulary,
    z_loss: float = 0.0,
    first: int = 0,
) -> Loss:
    """Compute `masked_cross_entropy` of the logits of these hidden states.

    weight_VD: rows of the head for the ids from `first` on; all targets must be among them. Matrix
    products use the type of the hidden states, or autocast's; all else is in float32.
    """
    device = hidden_TD.device.type
    dtype = hidden_TD.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    total, nats_T = _HeadLoss.apply(
        hidden_TD, weight_VD, targets_T - first, weights_T, z_loss, dtype
    )
    return Loss(total, weights_T.sum(), kinds_of(nats_T, targets_T, weights_T, vocabulary))


class _HeadLoss(torch.autograd.Function):
    """Weighted sum of the losses, differentiable once, and the nats of each target token."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        targets_T: Tensor,
        weights_T: Tensor,
        z_loss: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_TD.device.type
        size = max(1, CHUNK.get(device, CHUNK["cuda"]) // len(weight_VD))
        multiplied_VD = weight_VD.to(dtype)
        nats_T = weights_T.new_empty(len(targets_T))
        cost = weights_T.new_zeros(())
        wanted = any(ctx.needs_input_grad)
        if wanted:
            hidden_grad_TD = torch.empty_like(hidden_TD)
            weight_grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
            ctx.grads = [hidden_grad_TD, weight_grad_VD]
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets_T), size):
                part = slice(start, start + size)
                hidden_CD, targets_C1 = hidden_TD[part].to(dtype), targets_T[part, None]
                logits_CV = (hidden_CD @ multiplied_VD.T).float()
                z_C1 = logits_CV.logsumexp(dim=1, keepdim=True)
                nats_C1 = z_C1 - logits_CV.gather(1, targets_C1)
                nats_T[part] = nats_C1[:, 0]
                weights_C1 = weights_T[part, None]
                cost += ((nats_C1 + z_loss * z_C1.square()) * weights_C1).sum()
                if not wanted:
                    continue
                grad_CV = logits_CV.sub_(z_C1).exp_()
                if z_loss:
                    grad_CV *= 1 + 2 * z_loss * z_C1
                grad_CV.scatter_add_(1, targets_C1, grad_CV.new_full((1, 1), -1.0).expand_as(z_C1))
                grad_CV = grad_CV.mul_(weights_C1).to(dtype)
                ctx.grads[0][part] = grad_CV @ multiplied_VD
                if dtype == torch.float32:
                    ctx.grads[1].addmm_(grad_CV.T, hidden_CD)
                else:
                    ctx.grads[1] += grad_CV.T @ hidden_CD
        ctx.mark_non_differentiable(nats_T)
        ctx.dtype = weight_VD.dtype
        return cost, nats_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD = (grad.mul_(grads[0]) for grad in ctx.grads)
        del ctx.grads
        return hidden_TD, weight_VD.to(ctx.dtype), None, None, None, None
