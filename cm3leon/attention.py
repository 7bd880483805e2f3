"""Attention and the cache of keys and values: what model.py stands on.

One face. `attend` is plain PyTorch and runs everywhere; `attention_xformers.attend` has the same
face and `best_attention` picks one of them, once and aloud; `attend_by_products`, of the same face
too, is what training on a CPU takes. `KVCache` keeps what decoding has
already seen, with a length of its own for each row, so that prompts of different lengths advance
together in one batch.

Shapes: B = rows, L = new tokens, S = tokens a query may look at (the new ones included),
N = heads, H = head size.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer.errors import UserError

Backend = Literal["auto", "torch", "xformers"]


class Attention(Protocol):
    """What the decoder asks of an attention backend."""

    def __call__(
        self, q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask_BLS: Tensor | None = None
    ) -> Tensor:
        """Return out_BLNH. No mask means causal over L == S tokens; True in a mask means look."""
        ...


def attend(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask_BLS: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention by PyTorch; the transposes are views, nothing is copied."""
    q_BNLH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    if mask_BLS is None:
        assert q_BLNH.shape[1] == k_BSNH.shape[1], "causal attention needs as many keys as queries"
        out_BNLH = F.scaled_dot_product_attention(q_BNLH, k_BNSH, v_BNSH, is_causal=True)
    else:
        out_BNLH = F.scaled_dot_product_attention(
            q_BNLH, k_BNSH, v_BNSH, attn_mask=mask_BLS.unsqueeze(1)
        )
    return out_BNLH.transpose(1, 2)


def attend_by_products(
    q_BLNH: Tensor, k_BSNH: Tensor, v_BSNH: Tensor, mask_BLS: Tensor | None = None
) -> Tensor:
    """Attention as two products and a softmax. On a CPU a training step on rows of a
    hundred tokens is faster with it (docs/ledger.md); it keeps all scores in memory."""
    q_BNLH, k_BNSH, v_BNSH = (x.transpose(1, 2) for x in (q_BLNH, k_BSNH, v_BSNH))
    if mask_BLS is None:
        length = q_BNLH.shape[2]
        assert length == k_BNSH.shape[2], "causal attention needs as many keys as queries"
        mask_BLS = torch.ones(1, length, length, dtype=torch.bool, device=q_BNLH.device).tril()
    scores_BNLS = (q_BNLH @ k_BNSH.transpose(2, 3)) * q_BNLH.shape[3] ** -0.5
    scores_BNLS = scores_BNLS.masked_fill(~mask_BLS.unsqueeze(1), -torch.inf)
    shares_BNLS = scores_BNLS.softmax(-1, dtype=torch.float32).to(v_BNSH.dtype)
    return (shares_BNLS @ v_BNSH).transpose(1, 2)


class KVCache:
    """Keys and values of every layer; row b holds `lengths[b]` tokens from slot 0 on.

    Slots past a row's length hold rubbish (right padding of a prompt, say): the mask hides them
    and later tokens overwrite them. They start as zeros, for a hidden NaN would still spoil a sum.
    """

    def __init__(self, k_BSNH: list[Tensor], v_BSNH: list[Tensor], lengths: Sequence[int]) -> None:
        self.k_BSNH = k_BSNH
        self.v_BSNH = v_BSNH
        self.lengths = list(lengths)  # on the host: no step has to wait for the device
        device = k_BSNH[0].device
        self.lengths_B = torch.tensor(self.lengths, dtype=torch.long, device=device)
        self.rows_B1 = torch.arange(len(self.lengths), device=device).unsqueeze(1)

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
        """An empty cache with room for `capacity` tokens a row."""

        def zeros() -> list[Tensor]:
            shape = (rows, capacity, heads, head_size)
            return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]

        return cls(zeros(), zeros(), [0] * rows)

    @property
    def capacity(self) -> int:
        """Tokens a row has room for."""
        return self.k_BSNH[0].shape[1]

    @property
    def device(self) -> torch.device:
        """Where the keys and values are."""
        return self.lengths_B.device

    @property
    def longest(self) -> int:
        """Tokens in the fullest row."""
        return max(self.lengths)

    def positions(self, length: int) -> Tensor:
        """Where the next `length` tokens of each row go: positions_BL."""
        assert self.longest + length <= self.capacity, "the KV cache is full"
        return self.lengths_B.unsqueeze(1) + torch.arange(length, device=self.device)

    def mask(self, positions_BL: Tensor) -> Tensor | None:
        """mask_BLS: every token sees its own row up to itself; None, that is causal, when empty."""
        if self.longest == 0:
            return None
        slots_S = torch.arange(self.longest + positions_BL.shape[1], device=positions_BL.device)
        return slots_S <= positions_BL.unsqueeze(2)

    def put(
        self, layer: int, positions_BL: Tensor, k_BLNH: Tensor, v_BLNH: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of one layer; return what its queries look at, k and v BSNH."""
        k_BSNH, v_BSNH = self.k_BSNH[layer], self.v_BSNH[layer]
        length = k_BLNH.shape[1]
        if self.longest == 0:
            k_BSNH[:, :length] = k_BLNH
            v_BSNH[:, :length] = v_BLNH
            return k_BLNH, v_BLNH
        k_BSNH[self.rows_B1, positions_BL] = k_BLNH
        v_BSNH[self.rows_B1, positions_BL] = v_BLNH
        seen = self.longest + length
        return k_BSNH[:, :seen], v_BSNH[:, :seen]

    def advance(self, counts: Sequence[int]) -> None:
        """Every layer has stored its new tokens: row b grew by `counts[b]`."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.lengths_B = torch.tensor(self.lengths, device=self.device)

    def take(self, rows: Sequence[int], capacity: int | None = None) -> "KVCache":
        """A new cache made of these rows, in this order: repeat a row to share its prefill."""
        lengths = [self.lengths[row] for row in rows]
        seen, room = max(lengths), self.capacity if capacity is None else capacity
        assert room >= seen, "the new cache is too small for what is in the old one"
        order_R = torch.tensor(list(rows), device=self.device)

        def copy(x_BSNH: Tensor) -> Tensor:
            new_RSNH = x_BSNH.new_zeros(len(lengths), room, *x_BSNH.shape[2:])
            new_RSNH[:, :seen] = x_BSNH[order_R, :seen]
            return new_RSNH

        return KVCache([copy(x) for x in self.k_BSNH], [copy(x) for x in self.v_BSNH], lengths)


def best_attention(
    device: torch.device,
    wanted: Backend = "auto",
    say: Callable[[str], None] | None = None,
) -> Attention:
    """Choose a backend for `device` and say which; `auto` takes xformers on CUDA when installed.

    Raises UserError when xformers is wanted where it cannot run.
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
