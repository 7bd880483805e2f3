"""Reduced-precision weights for decoding, whose time is mostly spent on reading weights.

Between `checkpoint`, which reads fp32, and the engine: `prepare` replaces the matrices of a decoder
with packed modules of the same interface. Norms, embeddings, attention and the KV cache keep the
dtype of the activations. Quantised activations have one scale per row, so that a row never depends
on the other rows of its batch.

Shapes: T = rows of activations, K = width in, N = width out, G = groups of GROUP numbers of a row.
"""

import warnings
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cm3leon.fast import huge_pages as pages
from cm3leon.fast import kernels, native
from cm3leon.fast.cached import forget
from cm3leon.model import Block, Decoder, FeedForward
from tokenizer.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "int8", "int4"]
GROUP = 32  # weights of a row that share a scale and a zero in int4
FEW = 64  # slices of the head with fewer ids are not worth packing


def prepare(
    model: Decoder, precision: Precision, say: Callable[[str], None] | None = None
) -> Precision:
    """Convert a decoder's weights in place, irreversibly, and return their new precision.

    `auto` costs no quality: bf16 on a GPU that computes in it, otherwise fp32; so one request has
    one result. int8 and int4 must be requested. Raises UserError where they cannot run.
    """
    device = model.embed.weight.device
    if precision == "auto":
        fit = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if fit else "fp32"
    if say is not None:
        say(f"precision: {precision}")
    if precision != "fp32" and (precision == "bf16" or device.type == "cuda"):
        model.to(torch.bfloat16)
    forget(model)
    pack = packer(precision, model)
    for block in model.blocks:
        assert isinstance(block, Block)
        lay_side_by_side(block.mlp)
        if pack is not None:
            pack_block(block, pack)
    if pack is not None:
        head = PackedHead(model.head_weight, pack)
        model.logits = head.logits  # for this instance only
    if device.type == "cpu":
        pages.settle([*model.parameters(), *model.buffers()])
    return precision


@torch.no_grad()
def lay_side_by_side(mlp: FeedForward) -> None:
    """Place gate and up in one block of memory, so that one product can read both.

    The weights keep their names and take no more memory.
    """
    if mlp.gate is not None and isinstance(mlp.up, nn.Linear):
        wide_FD = torch.cat((mlp.gate.weight, mlp.up.weight))
        mlp.gate.weight.data, mlp.up.weight.data = wide_FD.chunk(2)


def pack_block(block: Block, pack: Callable[[Tensor], nn.Module]) -> None:
    """Replace the matrices of one block with packed ones."""
    attention, mlp = block.attention, block.mlp
    qkv, out, up, down = (
        cast(nn.Linear, module).weight
        for module in (attention.qkv, attention.out, mlp.up, mlp.down)
    )
    attention.qkv, attention.out, mlp.down = pack(qkv), pack(out), pack(down)
    if mlp.gate is None:
        mlp.up = pack(up)
    else:
        block.mlp = PackedSwiGLU(pack(torch.cat((mlp.gate.weight, up))), mlp.down)


def packer(precision: Precision, model: Decoder) -> Callable[[Tensor], nn.Module] | None:
    """Return a function that packs a plain matrix, or None where plain matrices are best."""
    on_cpu = model.embed.weight.device.type == "cpu"
    if precision == "fp32":
        return None
    if precision == "bf16":
        return MkldnnLinear if on_cpu and MkldnnLinear.here(bf16=True) else None
    if precision == "int8":
        if not on_cpu:
            return Int8Linear
        fits = native.whole_is_fast() and native.suits(model, native.WHOLE_LANES)
        return NativeInt8Linear if fits else DynamicInt8Linear
    if precision == "int4":
        return Int4Linear
    raise UserError(f"unknown precision {precision!r}; use auto, fp32, bf16, int8 or int4")


class MkldnnLinear(nn.Module):
    """Linear layer on a CPU in oneDNN's layout: of bf16 from `prepare`, of fp32 from `decode`."""

    packed: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            weight = torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().contiguous())
        self.register_buffer("packed", weight)

    @staticmethod
    def here(*, bf16: bool = False) -> bool:
        """Return whether this PyTorch has the kernels and, for `bf16`, this CPU supports them."""
        can = torch.cpu.get_capabilities()
        wide = all(can.get(f"avx512_{part}") for part in ("bw", "vl", "dq"))
        suits = wide or bool(can.get("avx_ne_convert"))
        return hasattr(torch.ops.mkldnn, "_linear_pointwise") and (suits or not bf16)

    def forward(self, x_TK: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_TK, self.packed, None, "none", [], "")


