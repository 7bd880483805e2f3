"""The Frechet distance of two folders of pictures, by the network that gives it its name.

On the path: two folders -> `folders.read_folder` with a network -> `distances.frechet`. By the
Inception of `inception` it is the FID; by the MobileNetV2 of tokenizer/vqgan/perceptual.py, whose
weights are easier to come by, it is the mobilenet distance, never to be set beside a FID.
"""

# Shapes: N, M = pictures of the two sets; F = features of a picture

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eval.networks.distances import Distance
from eval.networks.folders import BATCH, Features, Progress, read_folder
from eval.networks.inception import FidInception
from tokenizer.vqgan.perceptual import FeatureNet

Of = Callable[[Tensor, Tensor], Distance]


@dataclass(frozen=True)
class Compared:
    """The features of two sets, for other measures too, and their distance."""

    real_NF: Tensor
    made_MF: Tensor
    distance: Distance


def inception_features(weights: Path, device: torch.device | str = "cpu") -> Features:
    """FID's network from scripts/convert_inception.py's file. Raises UserError as its `load`."""
    return FidInception.load(weights).to(device)


def mobilenet_features(weights: Path, device: torch.device | str = "cpu") -> Features:
    """Pooled MobileNetV2 from scripts/convert_mobilenet.py's file. Raises UserError as its
    `load`."""
    return FeatureNet.load(weights).to(device).pooled


def compare(
    real: Path,
    made: Path,
    features: Features,
    of: Of,
    *,
    size: int | None = None,
    batch: int = BATCH,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Compared:
    """Read two folders and measure. Raises UserError as `read_folder` and the distance."""
    real_NF, made_MF = (
        read_folder(folder, features, size=size, batch=batch, device=device, progress=progress)
        for folder in (real, made)
    )
    return Compared(real_NF, made_MF, of(real_NF, made_MF))
