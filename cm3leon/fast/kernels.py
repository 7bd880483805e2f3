"""Triton kernels of a decoding step on an NVIDIA GPU: int8 matrix product and attention.

Called by `quantize` and `cuda_graphs`, which check `here` first: Triton comes with PyTorch's CUDA
builds and is imported nowhere else. For a few rows, a product is bound by reading its weights,
which are read once here, as int8. Attention reads the length of each row of the cache on the
device: it needs neither a mask nor lengths on the host, so one captured step serves all lengths.

Shapes: R = rows, K = width in, N = width out (product) or heads (attention), H = head size,
S = slots, C = rows of the whole cache.
"""

# pyright: basic, reportMissingImports=false, reportInvalidTypeForm=false

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

FEW = 4  # maximum rows of a product
TILE_N, TILE_K = 2, 1024  # outputs and inputs per tile; the best of seven tried on an H200
TILE_S = 64  # slots per tile; the best of three

triton: Any = None
tl: Any = None
if find_spec("triton") is not None:
    import triton
    import triton.language as tl


def here(device: torch.device) -> bool:
    """Return whether these kernels run on a device."""
    return device.type == "cuda" and triton is not None and torch.version.hip is None


def product(x_RK: Tensor, ints_NK: Tensor, scales_N: Tensor) -> Tensor:
    """Compute x @ (ints * scales).T for at most FEW rows, with sums in fp32, in x's dtype."""
    rows, width = x_RK.shape
    outputs = len(ints_NK)
    assert rows <= FEW, f"{rows} rows"
    assert ints_NK.is_contiguous()
    assert x_RK.stride(1) == 1
    y_RN = x_RK.new_empty(rows, outputs)
    product_kernel[(triton.cdiv(outputs, TILE_N),)](
        x_RK,
        ints_NK,
        scales_N,
        y_RN,
        outputs,
        width,
        x_RK.stride(0),
        rows=rows,
        tile_n=TILE_N,
        tile_k=TILE_K,
        num_warps=4,
    )
    return y_RN


def attend(
    q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor, k_CSNH: Tensor, v_CSNH: Tensor, places_R: Tensor
) -> Tensor:
    """Compute attention of one query per row, out_RNH.

    It covers the first `places_R` slots of the row's cache and the row's own key and value, which
    are stored in the slot after those.
    """
    rows, heads, head_size = q_RNH.shape
    out_RNH = q_RNH.new_empty(q_RNH.shape)
    assert k_CSNH.stride() == v_CSNH.stride()
    assert k_RNH.stride() == q_RNH.stride()
    attend_kernel[(rows, heads)](
        q_RNH,
        k_RNH,
        v_RNH,
        k_CSNH,
        v_CSNH,
        places_R,
        out_RNH,
        head_size**-0.5,
        q_RNH.stride(0),
        v_RNH.stride(0),
        k_CSNH.stride(0),
        k_CSNH.stride(1),
        heads=heads,
        size=head_size,
        tile_s=TILE_S,
        tile_h=triton.next_power_of_2(head_size),
        num_warps=4,
    )
    return out_RNH


if triton is not None:

    @triton.jit
    def product_kernel(
        x_ptr,
        ints_ptr,
        scales_ptr,
        y_ptr,
        outputs,
        width,
        x_stride,
        rows: tl.constexpr,
        tile_n: tl.constexpr,
        tile_k: tl.constexpr,
    ):
        """Compute `tile_n` outputs of all rows.

        Each row has its own accumulators, one for each element of a tile, which are reduced only at
        the end.
        """
        n = tl.program_id(0) * tile_n + tl.arange(0, tile_n)[:, None]
        k = tl.arange(0, tile_k)[None, :]
        inside = n < outputs
        lines = ints_ptr + n.to(tl.int64) * width
        sums0 = tl.zeros((tile_n, tile_k), tl.float32)
        sums1, sums2, sums3 = sums0, sums0, sums0
        for start in range(0, width, tile_k):
            at = start + k
            fits = at < width
            w = tl.load(lines + at, mask=inside & fits, other=0).to(tl.float32)
            x = x_ptr + at + tl.zeros_like(n)
            sums0 += w * tl.load(x, mask=fits & inside, other=0).to(tl.float32)
            if rows > 1:
                sums1 += w * tl.load(x + x_stride, mask=fits & inside, other=0).to(tl.float32)
            if rows > 2:
                sums2 += w * tl.load(x + 2 * x_stride, mask=fits & inside, other=0).to(tl.float32)
            if rows > 3:
                sums3 += w * tl.load(x + 3 * x_stride, mask=fits & inside, other=0).to(tl.float32)
        for row in tl.static_range(rows):
            if row == 0:
                y = tl.sum(sums0, 1)
            elif row == 1:
                y = tl.sum(sums1, 1)
            elif row == 2:
                y = tl.sum(sums2, 1)
            else:
                y = tl.sum(sums3, 1)
            to = tl.program_id(0) * tile_n + tl.arange(0, tile_n)
            y *= tl.load(scales_ptr + to, mask=to < outputs, other=0).to(tl.float32)
            tl.store(y_ptr + row * outputs + to, y.to(y_ptr.dtype.element_ty), mask=to < outputs)

    @triton.jit
    def attend_kernel(
        q_ptr,
        k_ptr,
        v_ptr,
        k_cache,
        v_cache,
        places_ptr,
        out_ptr,
        scale,
        q_stride,
        v_stride,
        row_stride,
        slot_stride,
        heads: tl.constexpr,
        size: tl.constexpr,
        tile_s: tl.constexpr,
        tile_h: tl.constexpr,
    ):
        """Compute one head of one row by tiles of slots, with an online softmax.

        The sums are rescaled whenever a larger score occurs (as in flash attention).
        """
        row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
        place = tl.load(places_ptr + row)
        h = tl.arange(0, tile_h)
        inside = h < size
        at = head * size + h
        q = tl.load(q_ptr + row * q_stride + at, mask=inside, other=0).to(tl.float32) * scale
        k_new = tl.load(k_ptr + row * q_stride + at, mask=inside, other=0)
        v_new = tl.load(v_ptr + row * v_stride + at, mask=inside, other=0)
        own = row * row_stride + place * slot_stride + at
        tl.store(k_cache + own, k_new, mask=inside)
        tl.store(v_cache + own, v_new, mask=inside)
        most = tl.sum(q * k_new.to(tl.float32), 0)
        total = most * 0 + 1.0
        sums = v_new.to(tl.float32)
        for start in range(0, place, tile_s):
            slot = start + tl.arange(0, tile_s)
            seen = slot < place
            where = row * row_stride + slot[:, None].to(tl.int64) * slot_stride + at[None, :]
            shown = seen[:, None] & inside[None, :]
            k = tl.load(k_cache + where, mask=shown, other=0).to(tl.float32)
            v = tl.load(v_cache + where, mask=shown, other=0).to(tl.float32)
            scores = tl.where(seen, tl.sum(k * q[None, :], 1), float("-inf"))
            above = tl.maximum(most, tl.max(scores, 0))
            shares = tl.exp(scores - above)
            shrunk = tl.exp(most - above)
            sums = sums * shrunk + tl.sum(shares[:, None] * v, 0)
            total = total * shrunk + tl.sum(shares, 0)
            most = above
        out = out_ptr + row * heads * size + at
        tl.store(out, (sums / total).to(out_ptr.dtype.element_ty), mask=inside)
