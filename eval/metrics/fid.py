"""FID and related distances between the distributions of generated and real images.

The real images are those whose captions were the prompts, cropped and resized to the model's size.
They are used as they are and through the codebook: CM3Leon's paper does not say which of the two is
its reference. With the Inception of `eval.networks.inception` the Frechet distance is the FID; with
the MobileNetV2 of `tokenizer.vqgan.perceptual`, whose weights are easier to obtain, it is the
mobilenet distance, which cannot be compared with a FID.
"""

# Shapes: N = images, B = batch, F = features per image

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.context import EvalContext
from eval.networks.distances import NEAREST, Distance, frechet, kid, surroundings
from eval.networks.folders import BATCH, Features, Progress, list_folder, read_folder
from eval.networks.inception import FEATURES, FidInception
from eval.networks.lpips import Lpips
from eval.report import RESAMPLES, MetricResult, Value, mean
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash
from tokenizer.pixels import read_info, to_pixels
from tokenizer.vqgan.perceptual import FeatureNet

INCEPTION, MOBILENET = "inception.safetensors", "mobilenet_v2.safetensors"
LPIPS = "lpips_vgg.safetensors"
MAKERS = {
    INCEPTION: "scripts/convert_inception.py",
    MOBILENET: "scripts/convert_mobilenet.py",
    LPIPS: "scripts/convert_lpips.py",
}
FEWEST = FEATURES + 1  # images whose covariance can have full rank
Of = Callable[[Tensor, Tensor], Distance]


def fid(context: EvalContext) -> MetricResult:
    """Compute the Frechet Inception Distance.

    Raises UserError without its network, or with too few images for a full covariance of its
    features.
    """
    network = inception(context)
    enough(len(context.items), FEWEST)
    return _found(context, "FID", network, frechet)


def kernel_distance(context: EvalContext) -> MetricResult:
    """Compute KID, whose expectation does not depend on the number of images.

    Raises UserError without its network.
    """
    return _found(context, "KID", inception(context), kid)


def mobilenet_distance(context: EvalContext) -> MetricResult:
    """Compute the Frechet distance of MobileNetV2's features, which cannot be compared with a FID.

    Raises UserError without its network.
    """
    net = mobilenet_features(weights(context.asked.weights, MOBILENET), context.device)
    found = _found(context, "mobilenet distance", net, frechet)
    note = f"a distance of {len(context.items):,} images; compare it with others of as many"
    return MetricResult(values=found.values, notes=[*found.notes, note], pictures=found.pictures)


def rebuilt_distance(context: EvalContext) -> tuple[dict[str, Value], str]:
    """Return the rFID of the context's items, or the reason that there is none."""
    try:
        network = inception(context)
        enough(len(context.items), FEWEST)
    except UserError as error:
        return {}, f"no rFID: {error}"
    real_NF = seen(network, [item.image for item in context.items], context.device)
    rebuilt_NF = seen(network, context.rebuilt, context.device)
    return {"rFID, all": interval(frechet(real_NF, rebuilt_NF))}, ""


@torch.inference_mode()
def likeness(context: EvalContext) -> tuple[list[float], str]:
    """Return LPIPS between the context's items and their reconstructions, or why there is none."""
    try:
        net = Lpips.load(weights(context.asked.weights, LPIPS)).to(context.device)
    except UserError as error:
        return [], f"no LPIPS: {error}"
    found: list[float] = []
    pairs = list(zip(context.items, context.rebuilt, strict=True))
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        sides = (
            torch.stack([to_pixels(image) for image in images]).to(context.device)
            for images in ([item.image for item, _ in some], [after for _, after in some])
        )
        found += net(*sides).tolist()
    return found, ""


def inception(context: EvalContext) -> Features:
    """Load FID's network. Raises UserError if its weights are not available."""
    return inception_features(weights(context.asked.weights, INCEPTION), context.device)


def weights(folder: Path | None, name: str) -> Path:
    """Return the path of weights that are not shipped. Raises UserError if the file is missing."""
    path = Path(name) if folder is None else folder / name
    if folder is None or not path.is_file():
        where = "no folder of weights is named" if folder is None else f"{folder} has no {name}"
        raise UserError(f"{where}; make {name} with {MAKERS[name]} and name its folder: --weights")
    return path


