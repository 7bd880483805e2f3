"""How far painted pictures as a set lie from real ones: `fid`, `kid`, `mobilenet-distance`.

A `Lab` in, what was `Found` out. The real pictures are those whose captions were painted, cropped
and resized to the model's size, and beside them the same through the codebook: CM3Leon's paper does
not say which of the two its reference is. Two folders of pictures are compared in `fid`.
"""

# Shapes: N = pictures, B = batch, F = features of a picture

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.context import Lab
from eval.metrics.fid import Of, compare, inception_features, mobilenet_features
from eval.networks.distances import NEAREST, Distance, frechet, kid, surroundings
from eval.networks.folders import BATCH, Features, Progress, list_folder
from eval.networks.inception import FEATURES
from eval.networks.lpips import Lpips
from eval.report import RESAMPLES, Found, Value, mean
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash
from tokenizer.pixels import read_info, to_pixels

INCEPTION, MOBILENET = "inception.safetensors", "mobilenet_v2.safetensors"
LPIPS = "lpips_vgg.safetensors"
MAKERS = {
    INCEPTION: "scripts/convert_inception.py",
    MOBILENET: "scripts/convert_mobilenet.py",
    LPIPS: "scripts/convert_lpips.py",
}
FEWEST = FEATURES + 1  # pictures whose covariance can be full


def fid(lab: Lab) -> Found:
    """The Frechet Inception Distance. Raises UserError without its network, or with fewer pictures
    than features, of which a covariance cannot be had."""
    network = inception(lab)
    enough(len(lab.items), FEWEST)
    return _found(lab, "FID", network, frechet)


def kernel_distance(lab: Lab) -> Found:
    """KID, whose expectation does not hang on how many pictures there are. Raises UserError without
    its network."""
    return _found(lab, "KID", inception(lab), kid)


def mobilenet_distance(lab: Lab) -> Found:
    """The Frechet distance by features of MobileNetV2, never to be set beside a FID. Raises
    UserError without its network."""
    net = mobilenet_features(weights(lab.asked.weights, MOBILENET), lab.device)
    found = _found(lab, "mobilenet distance", net, frechet)
    note = f"a distance of {len(lab.items):,} pictures; compare it with others of as many"
    return Found(values=found.values, notes=[*found.notes, note], pictures=found.pictures)


def rebuilt_distance(lab: Lab) -> tuple[dict[str, Value], str]:
    """rFID of the lab's items, or why there is none."""
    try:
        network = inception(lab)
        enough(len(lab.items), FEWEST)
    except UserError as error:
        return {}, f"no rFID: {error}"
    real_NF = seen(network, [item.image for item in lab.items], lab.device)
    rebuilt_NF = seen(network, lab.rebuilt, lab.device)
    return {"rFID, all": interval(frechet(real_NF, rebuilt_NF))}, ""


@torch.inference_mode()
def likeness(lab: Lab) -> tuple[list[float], str]:
    """LPIPS of each of the lab's items with itself through the codebook, or why there is none."""
    try:
        net = Lpips.load(weights(lab.asked.weights, LPIPS)).to(lab.device)
    except UserError as error:
        return [], f"no LPIPS: {error}"
    found: list[float] = []
    pairs = list(zip(lab.items, lab.rebuilt, strict=True))
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        sides = (
            torch.stack([to_pixels(image) for image in images]).to(lab.device)
            for images in ([item.image for item, _ in some], [after for _, after in some])
        )
        found += net(*sides).tolist()
    return found, ""


def inception(lab: Lab) -> Features:
    """FID's network. Raises UserError where it is not at hand."""
    return inception_features(weights(lab.asked.weights, INCEPTION), lab.device)


def weights(folder: Path | None, name: str) -> Path:
    """A file of weights that does not ship. Raises UserError where it is not there."""
    path = Path(name) if folder is None else folder / name
    if folder is None or not path.is_file():
        where = "no folder of weights is named" if folder is None else f"{folder} has no {name}"
        raise UserError(f"{where}; make {name} with {MAKERS[name]} and name its folder: --weights")
    return path


