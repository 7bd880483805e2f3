"""Blocks of the VQGAN: norms, convolutions, attention, and the changes of resolution.

`vqgan` builds its encoder and decoder of them, under taming-transformers' names. Each has one plain
form, with which it is trained; wide maps take the way of `strips` where no gradient is asked for.
"""

# Shapes: B = batch, C = channels, H, W = height and width of a map, L = its positions

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer import strips
from tokenizer.winograd import Conv3


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(c_in: int, c_out: int, local: bool = False) -> nn.Conv2d:
    """taming's 3x3 convolution, or 1x1 where positions keep to themselves."""
    return nn.Conv2d(c_in, c_out, 1) if local else Conv3(c_in, c_out)


def turned(norm: nn.Module, conv: nn.Conv2d, x_BCHW: Tensor) -> Tensor:
    """conv(silu(norm(x)))."""
    if isinstance(conv, Conv3) and isinstance(norm, nn.GroupNorm) and strips.wanted(x_BCHW):
        return strips.convolve(conv, x_BCHW, norm)
    return conv(silu(norm, x_BCHW))


def silu(norm: nn.Module, x_BCHW: Tensor) -> Tensor:
    """silu(norm(x)); without a gradient nobody else reads what the norm makes, so in its place."""
    h_BCHW = norm(x_BCHW)
    return F.silu(h_BCHW, inplace=not torch.is_grad_enabled() and h_BCHW is not x_BCHW)


class PositionNorm(nn.LayerNorm):
    """Normalises each position over its channels, so that no position hears of another."""

    def forward(self, x_BCHW: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_BCHW.movedim(1, -1)).movedim(-1, 1)


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut; in a `local` one no position hears of another."""

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
        h_BCHW = turned(self.norm1, self.conv1, x_BCHW)
        if hasattr(self, "nin_shortcut"):
            x_BCHW = self.nin_shortcut(x_BCHW)
        norm2, conv2 = self.norm2, self.conv2
        if isinstance(norm2, nn.GroupNorm) and isinstance(conv2, Conv3):
            dropped = self.training and self.dropout.p > 0
            if strips.wanted(h_BCHW) and not dropped:
                return strips.convolve(conv2, h_BCHW, norm2, add_BOHW=x_BCHW, over=True)
        return x_BCHW + conv2(self.dropout(silu(norm2, h_BCHW)))


class AttnBlock(nn.Module):
    """One head of attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.norm(x_BCHW)
        # One head, told as such: else all products of positions would be held at once.
        heads = (f(h_BCHW).flatten(2).mT.unsqueeze(1) for f in (self.q, self.k, self.v))
        out_B1LC = F.scaled_dot_product_attention(*heads)
        out_BCHW = out_B1LC.squeeze(1).mT.reshape(x_BCHW.shape)
        return x_BCHW + self.proj_out(out_BCHW)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if strips.wanted(x_BCHW):
            return strips.halve(self.conv, x_BCHW)
        return self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3(channels, channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if strips.wanted(x_BCHW):
            return strips.double(self.conv, x_BCHW)
        return self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
