"""Precision of the matrix products of a forward pass, for every kind of training job."""

import torch

from train.config import Precision


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the autocast context of a forward pass: bf16 or fp32, as decided by `in_bf16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(precision, device))


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether to multiply in bf16; `auto` does so if the device has hardware support."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
