"""VQGAN network: pixels -> nearest codebook entries -> pixels, with taming-transformers' keys.

First step of the path from an image to token ids; `tokenizer/image.py` adds its files. The
architecture and the names of the parameters are taming-transformers' (Esser et al., 2012.09841), so
that its checkpoints load strictly; `patch` and `l2_norm` are additional options, off by default.
"""

# Shapes: B = batch, C = channels, H, W = feature height and width, E = code width, K = entries,
#         L = codes of one image (H * W, row-major),
#         N = positions of all images, S = a subset of them

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.errors import UserError
from tokenizer.vqgan.blocks import (
    AttnBlock,
    Downsample,
    PositionNorm,
    ResBlock,
    Upsample,
    conv,
    norm,
    silu,
)

AT_ONCE = 2**20  # distances a CPU computes at a time for the nearest entry: they stay in cache


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Sizes of a VQGAN. The defaults are the paper's: 256 px -> 32x32 codes of 8,192.

    CM3Leon uses Make-A-Scene's tokenizer (section 2.1); its exact weights and widths were never
    published, so the widths here are those of the community re-implementation.
    """

    size: int = 256  # side of an image in pixels
    codes: int = 8192  # codebook entries
    embed_dim: int = 256  # width of one entry
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (32,)
    dropout: float = 0.0
    patch: int = 1  # space-to-depth before the network, pixel-shuffle after; taming's is 1
    l2_norm: bool = False  # compare directions only (cosine distance)
    local: bool = False  # a code depends only on its neighbourhood; see Encoder
    decoder_ch: int | None = None  # `ch` of the decoder, if different; also a multiple of 32

    def __post_init__(self) -> None:
        for name in ("size", "codes", "embed_dim", "z_channels", "ch", "num_res_blocks", "patch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        narrow = self.decoder_ch is not None and (self.decoder_ch < 1 or self.decoder_ch % 32)
        if self.ch % 32 or narrow or not self.ch_mult or min(self.ch_mult) < 1:
            raise UserError(
                f"ch must be a multiple of 32 (group norm has 32 groups) and ch_mult a list of "
                f"whole numbers from 1, got ch {self.ch}, decoder_ch {self.decoder_ch} and ch_mult "
                f"{self.ch_mult}"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in 0..1, got {self.dropout}")
        if self.size % self.factor:
            raise UserError(
                f"size {self.size} is not a multiple of {self.factor}, the pixels a code covers "
                f"(patch {self.patch} x {2 ** (len(self.ch_mult) - 1)} from ch_mult)"
            )

    @property
    def factor(self) -> int:
        """Side in pixels of the area that one code covers (the paper's f)."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self) -> int:
        """Codes per side."""
        return self.size // self.factor


class Level(nn.Module):
    """Blocks of one resolution, followed by the change of resolution; the names are taming's."""

    def __init__(
        self,
        widths: list[int],
        attention: bool,
        dropout: float,
        resample: nn.Module | None,
        local: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b, dropout, local) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)
        if isinstance(resample, Downsample):
            self.downsample = resample
        elif isinstance(resample, Upsample):
            self.upsample = resample


