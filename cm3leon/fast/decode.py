"""Fast single-token decoding step; same result as `Decoder.forward`.

Used on a CPU where `native` does not apply, and captured by `cuda_graphs` on a GPU. Most of a step
is waiting for weights, and on a CPU the rest is the overhead of calling small operations. Hence
there are no modules here, matrices are transposed once, queries and keys are normalised and rotated
together, and additions are fused into matrix products. `Decoder.forward` is the plain path, and a
test checks that both give the same numbers.

Shapes: R = rows, D = width, N = heads, H = head size, S = slots attended to,
C = rows of the whole cache, Y = layers, T = C * S, F = width of the feed-forward, E = 2 * D,
K, M = widths of a matrix.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cm3leon.attention import KVCache
from cm3leon.fast.cached import keep, kept
from cm3leon.fast.quantize import MkldnnLinear, PackedSwiGLU
from cm3leon.model import NORM_EPS, Block, Decoder, FeedForward, rotate, rotation_of

Function = Callable[[Tensor], Tensor]
Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, q_RNH, k_RNH, v_RNH -> out
MANY = 4  # rows from which PyTorch's products of large matrices on a CPU are slower than oneDNN's
LARGE = 2**21  # elements of such a matrix
SPARE = 2**29  # maximum bytes of second copies of those


class Product:
    """Matrix to multiply with: plain, or a module packed by `quantize`."""

    def __init__(self, matrix: nn.Module | Tensor) -> None:
        weight_MK = matrix.weight if isinstance(matrix, nn.Linear) else matrix
        self.weight_KM = weight_MK.detach().T if isinstance(weight_MK, Tensor) else None
        self.forward = cast(Function, matrix)
        self.packed: nn.Module | None = None

    @property
    def large(self) -> bool:
        """True if the matrix is worth a call of `pack`."""
        weight_KM = self.weight_KM
        return (
            weight_KM is not None
            and weight_KM.device.type == "cpu"
            and weight_KM.dtype == torch.float32
            and weight_KM.numel() >= LARGE
            and MkldnnLinear.here()
        )

    def nbytes(self) -> int:
        """Return the bytes of the plain matrix."""
        return 0 if self.weight_KM is None else self.weight_KM.nbytes

    def pack(self) -> None:
        """Add a copy in the layout of oneDNN's kernels, used for MANY rows and more."""
        assert self.weight_KM is not None
        self.packed = MkldnnLinear(self.weight_KM.T)

    def __call__(self, x_RK: Tensor) -> Tensor:
        if self.packed is not None and len(x_RK) >= MANY:
            return self.packed(x_RK)
        return self.forward(x_RK) if self.weight_KM is None else torch.mm(x_RK, self.weight_KM)

    def onto(self, sum_RM: Tensor, x_RK: Tensor) -> Tensor:
        """Return the product added to `sum_RM`."""
        if self.weight_KM is None:
            return sum_RM + self.forward(x_RK)
        return torch.addmm(sum_RM, x_RK, self.weight_KM)


class FastLayer:
    """Weights of one block, taken out of their modules."""

    def __init__(self, block: Block) -> None:
        attention, mlp = block.attention, block.mlp
        self.attention_norm, self.mlp_norm = norm_of(block.attention_norm), norm_of(block.mlp_norm)
        self.qkv, self.out = Product(attention.qkv), Product(attention.out)
        self.qk_norm = joint_norm(attention.q_norm, attention.k_norm) if attention.qk_norm else None
        self.down = Product(mlp.down)
        self.wide = wide_of(mlp)
        self.gated = isinstance(mlp, PackedSwiGLU) or mlp.gate is not None
        self.squared = mlp.squared

    def inner(self, x_RD: Tensor) -> Tensor:
        """Compute the hidden activations of the feed-forward, the input of `down`."""
        if not self.gated:
            hidden_RF = torch.relu_(self.wide(x_RD))
            return hidden_RF.square_() if self.squared else hidden_RF
        gate_RF, up_RF = self.wide(x_RD).chunk(2, dim=1)
        return F.silu(gate_RF).mul_(up_RF)


