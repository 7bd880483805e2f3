"""Benchmark of the image tokenizer: encoding and decoding against other libraries' VQGANs.

Our network and that of taming-transformers or diffusers run with the same weights; measured are
times of alternating runs in one process, peaks of resident memory, and the difference of results.
Either library is needed only on request.
"""

# Shapes: B = images, L = codes per image, E = codebook entry width, H, W = height and width

import contextlib
import ctypes
import importlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.bench.decode import parameters
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.timing import Timing, interleaved
from tokenizer.vqgan.network import VQGAN, VQGANConfig

Rival = Literal["taming", "diffusers"]
Action = Callable[[], Tensor]

INSTALL = {
    "taming": "taming-transformers-rom1504==0.0.6 --no-deps, and einops",
    "diffusers": "diffusers",
}
# Patterns of taming's parameter names -> diffusers' names.
RENAMED = [
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.attn\.", r".down_blocks.\1.attentions."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.attn\.", r".up_blocks.\1.attentions."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Time and peak memory of a batch of images."""

    seconds: Timing
    peak_mb: float
    """Resident memory beyond that before the run."""


@dataclass(frozen=True, kw_only=True)
class CodebookSide:
    """Measurements of one network."""

    name: str
    batch: int
    parameters: int
    encode: Pace | None
    """Pixels to codes; None if a library has no such encoder."""
    decode: Pace
    """Codes to pixels."""


@dataclass(frozen=True, kw_only=True)
class CodebookComparison:
    """Measurements of our network and another with the same weights."""

    ours: CodebookSide
    theirs: CodebookSide
    same_codes: float | None
    """Share of equal codes for the same images, if both networks have an encoder."""
    pixels_apart: float
    """Largest difference of pixels in -1..1, decoded from the same codes."""

    @property
    def encode(self) -> float | None:
        """Our encoded images per second over theirs, by medians; None without their encoder."""
        if self.ours.encode is None or self.theirs.encode is None:
            return None
        return self.theirs.encode.seconds.median / self.ours.encode.seconds.median

    @property
    def decode(self) -> float:
        """Our decoded images per second over theirs, by medians."""
        return self.theirs.decode.seconds.median / self.ours.decode.seconds.median


@dataclass(frozen=True, kw_only=True)
class Network:
    """Network to be timed."""

    name: str
    net: nn.Module
    encode: Callable[[Tensor], Tensor] | None
    """Pixels [B, 3, size, size] -> codes [B, L]; None if there is no such encoder."""
    decode: Callable[[Tensor], Tensor]
    """Codes [B, L] -> pixels."""


SHAPES = {  # the paper's, and taming's with 256 codes for an image of 256 pixels a side
    "f8": VQGANConfig(),
    "f16": VQGANConfig(ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,)),
}


def fresh(shape: str, size: int) -> ImageTokenizer:
    """Return an image tokenizer of a shape with random weights.

    Its images have `size` pixels a side.
    """
    torch.manual_seed(0)
    net = VQGAN(replace(SHAPES[shape], size=size))
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    nn.init.normal_(net.quantize.embedding.weight)
    return ImageTokenizer(net)


def ours(tokenizer: ImageTokenizer) -> Network:
    """Return our network as the image tokenizer runs it."""
    return Network(name="ours", net=tokenizer.net, encode=tokenizer.encode, decode=tokenizer.decode)


def rival(name: Rival, tokenizer: ImageTokenizer) -> Network:
    """Return another library's network with our weights, our patching and our normalised vectors.

    Neither library has a local encoder, so only the decoder is available for a local codebook.
    """
    config = tokenizer.config
    make = {"taming": _taming, "diffusers": _diffusers}[name]
    state = tokenizer.net.state_dict()
    state["quantize.embedding.weight"] = tokenizer.net.quantize.entries()
    local = {key for key in state if config.local and key.startswith("encoder.")}
    bare = make(config, {key: weight for key, weight in state.items() if key not in local})
    inner = bare.encode

    def encode(pixels_B3HW: Tensor) -> Tensor:
        assert inner is not None
        return inner(F.pixel_unshuffle(pixels_B3HW, config.patch))

    def decode(codes_BL: Tensor) -> Tensor:
        return F.pixel_shuffle(bare.decode(codes_BL), config.patch)

    return replace(bare, encode=encode if inner else None, decode=decode)


def against(
    name: Rival, tokenizer: ImageTokenizer, batch: int, times: int, seed: int = 0
) -> CodebookComparison:
    """Time both networks in alternating runs, on the same images."""
    sides = [ours(tokenizer), rival(name, tokenizer)]
    pixels_B3HW = _pictures(batch, tokenizer.size, seed)
    with torch.inference_mode():
        codes = [side.encode(pixels_B3HW) for side in sides if side.encode]
        painted = [side.decode(codes[0]) for side in sides]
        measured = _measured(sides, pixels_B3HW, codes[0], times)
    return CodebookComparison(
        ours=measured[0],
        theirs=measured[1],
        same_codes=(codes[0] == codes[1]).double().mean().item() if len(codes) > 1 else None,
        pixels_apart=(painted[0] - painted[1].clamp(-1, 1)).abs().max().item(),
    )


def alone(tokenizer: ImageTokenizer, batch: int, times: int, seed: int = 0) -> CodebookSide:
    """Time our network alone."""
    pixels_B3HW = _pictures(batch, tokenizer.size, seed)
    codes_BL = tokenizer.encode(pixels_B3HW)
    with torch.inference_mode():
        return _measured([ours(tokenizer)], pixels_B3HW, codes_BL, times)[0]


def _measured(
    sides: Sequence[Network], pixels_B3HW: Tensor, codes_BL: Tensor, times: int
) -> list[CodebookSide]:
    actions = dict[tuple[str, str], Action]()
    for side in sides:
        if side.encode is not None:
            actions[side.name, "encode"] = partial(side.encode, pixels_B3HW)
    for side in sides:
        actions[side.name, "decode"] = partial(side.decode, codes_BL)
    peaks = [peak_mb(action) for action in actions.values()]
    turns = interleaved(list(actions.values()), times, codes_BL.device)
    paces = {
        key: Pace(seconds=seconds, peak_mb=peak)
        for key, seconds, peak in zip(actions, turns, peaks, strict=True)
    }
    return [
        CodebookSide(
            name=side.name,
            batch=len(pixels_B3HW),
            parameters=parameters(side.net),
            encode=paces.get((side.name, "encode")),
            decode=paces[side.name, "decode"],
        )
        for side in sides
    ]


def peak_mb(action: Action) -> float:
    """Return the peak resident megabytes of an action, beyond those before it.

    The second run is measured, as the first allocates what stays resident. Raises UserError if
    /proc cannot be read.
    """
    action()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # memory kept by the allocator would count as used before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _status("VmRSS")
        action()
        return _status("VmHWM") - before
    except OSError as error:
        raise UserError("peaks of memory are read from /proc; use Linux") from error


def _status(name: str) -> float:
    (kilobytes,) = re.findall(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def _pictures(count: int, size: int, seed: int) -> Tensor:
    """Return uniform noise in -1..1: [count, 3, size, size]."""
    random = torch.Generator().manual_seed(seed)
    return torch.rand((count, 3, size, size), generator=random) * 2 - 1


def _library(module: str, name: Rival) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--against {name} needs what is not installed ({error.name}); pip install "
            f"{INSTALL[name]}"
        ) from error


def _compared(config: VQGANConfig, z_BEHW: Tensor) -> Tensor:
    return F.normalize(z_BEHW, dim=1) if config.l2_norm else z_BEHW


def _taming(config: VQGANConfig, state: Mapping[str, Tensor]) -> Network:
    model = _library("taming.modules.diffusionmodules.model", "taming")
    quantize = _library("taming.modules.vqvae.quantize", "taming")
    shape = {
        "ch": config.ch,
        "out_ch": 3 * config.patch**2,
        "ch_mult": config.ch_mult,
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": config.attn_resolutions,
        "in_channels": 3 * config.patch**2,
        "resolution": config.size // config.patch,
        "z_channels": config.z_channels,
        "double_z": False,
    }
    with contextlib.redirect_stdout(io.StringIO()):  # its decoder prints
        parts = {
            **({} if config.local else {"encoder": model.Encoder(**shape)}),
            "decoder": model.Decoder(**shape),
            "quantize": quantize.VectorQuantizer2(config.codes, config.embed_dim, beta=0.25),
            "quant_conv": nn.Conv2d(config.z_channels, config.embed_dim, 1),
            "post_quant_conv": nn.Conv2d(config.embed_dim, config.z_channels, 1),
        }
    net: Any = nn.ModuleDict(parts).eval().requires_grad_(False)
    net.load_state_dict(state)

    def encode(pixels_B3HW: Tensor) -> Tensor:
        z_BEHW = _compared(config, net["quant_conv"](net["encoder"](pixels_B3HW)))
        return net["quantize"](z_BEHW)[2][2].view(len(pixels_B3HW), -1)

    def decode(codes_BL: Tensor) -> Tensor:
        shape = (len(codes_BL), config.grid, config.grid, config.embed_dim)
        entries_BEHW = net["quantize"].get_codebook_entry(codes_BL.flatten(), shape)
        return net["decoder"](net["post_quant_conv"](entries_BEHW))

    return Network(name="taming", net=net, encode=None if config.local else encode, decode=decode)


def _diffusers(config: VQGANConfig, state: Mapping[str, Tensor]) -> Network:
    library = _library("diffusers", "diffusers")
    levels = len(config.ch_mult)
    side = config.size // config.patch
    attends = [side // 2**level in config.attn_resolutions for level in range(levels)]
    net = library.VQModel(
        in_channels=3 * config.patch**2,
        out_channels=3 * config.patch**2,
        down_block_types=[f"{'Attn' * one}DownEncoderBlock2D" for one in attends],
        up_block_types=[f"{'Attn' * one}UpDecoderBlock2D" for one in reversed(attends)],
        block_out_channels=[config.ch * by for by in config.ch_mult],
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        sample_size=side,
        num_vq_embeddings=config.codes,
        vq_embed_dim=config.embed_dim,
    )
    if config.local:
        del net.encoder
    net.eval().requires_grad_(False).load_state_dict(to_diffusers(state, levels))

    def encode(pixels_B3HW: Tensor) -> Tensor:
        z_BEHW = _compared(config, net.encode(pixels_B3HW).latents)
        return net.quantize(z_BEHW)[2][2].view(len(pixels_B3HW), -1)

    def decode(codes_BL: Tensor) -> Tensor:
        shape = (len(codes_BL), config.grid, config.grid, config.embed_dim)
        entries_BEHW = net.quantize.get_codebook_entry(codes_BL.flatten(), shape)
        return net.decode(entries_BEHW, force_not_quantize=True).sample

    return Network(
        name="diffusers", net=net, encode=None if config.local else encode, decode=decode
    )


def to_diffusers(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Convert taming's state dict to that of diffusers' VQModel.

    VQModel numbers the upsampling levels in the opposite order, and has matrices where taming's
    attention has 1x1 convolutions.
    """
    found = dict[str, Tensor]()
    for name, weight in state.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", name)
        flat = weight.ndim == 4 and ".attentions." in name
        found[name] = weight[:, :, 0, 0] if flat else weight
    return found
