"""One new id a row with as few operations as will do: what `Decoder.forward` gives, sooner.

Called by engine at every step. Waiting for weights is most of a step, and on a CPU all else is the
price of calling small operations: no modules here, matrices transposed once, queries and keys
normalised and turned together, sums folded into products. `Decoder.forward` is the plain path and a
test holds both to the same numbers.

Shapes: R = rows, D = width, N = heads, H = head size, S = slots looked at, F = width of the
feed-forward, E = 2 * D, K, M = widths of a matrix.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cm3leon.attention import KVCache, Window
from cm3leon.model import NORM_EPS, Block, Decoder, FeedForward, rotate

Function = Callable[[Tensor], Tensor]


class Product:
    """A matrix as it is multiplied with: plain, or packed by `precision`."""

    def __init__(self, module: nn.Module) -> None:
        self.weight_KM = module.weight.detach().T if isinstance(module, nn.Linear) else None
        self.forward = module.forward

    def __call__(self, x_RK: Tensor) -> Tensor:
        return self.forward(x_RK) if self.weight_KM is None else torch.mm(x_RK, self.weight_KM)

    def onto(self, sum_RM: Tensor, x_RK: Tensor) -> Tensor:
        """What is added to a sum."""
        if self.weight_KM is None:
            return sum_RM + self.forward(x_RK)
        return torch.addmm(sum_RM, x_RK, self.weight_KM)


class Layer:
    """The parts of one block, taken out of their modules."""

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        self.attention_norm, self.mlp_norm = norm_of(block.attention_norm), norm_of(block.mlp_norm)
        self.qkv, self.out = Product(attention.qkv), Product(attention.out)
        self.qk_norm = joint_norm(attention.q_norm, attention.k_norm) if attention.qk_norm else None
        self.down = Product(mlp.down)
        self.wide = wide_of(mlp)
        self.gated = mlp.gate is not None or mlp.wide is not None

    def inner(self, x_RD: Tensor) -> Tensor:
        """The hidden part of the feed-forward: what `down` is multiplied with."""
        if not self.gated:
            return torch.relu_(self.wide(x_RD))
        gate_RF, up_RF = self.wide(x_RD).chunk(2, dim=1)
        return F.silu(gate_RF).mul_(up_RF)


class FastDecoder:
    """A decoder's face for one id a row. Made of its weights as they are: make it anew when they
    are replaced."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.layers = [Layer(cast(Block, block)) for block in model.blocks]
        self.norm = norm_of(model.norm)

    def __call__(self, ids_R: Tensor, cache: KVCache) -> Tensor:
        """Hidden states after the final norm, hidden_RD; every row of the cache grows by one."""
        window = cache.open(1)
        hidden_RD = self.read(ids_R, window)
        cache.advance([1] * len(ids_R))
        return hidden_RD

    def read(self, ids_R: Tensor, window: Window) -> Tensor:
        """The same without a word on how far the rows are, so that it can be recorded once and
        played again."""
        model, rows = self.model, len(ids_R)
        heads, head_size = model.config.heads, model.config.head_size
        assert window.places_T is not None
        x_RD = model.embed.weight[ids_R]
        rotation: tuple[Tensor, Tensor] | None = None
        if model.position is None:
            rotation = model.rotation(window.positions_BL, 1, x_RD)
        else:
            x_RD = x_RD + model.position.weight[window.positions_BL.flatten()]
        bias = None if window.bias_BLS is None else window.bias_BLS.unsqueeze(1)
        for layer, flat, seen in zip(self.layers, window.flat, window.heads_first(), strict=True):
            qkv_R3NH = layer.qkv(layer.attention_norm(x_RD)).view(rows, 3, heads, head_size)
            qk_R2NH = qkv_R3NH[:, :2]
            if layer.qk_norm is not None:
                qk_R2NH = layer.qk_norm(qk_R2NH)
            if rotation is not None:
                qk_R2NH = rotate(qk_R2NH, *rotation)
            flat[0].index_copy_(0, window.places_T, qk_R2NH[:, 1])
            flat[1].index_copy_(0, window.places_T, qkv_R3NH[:, 2])
            q_RN1H = qk_R2NH[:, 0].unsqueeze(2)
            out_RN1H = F.scaled_dot_product_attention(q_RN1H, *seen, attn_mask=bias)
            x_RD = layer.out.onto(x_RD, out_RN1H.reshape(x_RD.shape))
            x_RD = layer.down.onto(x_RD, layer.inner(layer.mlp_norm(x_RD)))
        return self.norm(x_RD)


def norm_of(module: nn.Module) -> Function:
    """A norm as one call, or nearly: PyTorch makes an RMS norm of eight small operations, and a
    layer norm of x and -x side by side, whose mean is nothing, is the same in three."""
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    shape, weight, eps = list(module.normalized_shape), module.weight, module.eps
    if isinstance(module, nn.LayerNorm):
        bias, small = module.bias, module.eps
        return lambda x_RD: torch.layer_norm(x_RD, shape, weight, bias, small, False)
    (width,) = shape
    weight_E = None if not module.elementwise_affine else torch.cat((weight, weight))
    small = NORM_EPS if eps is None else eps

    def both_signs(x_RD: Tensor) -> Tensor:
        x_RE = torch.cat((x_RD, -x_RD), dim=1)
        return torch.layer_norm(x_RE, [2 * width], weight_E, None, small, False)[:, :width]

    return both_signs


def joint_norm(q_norm: nn.LayerNorm, k_norm: nn.LayerNorm) -> Function:
    """The norms of queries and keys over x_R2NH, which holds both."""
    shape, eps = list(q_norm.normalized_shape), q_norm.eps
    if not q_norm.elementwise_affine:
        return lambda x_R2NH: torch.layer_norm(x_R2NH, shape, None, None, eps, False)
    pairs: Sequence[Sequence[Tensor]] = [(n.weight, n.bias) for n in (q_norm, k_norm)]
    weight_2NH, bias_2NH = (torch.stack(both).unsqueeze(1) for both in zip(*pairs, strict=True))

    def both(x_R2NH: Tensor) -> Tensor:
        x_R2NH = torch.layer_norm(x_R2NH, shape, None, None, eps, False)
        return torch.addcmul(bias_2NH, x_R2NH, weight_2NH)

    return both


def wide_of(mlp: FeedForward) -> Function:
    """The matrix into the feed-forward; with a gate, gate and up side by side. They are one product
    where `precision.prepare` has laid them so."""
    if mlp.wide is not None:
        return Product(mlp.wide)
    if mlp.gate is None:
        return Product(mlp.up)
    assert isinstance(mlp.up, nn.Linear)
    gate_FD, up_FD = mlp.gate.weight.detach(), mlp.up.weight.detach()
    if gate_FD.data_ptr() + gate_FD.nbytes == up_FD.data_ptr():
        wide_DF = gate_FD.as_strided((2 * len(gate_FD), gate_FD.shape[1]), gate_FD.stride()).T
        return lambda x_RD: torch.mm(x_RD, wide_DF)
    return lambda x_RD: torch.cat((x_RD @ gate_FD.T, x_RD @ up_FD.T), dim=1)