class DynamicInt8Linear(nn.Module):
    """CPU linear layer with int8 weights, scaled per output, and int8 activations, scaled per row.

    The kernel has one scale for all its rows, from the range of its input. Each row is therefore
    divided by its own largest absolute value, and one more row holds 1 and -1: the range, and with
    it the result of a row, is always the same. A CPU without VNNI adds two products in 16 bits,
    where activations of 8 bits overflow: there they have 7.
    """

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        outputs, width = weight_NK.shape
        plain_NK = weight_NK.detach().float().contiguous()
        scales_N, zeros_N = to_int8(plain_NK)[0], torch.zeros(outputs, dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation; the kernel has no other API yet
            quantised = torch.quantize_per_channel(plain_NK, scales_N, zeros_N, 0, torch.qint8)
            self.packed = torch.ops.quantized.linear_prepack(quantised, None)
        self.narrow = not torch.cpu.get_capabilities().get("avx512_vnni", False)
        self.range_1K = torch.zeros(1, width)
        self.range_1K[0, :2] = torch.tensor([1.0, -1.0])

    def forward(self, x_TK: Tensor) -> Tensor:
        most_T1 = torch.linalg.vector_norm(x_TK.float(), torch.inf, dim=1, keepdim=True)
        most_T1.clamp_(min=1e-30)
        rows = torch.cat((x_TK / most_T1, self.range_1K))
        y_TN = torch.ops.quantized.linear_dynamic(rows, self.packed, self.narrow)[:-1] * most_T1
        return y_TN.to(x_TK.dtype)


class NativeInt8Linear(nn.Module):
    """`DynamicInt8Linear` by native.c: faster, especially for few rows (docs/log.md)."""

    ints_NK: Tensor
    scales_N: Tensor
    sums_N: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        scales_N, ints_NK = to_int8(weight_NK.detach().float())
        self.register_buffer("ints_NK", ints_NK)
        self.register_buffer("scales_N", scales_N)
        self.register_buffer("sums_N", ints_NK.sum(1, dtype=torch.int32))

    def forward(self, x_TK: Tensor) -> Tensor:
        y_TN = native.multiply(x_TK, self.ints_NK, self.scales_N, self.sums_N)
        return y_TN.to(x_TK.dtype)


class Int8Linear(nn.Module):
    """Linear layer with int8 weights, one scale per output, and activations in their own dtype."""

    ints_NK: Tensor
    scales_N: Tensor

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        scales_N, ints_NK = to_int8(weight_NK.detach().float())
        self.register_buffer("ints_NK", ints_NK)
        self.register_buffer("scales_N", scales_N.to(weight_NK.dtype))

    def forward(self, x_TK: Tensor) -> Tensor:
        if len(x_TK) <= kernels.FEW and kernels.here(x_TK.device):
            return kernels.product(x_TK, self.ints_NK, self.scales_N)
        return F.linear(x_TK, self.ints_NK.to(x_TK.dtype)) * self.scales_N


class Int4Linear(nn.Module):
    """Linear layer with int4 weights, a scale and a zero per GROUP, and bf16 activations."""

    def __init__(self, weight_NK: Tensor) -> None:
        super().__init__()
        if weight_NK.shape[1] % (2 * GROUP) or weight_NK.shape[0] % 16:
            raise UserError(
                f"int4 wants widths that are multiples of {2 * GROUP}, not {weight_NK.shape[1]}; "
                "use int8"
            )
        ints_NK, scales_and_zeros_GN2 = to_int4(weight_NK.detach().float())
        self.on_cpu = weight_NK.device.type == "cpu"
        if self.on_cpu:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(ints_NK, 1)
        else:
            pairs = (ints_NK[:, ::2] << 4 | ints_NK[:, 1::2]).to(torch.uint8)
            packed = torch.ops.aten._convert_weight_to_int4pack(pairs, 8)
        self.register_buffer("packed", packed)
        self.register_buffer("scales_and_zeros_GN2", scales_and_zeros_GN2.to(torch.bfloat16))

    def forward(self, x_TK: Tensor) -> Tensor:
        aten = torch.ops.aten
        kernel = aten._weight_int4pack_mm_for_cpu if self.on_cpu else aten._weight_int4pack_mm
        y_TN = kernel(x_TK.bfloat16(), self.packed, GROUP, self.scales_and_zeros_GN2)
        return y_TN.to(x_TK.dtype)


class PackedSwiGLU(FeedForward):
    """SwiGLU feed-forward whose gate and up are one packed matrix."""

    def __init__(self, wide: nn.Module, down: nn.Module) -> None:
        nn.Module.__init__(self)  # without the weights of a FeedForward
        self.squared = False
        self.wide, self.down = wide, down

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = self.wide(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate_TF) * up_TF)


class PackedHead:
    """Output head that packs each slice of the vocabulary on first use."""

    def __init__(self, weight_VK: Tensor, pack: Callable[[Tensor], nn.Module]) -> None:
        self.weight_VK, self.pack = weight_VK, pack
        self.packed: dict[tuple[int, int], nn.Module] = {}

    def logits(self, hidden_BLD: Tensor, ids: slice | None = None) -> Tensor:
        """Return the same logits as `Decoder.logits`, in this precision."""
        ids = slice(0, len(self.weight_VK)) if ids is None else ids
        if ids.stop - ids.start < FEW or (ids.stop - ids.start) % 16:  # int4 needs multiples of 16
            return F.linear(hidden_BLD, self.weight_VK[ids])
        key = ids.start, ids.stop
        if key not in self.packed:
            self.packed[key] = self.pack(self.weight_VK[ids])
        logits_TV = self.packed[key](hidden_BLD.flatten(0, -2))
        return logits_TV.unflatten(0, hidden_BLD.shape[:-1])


def to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return one scale per output, and the weights as integers in -127..127."""
    scales_N = (weight_NK.abs().amax(1) / 127).clamp(min=1e-30)
    return scales_N, (weight_NK / scales_N[:, None]).round().to(torch.int8)


def to_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights as integers in 0..15, and a scale and a zero for each group of a row.

    A weight is `(number - 8) * scale + zero`.
    """
    groups_NGK = weight_NK.unflatten(1, (-1, GROUP))
    low_NG1, high_NG1 = groups_NGK.aminmax(dim=2, keepdim=True)
    scales_NG1 = ((high_NG1 - low_NG1) / 15).clamp(min=1e-6)
    ints_NGK = ((groups_NGK - low_NG1) / scales_NG1).round().clamp(0, 15).int()
    pairs_NG2 = torch.cat((scales_NG1, low_NG1 + 8 * scales_NG1), dim=2)
    return ints_NGK.flatten(1), pairs_NG2.transpose(0, 1).contiguous()
