"""Blocks of the VQGAN: norms, convolutions, attention, downsampling and upsampling.

`network.py` builds the encoder and decoder from them, with taming-transformers' parameter names.
"""

# Shapes: B = batch, C = channels, H, W = height and width of a map, L = its positions

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(c_in: int, c_out: int, local: bool = False) -> nn.Conv2d:
    """Return taming's 3x3 convolution, or 1x1 if `local`, which does not mix positions."""
    return nn.Conv2d(c_in, c_out, 1) if local else nn.Conv2d(c_in, c_out, 3, padding=1)


def silu(norm: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Return silu(norm(x)), in place on the norm's result if no gradient needs it."""
    h_BCHW = norm(x_BCHW)
    return F.silu(h_BCHW, inplace=not torch.is_grad_enabled() and h_BCHW is not x_BCHW)


class PositionNorm(nn.LayerNorm):
    """Layer norm of each position over its channels, which does not mix positions."""

    def forward(self, x_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BCHW.movedim(1, -1)).movedim(-1, 1)


class ResBlock(nn.Module):
    """Residual block of two convolutions; a `local` block does not mix positions."""

    def __init__(self, c_in: int, c_out: int, dropout: float, local: bool = False) -> None:
        super().__init__()
        new_norm = PositionNorm if local else norm
        self.norm1 = new_norm(c_in)
        self.conv1 = conv(c_in, c_out, local)
        self.norm2 = new_norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(c_out, c_out, local)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(silu(self.norm1, x_BCHW))
        if hasattr(self, "nin_shortcut"):
            x_BCHW = self.nin_shortcut(x_BCHW)
        return x_BCHW + self.conv2(self.dropout(silu(self.norm2, h_BCHW)))


class AttnBlock(nn.Module):
    """Single-head attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        # An explicit head axis: without it the scores of all pairs of positions are materialised.
        heads = (f(h_BCHW).flatten(2).mT.unsqueeze(1) for f in (self.q, self.k, self.v))
        out_B1LC = F.scaled_dot_product_attention(*heads)
        out_BCHW = out_B1LC.squeeze(1).mT.reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(out_BCHW)


class Downsample(nn.Module):
    """Downsampling by 2: a convolution of stride 2 with zero padding to the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Upsampling by 2: each position is repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
