"""Turn pytorch-fid's Inception weights (a pickled .pth) into one safetensors file.

    python scripts/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.safetensors

The source lies among the release files of github.com/mseitzer/pytorch-fid (`fid_weights`); fetch it
yourself, nothing here does. The classifier and training's counters are dropped; the rest keeps its
names and values, which is what eval/networks/inception.py loads. Done once, in this process alone:
the project never reads the pickle again.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, file_hash, write_file

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def convert(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names and values, less what gives no features."""
    return {
        name: tensor.float().contiguous()
        for name, tensor in weights.items()
        if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith(".num_batches_tracked")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="pt_inception-2015-12-05-6726825d.pth")
    parser.add_argument("result", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    check_writable(options.result)
    if not options.source.is_file():
        raise UserError(f"{options.source}: no such file")
    if (found := file_hash(options.source)) != SHA256:
        raise UserError(f"{options.source}: its SHA-256 is {found}, wanted {SHA256}")
    weights = torch.load(options.source, map_location="cpu", weights_only=True)
    write_file(options.result, save(convert(weights)))
    print(options.result)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