def enough(count: int, fewest: int) -> None:
    """Raise UserError for too few pictures for a FID."""
    if count < fewest:
        raise UserError(
            f"{count:,} pictures have no covariance of {FEATURES:,} features; give at least "
            f"{fewest:,} for a FID, or measure kid"
        )


@dataclass(frozen=True, kw_only=True)
class Way:
    """A distance by its network."""

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
    """Raise UserError for folders that cannot be compared so, before a network is read: empty,
    too few pictures, swapped (`maker` wrote its name into the real ones), no weights."""
    weights(folder, WAYS[by].network)
    for place in (real, made):
        enough(len(list_folder(place)), WAYS[by].fewest)
    if read_info(list_folder(real)[0]).get("software", "").startswith(maker):
        raise UserError(f"{real} holds pictures that {maker} made; the real ones come first")


def of_folders(
    real: Path,
    made: Path,
    folder: Path | None,
    by: str,
    size: int | None,
    device: torch.device,
    progress: Progress,
) -> tuple[Found, dict[str, str]]:
    """The distance of two folders, and the hashes of all that made it. Raises UserError as
    `check_folders` and `read_folder`."""
    way = WAYS[by]
    path = weights(folder, way.network)
    network = (inception_features if way.network == INCEPTION else mobilenet_features)(path, device)
    compared = compare(real, made, network, way.of, size=size, device=device, progress=progress)
    values = {way.name: interval(compared.distance)}
    notes: list[str] = []
    if min(len(compared.real_NF), len(compared.made_MF)) > NEAREST:
        values |= among(compared.real_NF, compared.made_MF)
    else:
        notes.append(f"no precision or recall: they take more than {NEAREST} pictures a folder")
    hashes = {"real": of_all(real), "made": of_all(made), way.network: file_hash(path)}
    return Found(values=values, notes=notes), hashes


def of_all(folder: Path) -> str:
    """A hash of a folder's pictures, in the order in which they are read."""
    text = "".join(f"{path.name} {file_hash(path)}\n" for path in list_folder(folder))
    return hashlib.sha256(text.encode()).hexdigest()


def interval(distance: Distance) -> Value:
    """A distance with its 95% interval over the pictures of both sets."""
    draw = np.random.default_rng(0)
    spread = np.zeros(RESAMPLES)
    for parts in (distance.parts_N, distance.parts_M):
        places = draw.integers(len(parts), size=(RESAMPLES, len(parts)))
        spread += np.asarray(parts)[places].mean(1)
    low, high = np.percentile(spread, (2.5, 97.5))
    count = len(distance.parts_M)
    return Value(value=distance.value, low=float(low), high=float(high), count=count)


def among(real_NF: Tensor, made_NF: Tensor) -> Mapping[str, Value]:
    """Precision, recall, density and coverage."""
    found = surroundings(real_NF, made_NF)
    return {
        "precision": mean(found.precision_M),
        "recall": mean(found.recall_N),
        "density": mean(found.density_M),
        "coverage": mean(found.coverage_N),
    }


@torch.inference_mode()
def seen(network: Features, images: Sequence[Image.Image], device: torch.device) -> Tensor:
    """The features [N, F] of pictures of one size."""
    rows: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        pixels_B3HW = torch.stack([to_pixels(image) for image in images[start : start + BATCH]])
        rows.append(network(pixels_B3HW.to(device)).float().cpu())
    return torch.cat(rows)


def _found(lab: Lab, name: str, network: Features, of: Of) -> Found:
    real_NF = seen(network, [item.image for item in lab.items], lab.device)
    rebuilt_NF = seen(network, lab.rebuilt, lab.device)
    made_NF = seen(network, lab.painted, lab.device)
    values = {
        f"{name}, raw reference": interval(of(real_NF, made_NF)),
        f"{name}, reference through the codebook": interval(of(rebuilt_NF, made_NF)),
        f"{name} of the codebook alone": interval(of(real_NF, rebuilt_NF)),
        **among(real_NF, made_NF),
    }
    size = lab.leon.image_tokenizer.size
    return Found(values=values, notes=[f"real pictures cropped and resized to {size} pixels"])
