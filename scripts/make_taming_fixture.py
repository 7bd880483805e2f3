"""Make tests/assets/taming.safetensors: what taming-transformers itself computes.

    pip install --target taming-site --no-deps taming-transformers-rom1504==0.0.6 einops==0.8.2
    PYTHONPATH=taming-site:. python scripts/make_taming_fixture.py tests/assets/taming.safetensors

taming's own encoder, decoder and quantiser run a small VQGAN with random weights over two
pictures. The file holds the weights under taming's names, the pictures, and what became of them;
tests/tokenizer/vqgan/test_network.py asks the same of tokenizer/vqgan/network.py. With that
PYTHONPATH the tests also compare other shapes of network with taming live.
"""

# Shapes: P = pictures, E = code width, K = entries, H, W = feature height and width, L = H * W

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, write_file
from tokenizer.vqgan.network import VQGANConfig

CONFIG = VQGANConfig(
    size=32,
    codes=64,
    embed_dim=16,
    z_channels=16,
    ch=32,
    ch_mult=(2, 1),  # one level widens and one narrows, so both kinds of shortcut are there
    num_res_blocks=1,
    attn_resolutions=(16,),
)


def taming_network(config: VQGANConfig) -> nn.ModuleDict:
    """taming's parts as its VQModel holds them; the state dict has taming's names."""
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer2

    shape = {
        "ch": config.ch,
        "out_ch": 3,
        "ch_mult": config.ch_mult,
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": config.attn_resolutions,
        "dropout": config.dropout,
        "in_channels": 3,
        "resolution": config.size,
        "z_channels": config.z_channels,
        "double_z": False,
    }
    parts = {
        "encoder": Encoder(**shape),
        "decoder": Decoder(**shape),
        "quantize": VectorQuantizer2(config.codes, config.embed_dim, beta=0.25),
        "quant_conv": nn.Conv2d(config.z_channels, config.embed_dim, 1),
        "post_quant_conv": nn.Conv2d(config.embed_dim, config.z_channels, 1),
    }
    return nn.ModuleDict(parts).eval().requires_grad_(False)


@torch.no_grad()
def randomise(net: nn.ModuleDict, pixels_P3HW: Tensor, seed: int) -> None:
    """Weights that use many codes: entries are N(0, 1), and so is each channel they are chosen by.

    All weights are 8-bit floats, which the file can hold exactly in a quarter of the bytes.
    """
    random = torch.Generator().manual_seed(seed)
    for name, weight in net.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if name == "quantize.embedding.weight":
            weight.copy_(noise)
        elif weight.ndim == 4:
            weight.copy_(noise / weight[0].numel() ** 0.5)
        else:  # biases, and the gains of the norms
            weight.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))
    h_PCHW = net["encoder"](pixels_P3HW)
    last = net["quant_conv"]
    z_PEHW = last(h_PCHW)
    spread_E = z_PEHW.std((0, 2, 3))
    last.weight.div_(spread_E.view(-1, 1, 1, 1))
    last.bias.sub_(z_PEHW.mean((0, 2, 3))).div_(spread_E)
    for weight in net.parameters():
        weight.copy_(weight.to(torch.float8_e4m3fn))


@torch.no_grad()
def run(net: nn.ModuleDict, pixels_P3HW: Tensor) -> dict[str, Tensor]:
    """What taming makes of the pictures: features [P, E, H, W], codes [P, L], pixels."""
    features_PEHW = net["quant_conv"](net["encoder"](pixels_P3HW))
    entries_PEHW, _, (_, _, codes_N) = net["quantize"](features_PEHW)
    rebuilt_P3HW = net["decoder"](net["post_quant_conv"](entries_PEHW))
    return {
        "features": features_PEHW,
        "codes": codes_N.view(len(pixels_P3HW), -1),
        "pixels": rebuilt_P3HW,
    }


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Colour slopes under noise, 8-bit: [P, 3, H, W]."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.linspace(-1, 1, size)
    slope_P3HW = torch.randn((count, 3, 1, 1), generator=random) * steps.view(-1, 1)
    slope_P3HW = slope_P3HW + torch.randn((count, 3, 1, 1), generator=random) * steps
    noise_P3HW = torch.randn((count, 3, size, size), generator=random)
    return ((slope_P3HW + 0.3 * noise_P3HW) * 80 + 128).clamp(0, 255).to(torch.uint8)


def to_pixels(pictures_P3HW: Tensor) -> Tensor:
    """8-bit pictures -> pixels in -1..1."""
    return pictures_P3HW.float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("result", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    check_writable(options.result)
    torch.set_num_threads(1)
    pictures_P3HW = pictures(2, CONFIG.size, seed=0)
    net = taming_network(CONFIG)
    randomise(net, to_pixels(pictures_P3HW), seed=1)
    found = run(net, to_pixels(pictures_P3HW))
    tensors = {f"state.{k}": v.to(torch.float8_e4m3fn) for k, v in net.state_dict().items()}
    tensors |= {"pictures": pictures_P3HW} | {k: v.contiguous() for k, v in found.items()}
    write_file(options.result, save(tensors, {"config": json.dumps(asdict(CONFIG))}))
    used = len(found["codes"].unique())
    spread = found["pixels"].std().item()
    print(f"{options.result}: {used} of {CONFIG.codes} codes used, pixels spread {spread:.2f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
