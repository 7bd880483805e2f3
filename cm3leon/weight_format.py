"""How a decoder's weights lie in a file: in fp32, in fp16, or as int8 rows with a scale each.

Between the decoder and `checkpoint`, which writes and reads the files; what is
loaded is fp32 again.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from cm3leon.fast.quantize import to_int8

Stored = Literal["fp32", "fp16", "int8"]
SCALES = ".scales"  # behind the name of a matrix: what its rows are to be multiplied with


def pack(state: Mapping[str, Tensor], stored: Stored) -> dict[str, Tensor]:
    """Weights as they are to lie. int8 is of matrices; all else stays fp32 beside them."""
    if stored == "fp32":
        return dict(state)
    if stored == "fp16":
        return {name: tensor.half() for name, tensor in state.items()}
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim == 2:
            packed[name + SCALES], packed[name] = to_int8(tensor.detach().float())
        else:
            packed[name] = tensor
    return packed


def listed(wanted: Mapping[str, Tensor], stored: Stored) -> dict[str, Tensor]:
    """The names and shapes that are in the files of a decoder whose weights are `wanted`."""
    scales = {
        name + SCALES: torch.empty(len(tensor), device="meta")
        for name, tensor in wanted.items()
        if stored == "int8" and tensor.ndim == 2
    }
    return {**wanted, **scales}


def unpack(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was read, all of it fp32, as weights."""
    return {
        name: tensor * found[name + SCALES][:, None] if name + SCALES in found else tensor
        for name, tensor in found.items()
        if not name.endswith(SCALES)
    }