class FastDecoder:
    """Decoder of one new id per row that uses a model's weights in place."""

    def __init__(self, model: Decoder) -> None:
        self.config, self.embed_VD = model.config, model.embed.weight
        self.positions_CD = None if model.position is None else model.position.weight
        self.layers = [FastLayer(cast(Block, block)) for block in model.blocks]
        self.norm = norm_of(model.norm)
        wides = [layer.wide for layer in self.layers]
        large = [wide for wide in wides if isinstance(wide, Product) and wide.large]
        self.large = large if sum(map(Product.nbytes, large)) <= SPARE else []
        self.packed = False

    @classmethod
    def of(cls, model: Decoder) -> "FastDecoder":
        """Return the fast decoder of this model, cached until its weights change."""
        there = kept(model)
        return there if isinstance(there, cls) else keep(model, cls(model))

    def step(self, cache: KVCache, ids_R: Tensor) -> Tensor:
        """Return hidden states after the final norm, hidden_RD, on a CPU.

        The rows of the cache, which begin with the first and are not empty, grow by one token.
        """
        assert cache.rows.start == 0, "the first rows decode"
        window = cache.open(1)
        assert window.bias_BLS is not None
        inputs = (ids_R, window.positions_BL, window.places_T, window.bias_BLS)
        inputs += (cache.k_YBSNH, cache.v_YBSNH)
        if len(ids_R) >= MANY and not self.packed:
            for wide in self.large:
                wide.pack()
            self.packed = True
        hidden_RD = self.read_rows(*inputs)
        cache.advance([1] * len(ids_R))
        return hidden_RD

    def read_rows(
        self,
        ids_R: Tensor,
        positions_R1: Tensor,
        places_R: Tensor,
        bias_R1S: Tensor,
        k_YCSNH: Tensor,
        v_YCSNH: Tensor,
    ) -> Tensor:
        """Run the step on tensors alone. Writes into the keys and values of the whole cache."""
        rows, bias_R11S = ids_R.shape[0], bias_R1S.unsqueeze(1)
        caches = (k_YCSNH, v_YCSNH)
        seen = [x[:, :rows, : bias_R1S.shape[2]].transpose(2, 3).unbind() for x in caches]
        flat = [x.flatten(1, 2).unbind() for x in caches]

        def attend(layer: int, q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor) -> Tensor:
            for flat_YTNH, x_RNH in zip(flat, (k_RNH, v_RNH), strict=True):
                flat_YTNH[layer].index_copy_(0, places_R, x_RNH)
            k_RNSH, v_RNSH = (x[layer] for x in seen)
            q_RN1H = q_RNH.unsqueeze(2)
            return F.scaled_dot_product_attention(q_RN1H, k_RNSH, v_RNSH, attn_mask=bias_R11S)

        return self.read(ids_R, positions_R1, attend)

    def read(self, ids_R: Tensor, positions_R1: Tensor, attend: Mix) -> Tensor:
        """Return hidden states of one id per row, hidden_RD.

        `attend` stores the keys and values of a layer, and attends to them.
        """
        rows, heads, head_size = ids_R.shape[0], self.config.heads, self.config.head_size
        x_RD = self.embed_VD[ids_R]
        rotation: tuple[Tensor, Tensor] | None = None
        if self.positions_CD is None:
            rotation = rotation_of(self.config, positions_R1, 1, x_RD)
        else:
            x_RD = x_RD + self.positions_CD[positions_R1.flatten()]
        for number, layer in enumerate(self.layers):
            qkv_R3NH = layer.qkv(layer.attention_norm(x_RD)).view(rows, 3, heads, head_size)
            qk_R2NH = qkv_R3NH[:, :2]
            if layer.qk_norm is not None:
                qk_R2NH = layer.qk_norm(qk_R2NH)
            if rotation is not None:
                qk_R2NH = rotate(qk_R2NH, *rotation)
            out = attend(number, qk_R2NH[:, 0], qk_R2NH[:, 1], qkv_R3NH[:, 2])
            x_RD = layer.out.onto(x_RD, out.reshape(rows, -1))
            x_RD = layer.down.onto(x_RD, layer.inner(layer.mlp_norm(x_RD)))
        return self.norm(x_RD)


def norm_of(module: nn.Module) -> Function:
    """Return a norm as a function of few operations.

    PyTorch computes an RMS norm in eight small operations. A layer norm of x and -x concatenated,
    whose mean is zero, gives the same in three.
    """
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    shape, weight, eps = list(module.normalized_shape), module.weight, module.eps
    if isinstance(module, nn.LayerNorm):
        bias, small = module.bias, module.eps
        return lambda x_RD: torch.layer_norm(x_RD, shape, weight, bias, small, False)
    (width,) = shape
    weight_E = None if not module.elementwise_affine else torch.cat((weight, weight))
    small = NORM_EPS if eps is None else eps

    def both_signs(x_RD: Tensor) -> Tensor:
        if x_RD.is_cuda:  # one operation on a GPU
            return F.rms_norm(x_RD, shape, weight, small)
        x_RE = torch.cat((x_RD, -x_RD), dim=1)
        return torch.layer_norm(x_RE, [2 * width], weight_E, None, small, False)[:, :width]

    return both_signs


def joint_norm(q_norm: nn.LayerNorm, k_norm: nn.LayerNorm) -> Function:
    """Return a function that normalises queries and keys together, in x_R2NH."""
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
    """Return the input projection of the feed-forward; with a gate, gate and up side by side.

    Gate and up are one product where `quantize.prepare` has placed them in one block of memory.
    """
    if isinstance(mlp, PackedSwiGLU):
        return Product(mlp.wide)
    if mlp.gate is None:
        return Product(mlp.up)
    assert isinstance(mlp.up, nn.Linear)
    gate_FD, up_FD = mlp.gate.weight.detach(), mlp.up.weight.detach()
    if gate_FD.data_ptr() + gate_FD.nbytes == up_FD.data_ptr():
        return Product(gate_FD.as_strided((2 * len(gate_FD), gate_FD.shape[1]), gate_FD.stride()))
    return lambda x_RD: torch.cat((x_RD @ gate_FD.T, x_RD @ up_FD.T), dim=1)
