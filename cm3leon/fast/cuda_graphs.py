"""The decode step on a GPU: recorded once as a CUDA graph, then started with one call.

Between engine, which asks for a step, and decode, whose step it records. Without it the GPU would
wait for Python after each of hundreds of small operations.

Shapes: R = rows, C = rows of the whole cache, D = width, N = heads, H = head size, S = slots,
T = C * S.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cm3leon.attention import KVCache
from cm3leon.fast import kernels
from cm3leon.fast.decode import FastDecoder
from cm3leon.fast.native import NativeDecoder
from cm3leon.model import Decoder


def stepper(model: Decoder, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """A function of ids_R that gives the hidden states after the final norm, hidden_RD; the first R
    rows of the cache, which are not empty, grow by one."""
    if cache.device.type == "cuda":
        return Graphs(FastDecoder.of(model), cache)
    return partial((NativeDecoder.of(model) or FastDecoder.of(model)).step, cache)


class Graphs:
    """A step over one cache as CUDA graphs, one for each number of rows: the host says no more than
    «go on». How far the rows are is read on the device."""

    def __init__(self, fast: FastDecoder, cache: KVCache) -> None:
        self.fast, self.cache = fast, cache
        self.ids_C = torch.zeros_like(cache.lengths_B)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.attend = self.by_kernel if kernels.here(cache.device) else self.by_bias
        self.bias_C11S = cache.k_YBSNH.new_zeros(0)

    def __call__(self, ids_R: Tensor) -> Tensor:
        rows = len(ids_R)
        padded = rows if rows <= 8 else min(-(-rows // 8) * 8, len(self.ids_C))  # few graphs
        self.ids_C[:rows] = ids_R
        if padded not in self.graphs:
            self.graphs[padded] = self._record(padded)
        graph, hidden_RD = self.graphs[padded]
        graph.replay()
        self.cache.advance([1] * rows)
        return hidden_RD[:rows]

    def _record(self, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """What is run before and while recording is written to the slots of the first replay. Rows
        that only fill up are empty, and stay so."""
        self._read(rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            hidden_RD = self._read(rows)
        return graph, hidden_RD

    def _read(self, rows: int) -> Tensor:
        lengths_R = self.cache.lengths_B[:rows]
        if self.attend == self.by_bias:
            hidden_RS = self.cache.slots_S > lengths_R.unsqueeze(1)
            bias_RS = self.cache.k_YBSNH.new_zeros(hidden_RS.shape)
            self.bias_C11S = bias_RS.masked_fill_(hidden_RS, -torch.inf)[:, None, None]
        return self.fast.read(self.ids_C[:rows], lengths_R.unsqueeze(1), self.attend)

    def by_kernel(self, layer: int, q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor) -> Tensor:
        """Attention that looks up the lengths itself."""
        k_CSNH, v_CSNH = self.cache.k_YBSNH[layer], self.cache.v_YBSNH[layer]
        return kernels.attend(q_RNH, k_RNH, v_RNH, k_CSNH, v_CSNH, self.cache.lengths_B)

    def by_bias(self, layer: int, q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor) -> Tensor:
        """Attention over all slots, whatever the lengths."""
        rows = len(q_RNH)
        places_R = self.cache.starts_B[:rows] + self.cache.lengths_B[:rows]
        for flat_TNH, x_RNH in zip(self.cache.flat[layer], (k_RNH, v_RNH), strict=True):
            flat_TNH.index_copy_(0, places_R, x_RNH)
        k_RNSH, v_RNSH = (
            x[layer, :rows].transpose(1, 2) for x in (self.cache.k_YBSNH, self.cache.v_YBSNH)
        )
        return F.scaled_dot_product_attention(
            q_RNH.unsqueeze(2), k_RNSH, v_RNSH, attn_mask=self.bias_C11S
        )
