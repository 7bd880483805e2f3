"""Attention backends and the key-value cache of the decoder (`model.py`).

All backends have the signature of `Attention`. `attend` is plain PyTorch and runs everywhere;
`attention_xformers.attend` uses xformers; `best_attention` chooses one of the two, once, and
reports its choice. `attend_by_products` is used for training on a CPU. `KVCache` stores the keys
and values of past tokens, with a separate length for each row, so that prompts of different lengths
are decoded together in one batch.

Shapes: B = rows, L = new tokens, S = tokens a query may attend to (the new ones included),
N = heads, H = head size, Y = layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.errors import UserError

Backend = Literal["auto", "torch", "xformers"]


class Attention(Protocol):
    """Signature of an attention backend."""

    def __call__(
        self, q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, bias_BLS: Tensor | None = None
    ) -> Tensor:
        """Return out_BLNH.

        The bias is added to the scores: 0 to attend, -inf to mask. None means causal over L == S
        tokens, or a single query that attends to all.
        """
        ...


def attend(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, bias_BLS: Tensor | None = None
) -> Tensor:
    """Compute scaled dot-product attention with PyTorch; the transposes are views, not copies."""
    q_BNLH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    if bias_BLS is None:
        causal = is_causal(q_BLNH, k_BSNH)
        out_BNLH = F.scaled_dot_product_attention(q_BNLH, k_BNSH, v_BNSH, is_causal=causal)
    else:
        bias_B1LS = bias_BLS.unsqueeze(1)
        out_BNLH = F.scaled_dot_product_attention(q_BNLH, k_BNSH, v_BNSH, attn_mask=bias_B1LS)
    return out_BNLH.transpose(1, 2)


def attend_by_products(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, bias_BLS: Tensor | None = None
) -> Tensor:
    """Compute attention as two matrix products and a softmax.

    On a CPU a training step on rows of a hundred tokens is faster with it (docs/log.md); it
    keeps all scores in memory.
    """
    q_BNLH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    scores_BNLS = (q_BNLH @ k_BNSH.transpose(2, 3)) * q_BNLH.shape[3] ** -0.5
    if bias_BLS is not None:
        scores_BNLS = scores_BNLS + bias_BLS.unsqueeze(1)
    elif is_causal(q_BLNH, k_BSNH):
        length = q_BNLH.shape[2]
        seen_LL = torch.ones(length, length, dtype=torch.bool, device=q_BNLH.device).tril()
        scores_BNLS = scores_BNLS.masked_fill(~seen_LL, -torch.inf)
    shares_BNLS = scores_BNLS.softmax(-1, dtype=torch.float32).to(v_BNSH.dtype)
    return (shares_BNLS @ v_BNSH).transpose(1, 2)


def is_causal(q_BLNH: Tensor, k_BSNH: Tensor) -> bool:
    """Return whether attention without a bias needs a causal mask; a single query sees all keys."""
    length = q_BLNH.shape[1]
    assert length in (1, k_BSNH.shape[1]), "causal attention needs as many keys as queries"
    return length > 1


@dataclass(frozen=True, kw_only=True)
class Window:
    """Positions, attention bias and cache slots of one forward pass.

    All layers share it, except for the keys and values themselves, which are lists with one entry
    per layer.
    """

    positions_BL: Tensor
    bias_BLS: Tensor | None  # None: the rows were empty, and attention is causal
    places_T: Tensor  # slots of the T = B * L new tokens when all rows are concatenated
    flat: Sequence[tuple[Tensor, Tensor]]  # keys and values of each layer, with rows concatenated
    seen: Sequence[tuple[Tensor, Tensor]]  # k_BSNH and v_BSNH

    def put(self, layer: int, k_BLNH: Tensor, v_BLNH: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer; return those its queries attend to, both BSNH."""
        k_BSNH, v_BSNH = self.seen[layer]
        if self.bias_BLS is None:
            k_BSNH.copy_(k_BLNH)
            v_BSNH.copy_(v_BLNH)
            return k_BLNH, v_BLNH
        for flat_TNH, x_BLNH in zip(self.flat[layer], (k_BLNH, v_BLNH), strict=True):
            flat_TNH.index_copy_(0, self.places_T, x_BLNH.flatten(0, 1))
        return k_BSNH, v_BSNH


