"""Reconstruction of images through the codebook: PSNR, SSIM, codes in use, LPIPS, rFID."""

# Shapes: 3 = red, green, blue; H, W = pixels

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.context import EvalContext
from eval.metrics.fid import likeness, rebuilt_distance
from eval.report import MetricResult, Value, mean, sheet_of
from eval.stats import by_kind, kind_of
from tokenizer.errors import UserError
from tokenizer.pixels import to_pixels

GROUP = 32  # images compared at once


def reconstruction(context: EvalContext) -> MetricResult:
    """Score reconstructions: PSNR, SSIM, the share of codes in use, LPIPS and rFID.

    LPIPS and rFID are left out if their networks are not available.
    """
    after = context.rebuilt
    ratios = [psnr(item.image, image) for item, image in zip(context.items, after, strict=True)]
    structures = structure([item.image for item in context.items], after)
    unlike, no_lpips = likeness(context)
    values: dict[str, Value] = {}
    for kind, places in by_kind([kind_of(item.metadata) for item in context.items]).items():
        used = {code for place in places for code in context.items[place].picture.codes}
        values[f"PSNR in dB, {kind}"] = mean([ratios[place] for place in places])
        values[f"SSIM, {kind}"] = mean([structures[place] for place in places])
        if unlike:
            values[f"LPIPS, {kind}"] = mean([unlike[place] for place in places])
        share = len(used) / context.leon.image_tokenizer.codes
        values[f"share of codes in use, {kind}"] = Value(value=share, count=len(places))
    further, no_rfid = rebuilt_distance(context)
    rows = [(item.image, image) for item, image in zip(context.items, after, strict=True)]
    return MetricResult(
        values=values | further,
        notes=[lack for lack in (no_lpips, no_rfid) if lack],
        pictures={"before-after": sheet_of(rows)},
    )


def structure(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
    """Compute the SSIM of each pair, by torchmetrics. Raises UserError if that is not installed."""
    try:
        from torchmetrics.functional import image as metrics
    except ImportError as error:
        raise UserError(
            "SSIM needs torchmetrics, which is not installed; pip install 'cm3leon[eval]'"
        ) from error
    ssim = cast(Callable[..., Tensor], metrics.structural_similarity_index_measure)
    found: list[float] = []
    for start in range(0, len(before), GROUP):
        some = slice(start, start + GROUP)
        sides = [
            torch.stack([to_pixels(one) for one in images[some]]) for images in (before, after)
        ]
        found += ssim(*sides, data_range=2.0, reduction="none").flatten().tolist()
    return found


def psnr(before: Image.Image, after: Image.Image) -> float:
    """Compute the peak signal-to-noise ratio in dB of two RGB images of one size, of 8-bit values.

    Equal images count as if a single value differed by one, so that a mean stays finite.
    """
    error_HW3 = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    mean_square = max(float(np.square(error_HW3).mean()), 1 / error_HW3.size)
    return 10 * math.log10(255**2 / mean_square)
