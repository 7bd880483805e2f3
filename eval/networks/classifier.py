"""Concept classifier: a small network that recognises the thing and the style that an image shows.

It is trained here, from random weights, on the real train images of a corpus without its held-out
pairs (a thing in a style), and shares no network with the codebook or the retriever. It reads
images at half size, where a codebook's blur matters little. It is trained on the things and the
styles of the held-out pairs, but not on their combinations: its accuracy on the real images is the
upper bound for generated images.
"""

# Shapes: N = images, B = batch, 3HW = pixels, C = classes, P = pairs of thing and style

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from eval.corpus import list_pictures, read_images
from tokenizer.data.tars import Tally
from tokenizer.errors import UserError
from tokenizer.manifest import write_file
from tokenizer.pixels import to_pixels

SIDE = 32  # side of the input in pixels
WIDTHS = (48, 96, 192)
BATCH = 64
EPOCHS = 30  # each with every pair once
RATE = 2e-3
SHIFT = 2  # largest shift of an image in training, in pixels
KIND = "emoji"  # the corpus's kind of images with things and styles

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Names of the classes, in the order of the classifier's outputs."""

    families: tuple[str, ...]
    styles: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Named:
    """Correctness of the classifier's predictions for one image."""

    family: bool
    family_among_five: bool
    style: bool

    @property
    def both(self) -> bool:
        """True if the family and the style are correct."""
        return self.family and self.style


