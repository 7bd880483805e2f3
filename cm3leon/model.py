"""Transformer decoder: token ids to hidden states, and the head from hidden states to logits.

`codec` makes the ids; the training objective and `generate` use the outputs. An OPT-like pre-norm
transformer without biases, without dropout and with layer norms without learned parameters
(CM3Leon, Table 3 and the text on its model); with RMSNorm, SwiGLU, rotary positions and QK-norm it
is Llama-like.

Shapes: B = rows, L = new tokens, S = tokens attended to, N = heads, H = head size, D = width,
T = B * L, V = vocabulary (or the requested slice of it).
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cm3leon.attention import Attention, KVCache, Window, attend
from tokenizer.errors import UserError

NORM_EPS = 1e-5
CUT = 3.0  # initial weights are truncated at this many standard deviations


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of a decoder; the defaults are the paper's, where it gives them."""

    vocabulary: int
    context: int
    layers: int
    width: int
    heads: int
    ffn: int | None = None  # hidden width of the feed-forward part; None means 4 * width
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_affine: bool = False
    mlp: Literal["relu", "relu2", "swiglu"] = "relu"  # relu2: its square (arXiv 2109.08668)
    positions: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10000.0
    qk_norm: bool = False  # as in Chameleon: a layer norm over each head of queries and keys
    tied: bool = True
    z_loss: float = 0.0  # weight of (log Z)^2 in the training loss; unused by the model itself
    init_std: float = 0.006
    position_std: float = 0.0002

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "width", "heads", "ffn"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions == "rope" and self.head_size % 2:
            raise UserError(f"positions 'rope' needs an even head size, not {self.head_size}")
        for name in ("init_std", "position_std", "z_loss"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must not be negative")

    @property
    def head_size(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the feed-forward part."""
        return 4 * self.width if self.ffn is None else self.ffn


# Head counts are OPT's; the paper gives none (Table 3 has layers, width and sequence length).
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"layers": 2, "width": 64, "heads": 2, "context": 256},
    "10m": {"layers": 8, "width": 320, "heads": 5, "context": 1024},
    "350m": {"layers": 24, "width": 1024, "heads": 16, "context": 4096},
    "760m": {"layers": 24, "width": 1536, "heads": 16, "context": 4096},
    "7b": {"layers": 32, "width": 4096, "heads": 32, "context": 4096},
}


def sized(name: str, *, vocabulary: int, **changes: Any) -> ModelConfig:
    """Return the configuration of a named size, with `changes` applied.

    Raises UserError for an unknown name.
    """
    if name not in SIZES:
        near = difflib.get_close_matches(name, SIZES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(SIZES)}"
        raise UserError(f"unknown model size '{name}'; {hint}")
    settings: dict[str, Any] = {**SIZES[name], "vocabulary": vocabulary, **changes}
    return ModelConfig(**settings)


class SelfAttention(nn.Module):
    """Causal self-attention; one matrix projects to queries, keys and values."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.head_size = config.heads, config.head_size
        self.qkv: nn.Module = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out: nn.Module = nn.Linear(config.width, config.width, bias=False)
        if config.qk_norm:
            affine = config.norm_affine
            self.q_norm = nn.LayerNorm(config.head_size, NORM_EPS, elementwise_affine=affine)
            self.k_norm = nn.LayerNorm(config.head_size, NORM_EPS, elementwise_affine=affine)
        self.qk_norm = config.qk_norm

    def forward(self, x_TD: Tensor, step: "Step") -> Tensor:
        rows, length = step.shape
        qkv_BL3NH = self.qkv(x_TD).view(rows, length, 3, self.heads, self.head_size)
        q_BLNH, k_BLNH, v_BLNH = qkv_BL3NH.unbind(2)
        if self.qk_norm:
            q_BLNH, k_BLNH = self.q_norm(q_BLNH), self.k_norm(k_BLNH)
        if step.rotation is not None:
            q_BLNH, k_BLNH = rotate(q_BLNH, *step.rotation), rotate(k_BLNH, *step.rotation)
        bias_BLS: Tensor | None = None
        if step.window is not None:
            k_BLNH, v_BLNH = step.window.put(self.layer, k_BLNH, v_BLNH)
            bias_BLS = step.window.bias_BLS
        out_BLNH = step.attend(q_BLNH, k_BLNH, v_BLNH, bias_BLS)
        return self.out(out_BLNH.reshape(x_TD.shape))


class FeedForward(nn.Module):
    """Feed-forward: two matrices with a ReLU or its square, or three with a SwiGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up: nn.Module = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down: nn.Module = nn.Linear(config.ffn_width, config.width, bias=False)
        self.squared = config.mlp == "relu2"
        self.gate: nn.Linear | None = None
        if config.mlp == "swiglu":
            self.gate = nn.Linear(config.width, config.ffn_width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            hidden_TF = F.relu(self.up(x_TD))
            return self.down(hidden_TF.square() if self.squared else hidden_TF)
        return self.down(F.silu(self.gate(x_TD)) * self.up(x_TD))


class Block(nn.Module):
    """Transformer layer: attention, then feed-forward, each with a residual connection."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = new_norm(config)
        self.attention = SelfAttention(config, layer)
        self.mlp_norm = new_norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x_TD: Tensor, step: "Step") -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), step)
        return x_TD + self.mlp(self.mlp_norm(x_TD))


@dataclass(frozen=True, kw_only=True)
class Step:
    """Inputs of one forward pass that all layers share."""

    attend: Attention
    shape: tuple[int, int]  # B, L
    rotation: tuple[Tensor, Tensor] | None = None
    window: Window | None = None  # of the KV cache, if there is one


