"""Storage formats of a decoder's weights: fp32, fp16, or int8 rows with a scale each.

`checkpoint` writes and reads the files; loaded weights are fp32 again.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from cm3leon.fast.quantize import to_int8

Stored = Literal["fp32", "fp16", "int8"]
SCALES = ".scales"  # suffix of a matrix's name: the scales of its rows


def pack(state: Mapping[str, Tensor], stored: Stored) -> dict[str, Tensor]:
    """Return the weights in their stored format. int8 is for matrices; all others stay fp32."""
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
    """Return the names and shapes stored in the files of a decoder whose weights are `wanted`."""
    scales = {
        name + SCALES: torch.empty(len(tensor), device="meta")
        for name, tensor in wanted.items()
        if stored == "int8" and tensor.ndim == 2
    }
    return {**wanted, **scales}


def unpack(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of stored tensors, which have all been read as fp32."""
    return {
        name: tensor * found[name + SCALES][:, None] if name + SCALES in found else tensor
        for name, tensor in found.items()
        if not name.endswith(SCALES)
    }