class Classifier(nn.Module):
    """Three stages of two convolutions, and a linear head each for families and for styles."""

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self.classes = classes
        layers: list[nn.Module] = []
        inside = 3
        for width in WIDTHS:
            for stride in (2, 1):
                layers += [
                    nn.Conv2d(inside, width, 3, stride, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                inside = width
        self.body = nn.Sequential(*layers)
        self.family = nn.Linear(inside, len(classes.families))
        self.style = nn.Linear(inside, len(classes.styles))

    def forward(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of families and of styles, [B, C] each."""
        features_B = self.body(pixels_B3HW).mean((2, 3))
        return self.family(features_B), self.style(features_B)

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image]) -> list[tuple[list[str], str]]:
        """Return for each image the five likeliest families, best first, and the best style."""
        found: list[tuple[list[str], str]] = []
        for start in range(0, len(images), BATCH):
            some = images[start : start + BATCH]
            family_BC, style_BC = self(torch.stack([small(image) for image in some]))
            best_B5 = family_BC.topk(min(5, family_BC.shape[1])).indices.tolist()
            for best, style in zip(best_B5, style_BC.argmax(1).tolist(), strict=True):
                families = [self.classes.families[number] for number in best]
                found.append((families, self.classes.styles[style]))
        return found

    def name(self, images: Sequence[Image.Image], wanted: Sequence[tuple[str, str]]) -> list[Named]:
        """Compare predictions with each image's (family, style).

        A family or style that is not among the classes is never correct.
        """
        return [
            Named(family=best[0] == family, family_among_five=family in best, style=seen == style)
            for (best, seen), (family, style) in zip(self.look(images), wanted, strict=True)
        ]


def small(image: Image.Image) -> Tensor:
    """Return an image as input of the classifier, [3, H, W]."""
    return to_pixels(image.resize((SIDE, SIDE), Image.Resampling.BOX))


def pairs_of(listed: Iterable[Mapping[str, Any]], excluded: Set[str]) -> dict[str, tuple[str, str]]:
    """Return family and style by id, of the images that have both.

    Raises UserError if there are none.
    """
    found = {
        one["id"]: (one["family"], one["style"])
        for one in listed
        if one.get("kind") == KIND
        and one.get("family")
        and one.get("style")
        and one["id"] not in excluded
    }
    if not found:
        raise UserError(
            f"no image is of kind {KIND!r} with a family and a style, which a concept score asks "
            "for; measure on a corpus whose images have them"
        )
    return found


def judge(
    tars: Sequence[Path], held_out: Set[str], cache: Path, seed: int, progress: Progress | None
) -> Classifier:
    """Return the classifier of these train images without the held-out ones.

    It is read from `cache` if that has the same data and settings, else trained and written there.
    """
    pairs = pairs_of(list_pictures(tars), held_out)
    classes = Classes(
        families=tuple(sorted({family for family, _ in pairs.values()})),
        styles=tuple(sorted({style for _, style in pairs.values()})),
    )
    made_of = (sorted(pairs.items()), SIDE, WIDTHS, BATCH, EPOCHS, RATE, SHIFT, seed)
    key = hashlib.sha256(repr(made_of).encode()).hexdigest()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(classes)
        if not _read(model, cache, key):
            cache.parent.mkdir(parents=True, exist_ok=True)
            _train(model, tars, pairs, progress)
            weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
            write_file(cache, save(weights, {"made_of": key}))
    return model.eval()


def _read(model: Classifier, cache: Path, key: str) -> bool:
    """Load a classifier from its file; return whether it has the same data and settings.

    False as well if the file is missing or damaged.
    """
    try:
        with safe_open(cache, "pt") as file:
            if (file.metadata() or {}).get("made_of") != key:
                return False
            names = list(file.keys())
            model.load_state_dict({name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _train(
    model: Classifier,
    tars: Sequence[Path],
    pairs: Mapping[str, tuple[str, str]],
    progress: Progress | None,
) -> None:
    """Train a classifier; each epoch has one random variant of each pair of family and style."""
    pixels_N3HW, family_N, style_N = _pictures(model.classes, tars, pairs)
    variants: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, pair in enumerate(zip(family_N.tolist(), style_N.tolist(), strict=True)):
        variants[pair].append(place)
    groups = list(variants.values())
    steps = EPOCHS * -(-len(groups) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    step = 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(groups)).tolist()
        drawn = torch.rand(len(groups)).tolist()
        chosen = [groups[one][int(drawn[one] * len(groups[one]))] for one in order]
        for start in range(0, len(chosen), BATCH):
            some_B = torch.tensor(chosen[start : start + BATCH])
            family_BC, style_BC = model(moved(pixels_N3HW[some_B]))
            loss = F.cross_entropy(family_BC, family_N[some_B], label_smoothing=0.1)
            loss = loss + F.cross_entropy(style_BC, style_N[some_B], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            if progress is not None:
                progress(step, steps)


def _pictures(
    classes: Classes, tars: Sequence[Path], pairs: Mapping[str, tuple[str, str]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images at the classifier's input size, and their class indices."""
    families = {name: number for number, name in enumerate(classes.families)}
    styles = {name: number for number, name in enumerate(classes.styles)}
    rows: list[Tensor] = []
    numbers: list[tuple[int, int]] = []
    for metadata, image in read_images(tars, pairs.keys(), Tally()):
        family, style = pairs[metadata["id"]]
        rows.append(small(image))
        numbers.append((families[family], styles[style]))
    family_N, style_N = cast(tuple[Tensor, Tensor], torch.tensor(numbers).unbind(1))
    return torch.stack(rows), family_N, style_N


def moved(pixels_B3HW: Tensor) -> Tensor:
    """Augment images slightly: each is shifted, and darker or lighter; half of them are blurred.

    Images are not mirrored, because that changes what clocks and letters show.
    """
    count, _, height, width = pixels_B3HW.shape
    padded = F.pad(pixels_B3HW, (SHIFT,) * 4, mode="replicate")
    places = torch.randint(2 * SHIFT + 1, (count, 2)).tolist()
    cut = [
        one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, places, strict=True)
    ]
    found_B3HW = torch.stack(cut)
    coarse = F.interpolate(found_B3HW, scale_factor=0.5, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, size=(height, width), mode="bilinear")
    found_B3HW = torch.where(torch.rand(count, 1, 1, 1) < 0.5, coarse, found_B3HW)
    light_B = 1 + 0.1 * torch.randn(count, 1, 1, 1)
    return (found_B3HW * light_B).clamp(-1, 1)