class KVCache:
    """Keys and values of every layer in slots; row b holds `lengths[b]` tokens from slot 0 on.

    `rows` are the rows that take part in the next pass: a prompt can be read into a few rows while
    the others wait. Slots past a row's length hold garbage (right padding of a prompt, for
    example): the bias masks them and later tokens overwrite them. They are initialised to zero,
    because a masked NaN would still spoil a sum.
    """

    def __init__(self, k_YBSNH: Tensor, v_YBSNH: Tensor) -> None:
        self.k_YBSNH, self.v_YBSNH = k_YBSNH, v_YBSNH
        rows, self.capacity = k_YBSNH.shape[1:3]
        self.lengths = [0] * rows  # on the host, so that no step waits for the device
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=k_YBSNH.device)
        self.starts_B = torch.arange(rows, device=k_YBSNH.device) * self.capacity
        self.slots_S = torch.arange(self.capacity, device=k_YBSNH.device)
        flat = (x_YBSNH.flatten(1, 2).unbind() for x_YBSNH in (k_YBSNH, v_YBSNH))
        self.flat = list(zip(*flat, strict=True))
        self.rows = range(rows)

    @classmethod
    def allocate(
        cls,
        *,
        layers: int,
        rows: int,
        capacity: int,
        heads: int,
        head_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "KVCache":
        """Return an empty cache of `capacity` tokens per row."""
        shape = (layers, rows, capacity, heads, head_size)
        return cls(*(torch.zeros(shape, device=device, dtype=dtype) for _ in "kv"))

    @property
    def device(self) -> torch.device:
        """Device of the keys and values."""
        return self.k_YBSNH.device

    @property
    def longest(self) -> int:
        """Largest number of tokens in any of `rows`."""
        return max(self.lengths[self._some])

    @property
    def _some(self) -> slice:
        return slice(self.rows.start, self.rows.stop)

    def open(self, length: int, seen: int | None = None) -> Window:
        """Return the window of a pass over the next `length` tokens of each row.

        `seen` is the number of slots to attend to, for callers that need the same number at many
        steps.
        """
        assert self.longest + length <= self.capacity, "the KV cache is full"
        empty = self.longest == 0
        seen = seen or self.longest + length
        some, lengths_B = self._some, self.lengths_B[self._some]
        layers = (x_YBSNH[:, some, :seen].unbind() for x_YBSNH in (self.k_YBSNH, self.v_YBSNH))
        positions_BL = lengths_B.unsqueeze(1) + self.slots_S[:length]
        places_BL = positions_BL + self.starts_B[some].unsqueeze(1)
        return Window(
            positions_BL=positions_BL,
            bias_BLS=None if empty else self._bias(positions_BL, seen),
            places_T=places_BL.flatten(),
            flat=self.flat,
            seen=list(zip(*layers, strict=True)),
        )

    def _bias(self, positions_BL: Tensor, seen: int) -> Tensor:
        """Return the attention bias: 0 for a token and those before it in its row, else -inf."""
        hidden_BLS = self.slots_S[:seen] > positions_BL.unsqueeze(2)
        zeros_BLS = self.k_YBSNH.new_zeros(hidden_BLS.shape)
        return zeros_BLS.masked_fill_(hidden_BLS, -torch.inf)

    def advance(self, counts: Sequence[int]) -> None:
        """Record that all layers stored their new tokens: row b of `rows` grew by `counts[b]`."""
        for row, count in zip(self.rows, counts, strict=True):
            self.lengths[row] += count
        if len(set(counts)) == 1:
            self.lengths_B[self._some] += counts[0]
        else:
            self.lengths_B[self._some] += torch.tensor(counts, device=self.device)

    def copy(
        self, sources: Sequence[int], targets: Sequence[int], lengths: Sequence[int] | None = None
    ) -> None:
        """Copy the rows `sources` to the rows `targets`, or only their first `lengths` tokens."""
        if not targets:
            return
        lengths = lengths or [self.lengths[row] for row in sources]
        seen = max(lengths)
        from_R, to_R = (torch.tensor(rows, device=self.device) for rows in (sources, targets))
        for x_YBSNH in (self.k_YBSNH, self.v_YBSNH):
            x_YBSNH[:, to_R, :seen] = x_YBSNH[:, from_R, :seen]
        self.lengths_B[to_R] = torch.tensor(lengths, device=self.device)
        for target, length in zip(targets, lengths, strict=True):
            self.lengths[target] = length

    def clear(self, rows: range) -> None:
        """Mark these rows as empty."""
        self.lengths[rows.start : rows.stop] = [0] * len(rows)
        self.lengths_B[rows.start : rows.stop] = 0


def best_attention(
    device: torch.device,
    wanted: Backend = "auto",
    say: Callable[[str], None] | None = None,
) -> Attention:
    """Choose a backend for `device` and report it; `auto` uses xformers on CUDA when installed.

    Raises UserError when xformers is requested where it cannot run.
    """
    has_xformers = device.type == "cuda" and find_spec("xformers") is not None
    if wanted == "xformers" and not has_xformers:
        raise UserError(
            f"attention 'xformers' was asked for on {device.type}, but it needs CUDA and the "
            "package xformers; use 'auto' or 'torch'"
        )
    fast = wanted != "torch" and has_xformers
    if say is not None:
        say(f"attention: {'xformers' if fast else 'torch'}")
    if not fast:
        return attend
    from cm3leon.attention_xformers import attend as attend_xformers

    return attend_xformers
