"""Decoding step on a GPU as a CUDA graph: captured once, then launched with one call.

The engine requests a step; the captured step is that of `decode`. Without a graph the GPU would
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
    """Return a function from ids_R to the hidden states after the final norm, hidden_RD.

    Each call extends the first R rows of the cache, which must not be empty, by one token.
    """
    if cache.device.type == "cuda":
        return Graphs(FastDecoder.of(model), cache)
    return partial((NativeDecoder.of(model) or FastDecoder.of(model)).step, cache)


class Graphs:
    """CUDA graphs of a decoding step over one cache, one graph for each number of rows.

    The host only replays a graph; the lengths of the rows are read on the device.
    """

    def __init__(self, fast: FastDecoder, cache: KVCache) -> None:
        self.fast, self.cache = fast, cache
        self.ids_C = torch.zeros_like(cache.lengths_B)
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.attend = self.by_kernel if kernels.here(cache.device) else self.by_bias
        self.bias_C11S = cache.k_YBSNH.new_zeros(0)

    def __call__(self, ids_R: Tensor) -> Tensor:
        rows = len(ids_R)
        padded = rows if rows <= 8 else min(-(-rows // 8) * 8, len(self.ids_C))  # for fewer graphs
        self.ids_C[:rows] = ids_R
        if padded not in self.graphs:
            self.graphs[padded] = self._record(padded)
        graph, hidden_RD = self.graphs[padded]
        graph.replay()
        self.cache.advance([1] * rows)
        return hidden_RD[:rows]

    def _record(self, rows: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Capture the step for this number of rows.

        The runs before and during capture write to the slots of the first replay. Padding rows are
        empty, and stay so.
        """
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
        """Compute attention with a kernel that reads the lengths on the device."""
        k_CSNH, v_CSNH = self.cache.k_YBSNH[layer], self.cache.v_YBSNH[layer]
        return kernels.attend(q_RNH, k_RNH, v_RNH, k_CSNH, v_CSNH, self.cache.lengths_B)

    def by_bias(self, layer: int, q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor) -> Tensor:
        """Compute attention over all slots, whatever the lengths; a bias masks the unused ones."""
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
