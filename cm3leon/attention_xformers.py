"""xformers implementation of `attention.attend`; the only file that imports xformers.

Chosen by `attention.best_attention` on CUDA; must agree with the plain implementation.

Shapes: B = rows, L = new tokens, S = tokens a query may attend to, N = heads, H = head size.
"""

import torch
from torch import Tensor
from xformers.ops import LowerTriangularMask, memory_efficient_attention

from cm3leon.attention import is_causal

ALIGN = 8  # the kernels require rows of an additive mask to start at multiples of 8 elements


def attend(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, bias_BLS: Tensor | None = None
) -> Tensor:
    """Compute memory-efficient attention; no bias means causal, or one query that sees all keys."""
    if bias_BLS is None:
        bias = LowerTriangularMask() if is_causal(q_BLNH, k_BSNH) else None
        return memory_efficient_attention(q_BLNH, k_BSNH, v_BSNH, attn_bias=bias)
    rows, length, seen = bias_BLS.shape
    heads = q_BLNH.shape[2]
    padded = -(-seen // ALIGN) * ALIGN
    room_BLP = torch.zeros(rows, length, padded, dtype=q_BLNH.dtype, device=q_BLNH.device)
    aligned_BLS = room_BLP[:, :, :seen].copy_(bias_BLS)
    bias_BNLS = aligned_BLS.unsqueeze(1).expand(rows, heads, length, seen)
    return memory_efficient_attention(q_BLNH, k_BSNH, v_BSNH, attn_bias=bias_BNLS)