def steps(levels: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield the modules that a feature map passes through, in order. A caller that runs them in
    turn holds only the last map: the first map of a level may be as large as any."""
    for level in levels:
        assert isinstance(level, Level)
        for number, block in enumerate(level.block):
            yield block
            if level.attn:
                yield level.attn[number]
        for name in ("downsample", "upsample"):
            if hasattr(level, name):
                yield getattr(level, name)


class Middle(nn.Module):
    def __init__(self, channels: int, dropout: float, local: bool = False) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout, local)
        self.attn_1 = nn.Identity() if local else AttnBlock(channels)
        self.block_2 = ResBlock(channels, channels, dropout, local)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x_BCHW)))


class VQGANEncoder(nn.Module):
    """Encoder from pixels to features.

    In taming's encoder every position depends on the whole image: by 3x3 convolutions, by
    attention, and by norms over all positions. Blank cells then carry information about distant
    cells, which lowers the reconstruction error and makes the codes hard to predict. In a `local`
    encoder only the downsampling mixes positions, so a code depends only on its own cell and its
    border.
    """

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [c.ch, *(c.ch * m for m in c.ch_mult)]
        self.conv_in = conv(3 * c.patch**2, c.ch, c.local)
        self.down = nn.ModuleList()
        for level in range(len(c.ch_mult)):
            before, after = widths[level], widths[level + 1]
            last = level == len(c.ch_mult) - 1
            side = c.size // c.patch // 2**level
            inside = [before] + [after] * c.num_res_blocks
            resample = None if last else Downsample(after)
            attention = side in c.attn_resolutions and not c.local
            self.down.append(Level(inside, attention, c.dropout, resample, c.local))
        self.mid = Middle(widths[-1], c.dropout, c.local)
        self.norm_out = PositionNorm(widths[-1]) if c.local else norm(widths[-1])
        self.conv_out = conv(widths[-1], c.z_channels, c.local)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(x_BCHW)
        for step in steps(self.down):
            h_BCHW = step(h_BCHW)
        return self.conv_out(silu(self.norm_out, self.mid(h_BCHW)))


class VQGANDecoder(nn.Module):
    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [(c.decoder_ch or c.ch) * m for m in c.ch_mult]
        self.conv_in = conv(c.z_channels, widths[-1])
        self.mid = Middle(widths[-1], c.dropout)
        levels: list[Level] = []
        before = widths[-1]
        for level in reversed(range(len(widths))):
            after = widths[level]
            side = c.size // c.patch // 2**level
            inside = [before] + [after] * (c.num_res_blocks + 1)
            resample = Upsample(after) if level else None
            levels.append(Level(inside, side in c.attn_resolutions, c.dropout, resample))
            before = after
        self.up = nn.ModuleList(reversed(levels))  # taming counts from the highest resolution
        self.norm_out = norm(before)
        self.conv_out = conv(before, 3 * c.patch**2)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        h_BCHW = self.mid(self.conv_in(z_BCHW))
        for step in steps(reversed(self.up)):
            h_BCHW = step(h_BCHW)
        return self.conv_out(silu(self.norm_out, h_BCHW))


class Quantizer(nn.Module):
    """Nearest of K codebook entries, by squared distance or (l2_norm) by direction."""

    def __init__(self, codes: int, width: int, l2_norm: bool) -> None:
        super().__init__()
        self.l2_norm = l2_norm
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    def entries(self) -> Tensor:
        """Return the codebook as used for comparison and look-up: [K, E]."""
        weight_KE = self.embedding.weight
        return F.normalize(weight_KE, dim=-1) if self.l2_norm else weight_KE

    def project(self, z_BEHW: Tensor) -> Tensor:
        """Return encoder output as used for comparison: [B, E, H, W]."""
        return F.normalize(z_BEHW, dim=1) if self.l2_norm else z_BEHW

    def nearest(self, z_BEHW: Tensor) -> Tensor:
        """Return codes [B, L], in row-major order, of projected encoder output."""
        entries_KE = self.entries()
        z_NE = z_BEHW.permute(0, 2, 3, 1).reshape(-1, z_BEHW.shape[1]).to(entries_KE.dtype)
        with torch.autocast(z_NE.device.type, enabled=False):  # rounding may change the nearest
            # |z|^2 is the same for every entry, so it cannot change which is nearest
            lengths_K = entries_KE.square().sum(-1)
            some = max(1, AT_ONCE // len(entries_KE)) if z_NE.is_cpu else max(1, len(z_NE))
            codes = [
                torch.addmm(lengths_K, z_SE, entries_KE.T, alpha=-2).min(-1).indices
                for z_SE in z_NE.split(some)
            ]
        return torch.cat(codes).view(z_BEHW.shape[0], -1)

    def look_up(self, codes_BL: Tensor, grid: int) -> Tensor:
        """Return the entries of the codes: [B, E, H, W]."""
        rows_BLE = F.embedding(codes_BL, self.entries())
        return rows_BLE.transpose(1, 2).unflatten(2, (grid, grid))


class Quantized(NamedTuple):
    """Outputs of a training pass; see `VQGAN.forward`."""

    pixels_B3HW: Tensor
    codes_BL: Tensor
    z_BEHW: Tensor  # projected encoder output
    entries_BEHW: Tensor  # the nearest entries


class VQGAN(nn.Module):
    """Encoder, quantiser and decoder with taming's parameter names."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VQGANEncoder(config)
        self.decoder = VQGANDecoder(config)
        self.quantize = Quantizer(config.codes, config.embed_dim, config.l2_norm)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Return encoder output as compared with the codebook: [B, E, H, W]."""
        h_BCHW = self.encoder(F.pixel_unshuffle(pixels_B3HW, self.config.patch))
        return self.quantize.project(self.quant_conv(h_BCHW))

    def paint(self, entries_BEHW: Tensor) -> Tensor:
        """Decode codebook entries to pixels [B, 3, size, size], about -1..1, not clamped."""
        h_BCHW = self.decoder(self.post_quant_conv(entries_BEHW))
        return F.pixel_shuffle(h_BCHW, self.config.patch)

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode pixels in -1..1 as codes [B, L]."""
        return self.quantize.nearest(self.features(pixels_B3HW))

    def decode(self, codes_BL: Tensor) -> Tensor:
        """Decode codes [B, L] to pixels [B, 3, size, size]."""
        return self.paint(self.quantize.look_up(codes_BL, self.config.grid))

    def forward(self, pixels_B3HW: Tensor) -> Quantized:
        """Run one training pass; the gradient bypasses the choice of entry (straight-through)."""
        z_BEHW = self.features(pixels_B3HW)
        codes_BL = self.quantize.nearest(z_BEHW.detach())
        entries_BEHW = self.quantize.look_up(codes_BL, self.config.grid)
        through_BEHW = z_BEHW + (entries_BEHW - z_BEHW).detach()
        return Quantized(self.paint(through_BEHW), codes_BL, z_BEHW, entries_BEHW)


def from_taming(state: Mapping[str, Tensor], config: VQGANConfig) -> VQGAN:
    """Build a VQGAN from a taming state dict (the mapping under its `state_dict` key), strictly.

    The training-only `loss.*` keys are dropped; any other difference is a UserError.
    """
    kept = {k: v for k, v in state.items() if not k.startswith("loss.")}
    net = VQGAN(config)
    wanted = net.state_dict()
    wrong = sorted(
        {k for k in wanted.keys() ^ kept.keys()}
        | {k for k in wanted.keys() & kept.keys() if wanted[k].shape != kept[k].shape}
    )
    if wrong:
        raise UserError(
            f"this state dict is not of the configured VQGAN: {len(wrong)} keys differ, first "
            f"'{wrong[0]}'; set size, ch, ch_mult, num_res_blocks, attn_resolutions, codes as in "
            f"the yaml file beside it"
        )
    net.load_state_dict(kept)
    return net
