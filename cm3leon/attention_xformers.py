"""The face of attention.attend over xformers; the only file that imports xformers.

Chosen by attention.best_attention on CUDA; must agree with the plain one.

Shapes: B = rows, L = new tokens, S = tokens a query may look at, N = heads, H = head size.
"""

import torch
from torch import Tensor
from xformers.ops import LowerTriangularMask, memory_efficient_attention

ALIGN = 8  # the kernels want rows of an additive mask to start at multiples of 8 elements


def attend(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask_BLS: Tensor | None = None
) -> Tensor:
    """Memory-efficient attention; no mask means causal over L == S tokens."""
    if mask_BLS is None:
        assert q_BLNH.shape[1] == k_BSNH.shape[1], "causal attention needs as many keys as queries"
        return memory_efficient_attention(q_BLNH, k_BSNH, v_BSNH, attn_bias=LowerTriangularMask())
    rows, length, seen = mask_BLS.shape
    heads = q_BLNH.shape[2]
    padded = -(-seen // ALIGN) * ALIGN
    room_BLP = torch.zeros(rows, length, padded, dtype=q_BLNH.dtype, device=q_BLNH.device)
    bias_BLS = room_BLP[:, :, :seen].masked_fill_(~mask_BLS, -torch.inf)
    bias_BNLS = bias_BLS.unsqueeze(1).expand(rows, heads, length, seen)
    return memory_efficient_attention(q_BLNH, k_BSNH, v_BSNH, attn_bias=bias_BNLS)