def enough(count: int, fewest: int) -> None:
    """Raise UserError for too few images for a FID."""
    if count < fewest:
        raise UserError(
            f"{count:,} images have no covariance of {FEATURES:,} features; give at least "
            f"{fewest:,} for a FID, or measure kid"
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """Distance with the network that computes its features."""

    name: str
    network: str
    of: Of
    fewest: int = 2


WAYS = {
    "fid": Way(name="FID", network=INCEPTION, of=frechet, fewest=FEWEST),
    "kid": Way(name="KID", network=INCEPTION, of=kid),
    "mobilenet-distance": Way(name="mobilenet distance", network=MOBILENET, of=frechet),
}


def check_folders(real: Path, made: Path, folder: Path | None, by: str, maker: str) -> None:
    """Raise UserError for folders that cannot be compared, before a network is loaded.

    They are empty, have too few images or are swapped (the real images' metadata name `maker`), or
    the weights are missing.
    """
    weights(folder, WAYS[by].network)
    for place in (real, made):
        enough(len(list_folder(place)), WAYS[by].fewest)
    if read_info(list_folder(real)[0]).get("software", "").startswith(maker):
        raise UserError(f"{real} holds images that {maker} made; the real ones come first")


def of_folders(
    real: Path,
    made: Path,
    folder: Path | None,
    by: str,
    size: int | None,
    device: torch.device,
    progress: Progress,
) -> tuple[MetricResult, dict[str, str]]:
    """Return the distance of two folders, and the hashes of everything that it depends on.

    Raises UserError as `check_folders` and `read_folder`.
    """
    way = WAYS[by]
    path = weights(folder, way.network)
    network = (inception_features if way.network == INCEPTION else mobilenet_features)(path, device)
    compared = compare(real, made, network, way.of, size=size, device=device, progress=progress)
    values = {way.name: interval(compared.distance)}
    notes: list[str] = []
    if min(len(compared.real_NF), len(compared.made_MF)) > NEAREST:
        values |= among(compared.real_NF, compared.made_MF)
    else:
        notes.append(f"no precision or recall: they take more than {NEAREST} images a folder")
    hashes = {"real": of_all(real), "made": of_all(made), way.network: file_hash(path)}
    return MetricResult(values=values, notes=notes), hashes


def of_all(folder: Path) -> str:
    """Return a hash of a folder's images, in the order in which they are read."""
    text = "".join(f"{path.name} {file_hash(path)}\n" for path in list_folder(folder))
    return hashlib.sha256(text.encode()).hexdigest()


def interval(distance: Distance) -> Value:
    """Return a distance with its 95% interval over the images of both sets."""
    draw = np.random.default_rng(0)
    spread = np.zeros(RESAMPLES)
    for parts in (distance.parts_N, distance.parts_M):
        places = draw.integers(len(parts), size=(RESAMPLES, len(parts)))
        spread += np.asarray(parts)[places].mean(1)
    low, high = np.percentile(spread, (2.5, 97.5))
    count = len(distance.parts_M)
    return Value(value=distance.value, low=float(low), high=float(high), count=count)


def among(real_NF: Tensor, made_NF: Tensor) -> Mapping[str, Value]:
    """Return precision, recall, density and coverage."""
    found = surroundings(real_NF, made_NF)
    return {
        "precision": mean(found.precision_M),
        "recall": mean(found.recall_N),
        "density": mean(found.density_M),
        "coverage": mean(found.coverage_N),
    }


@torch.inference_mode()
def seen(network: Features, images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """Compute the features [N, F] of images of one size."""
    rows: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        pixels_B3HW = torch.stack([to_pixels(image) for image in images[start : start + BATCH]])
        rows.append(network(pixels_B3HW.to(device)).float().cpu())
    return torch.cat(rows)


def _found(context: EvalContext, name: str, network: Features, of: Of) -> MetricResult:
    real_NF = seen(network, [item.image for item in context.items], context.device)
    rebuilt_NF = seen(network, context.rebuilt, context.device)
    made_NF = seen(network, context.painted, context.device)
    values = {
        f"{name}, raw reference": interval(of(real_NF, made_NF)),
        f"{name}, reference through the codebook": interval(of(rebuilt_NF, made_NF)),
        f"{name} of the codebook alone": interval(of(real_NF, rebuilt_NF)),
        **among(real_NF, made_NF),
    }
    size = context.leon.image_tokenizer.size
    return MetricResult(values=values, notes=[f"real images cropped and resized to {size} pixels"])


@dataclass(frozen=True)
class Compared:
    """Features of two sets, for other metrics too, and their distance."""

    real_NF: Tensor
    made_MF: Tensor
    distance: Distance


def inception_features(weights: Path, device: torch.device | str = "cpu") -> Features:
    """Load FID's network from the file of scripts/convert_inception.py.

    Raises UserError as its `load`.
    """
    return FidInception.load(weights).to(device)


def mobilenet_features(weights: Path, device: torch.device | str = "cpu") -> Features:
    """Load pooled MobileNetV2 from the file of scripts/convert_mobilenet.py.

    Raises UserError as its `load`.
    """
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
    """Read two folders and compute their distance.

    Raises UserError as `read_folder` and the distance.
    """
    real_NF, made_MF = (
        read_folder(folder, features, size=size, batch=batch, device=device, progress=progress)
        for folder in (real, made)
    )
    return Compared(real_NF, made_MF, of(real_NF, made_MF))
