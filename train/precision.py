"""In which precision a forward pass multiplies; every kind of training job asks here."""

import torch

from train.config import Precision


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The products of a forward pass in bf16 or fp32, whichever `in_bf16` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(precision, device))


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether to multiply in bf16; `auto` does where the device has circuits for it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