class Decoder(nn.Module):
    """Transformer decoder: `forward` returns hidden states, `logits` the logits of any of them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attend: Attention = attend
        self.embed = new_embedding(config.vocabulary, config.width)
        self.position: nn.Embedding | None = None
        if config.positions == "learned":
            self.position = new_embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = new_norm(config)
        self.head: nn.Linear | None = None
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights as in the paper: truncated normals, and zeros for residual outputs.

        Does nothing on the meta device, where a checkpoint's weights are about to be loaded.
        """
        if self.embed.weight.is_meta:
            return

        def draw(weight: Tensor, std: float) -> None:
            if std == 0:
                weight.zero_()
            else:
                cut = CUT * std
                nn.init.trunc_normal_(weight, std=std, a=-cut, b=cut, generator=generator)

        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                draw(module.weight, self.config.init_std)
        if self.position is not None:
            draw(self.position.weight, self.config.position_std)
        for block in self.blocks:
            assert isinstance(block, Block)
            for last in (block.attention.out, block.mlp.down):
                assert isinstance(last, nn.Linear)
                last.weight.zero_()

    def forward(
        self,
        ids_BL: Tensor,
        cache: KVCache | None = None,
        *,
        counts: Sequence[int] | None = None,
        positions_BL: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states after the final norm, hidden_BLD.

        Without a cache the rows are whole documents, with any right padding: causal attention never
        attends to what follows. With a cache, `ids_BL` continues each row after its current length;
        `counts` is the number of real ids in each row, the other of the L ids being padding after
        them. `positions_BL` is for rows whose positions do not start at 0.
        """
        if cache is None:
            assert ids_BL.shape[1] <= self.config.context, "more tokens than the context holds"
            return self.read(ids_BL, positions_BL)
        assert positions_BL is None, "the cache knows the positions"
        rows, length = ids_BL.shape
        seen = cache.longest + length
        assert seen <= self.config.context, "more tokens than the context holds"
        window = cache.open(length)
        hidden_BLD = self.read(ids_BL, window.positions_BL, window)
        cache.advance([length] * rows if counts is None else counts)
        return hidden_BLD

    def read(
        self, ids_BL: Tensor, positions_BL: Tensor | None, window: Window | None = None
    ) -> Tensor:
        """Return hidden states after the final norm, hidden_BLD.

        It does not use the lengths of the rows on the host, so that a step can be captured once and
        replayed.
        """
        length = ids_BL.shape[1]
        x_BLD = self.embed(ids_BL)
        rotation: tuple[Tensor, Tensor] | None = None
        if self.position is None:
            rotation = rotation_of(self.config, positions_BL, length, x_BLD)
        elif positions_BL is None:
            x_BLD = x_BLD + self.position.weight[:length]
        else:
            x_BLD = x_BLD + self.position(positions_BL)
        rows, length = ids_BL.shape
        step = Step(attend=self.attend, shape=(rows, length), rotation=rotation, window=window)
        x_TD = x_BLD.flatten(0, 1)
        for block in self.blocks:
            x_TD = block(x_TD, step)
        return self.norm(x_TD).view(x_BLD.shape)

    def logits(self, hidden_BLD: Tensor, ids: slice | None = None) -> Tensor:
        """Return logits of the whole vocabulary, or of the slice `ids` only; any leading shape."""
        weight_VD = self.head_weight
        return F.linear(hidden_BLD, weight_VD if ids is None else weight_VD[ids])

    @property
    def head_weight(self) -> Tensor:
        """Matrix from hidden states to logits: V rows of D."""
        return self.embed.weight if self.head is None else self.head.weight

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """Return an empty KV cache for this model, on its weights' device and in their dtype."""
        weight = self.embed.weight
        return KVCache.allocate(
            layers=self.config.layers,
            rows=rows,
            capacity=capacity,
            heads=self.config.heads,
            head_size=self.config.head_size,
            device=weight.device,
            dtype=weight.dtype,
        )


def rotation_of(
    config: ModelConfig, positions_BL: Tensor | None, length: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines for `rotate`, each BL1H, in the dtype of `like`."""
    if positions_BL is None:
        positions_BL = torch.arange(length, device=like.device).unsqueeze(0)
    half = config.head_size // 2
    powers = torch.arange(half, device=like.device, dtype=torch.float32) / half
    angles = positions_BL.unsqueeze(-1) * config.rope_theta**-powers
    cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
    return torch.cat((cos, cos), -1).unsqueeze(2), torch.cat((-sin, sin), -1).unsqueeze(2)


def rotate(x_BLNH: Tensor, cos_BL1H: Tensor, sin_BL1H: Tensor) -> Tensor:
    """Apply rotary positions in the half-split layout (that of Hugging Face's Llama weights).

    The sines of the lower half are negated.
    """
    low, high = x_BLNH.chunk(2, dim=-1)
    return torch.addcmul(x_BLNH * cos_BL1H, torch.cat((high, low), dim=-1), sin_BL1H)


def new_norm(config: ModelConfig) -> nn.Module:
    """Return a norm over the width; without learned parameters unless `norm_affine` is set."""
    kind = nn.LayerNorm if config.norm == "layernorm" else nn.RMSNorm
    return kind(config.width, eps=NORM_EPS, elementwise_affine=config.norm_affine)


def new_embedding(rows: int, width: int) -> nn.Embedding:
    """Return an embedding whose weights `initialise` will draw.

    PyTorch's own initialisation would be wasted, and on the meta device it imports the compiler,
    which takes seconds.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
