"""Turn LPIPS's weights (two pickled .pth files) into one safetensors file.

    python scripts/convert_lpips.py vgg16-397923af.pth lpips_vgg.safetensors

The source is torchvision's ImageNet VGG16 (download.pytorch.org/models); fetch it yourself, nothing
here does. The weights of the channels come with torchmetrics (extra `eval`). The classifier is
dropped. Done once, in this process alone: the project never reads the pickles again.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from eval.networks.lpips import STAGES
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, file_hash, write_file

VGG = "397923af"  # the first of its SHA-256, as its name says
CHANNELS = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


def convert(vgg: dict[str, Tensor], channels: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's and torchmetrics' names -> those of eval/networks/lpips.py."""
    kernels = [key for key, one in vgg.items() if key.startswith("features.") and one.ndim == 4]
    places = [(stage, n) for stage, widths in enumerate(STAGES) for n in range(len(widths))]
    found: dict[str, Tensor] = {}
    for key, (stage, n) in zip(kernels, places, strict=True):
        for part in ("weight", "bias"):
            found[f"stages.{stage}.{n}.{part}"] = vgg[key.replace("weight", part)].float()
    for stage in range(len(STAGES)):
        found[f"weigh.{stage}"] = channels[f"lin{stage}.model.1.weight"].flatten().float()
    return {name: tensor.contiguous() for name, tensor in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="vgg16-397923af.pth")
    parser.add_argument("result", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    check_writable(options.result)
    spec = find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise UserError("torchmetrics is not installed; pip install 'cm3leon[eval]'")
    channels = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
    for path, wanted in ((options.source, VGG), (channels, CHANNELS)):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if not (found := file_hash(path)).startswith(wanted):
            raise UserError(f"{path}: its SHA-256 is {found}, wanted {wanted}")
    vgg, weigh = (
        torch.load(path, map_location="cpu", weights_only=True)
        for path in (options.source, channels)
    )
    write_file(options.result, save(convert(vgg, weigh)))
    print(options.result)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
