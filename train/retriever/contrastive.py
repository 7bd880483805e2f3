"""Contrastive training of the retriever's dual encoder, on images and their captions.

`cm3leon train` calls `main`. The loss is CLIP's (arXiv 2103.00020, figure 3), in both directions;
if several images of a batch have the same caption, each of them is a positive. The images and
captions of a batch are a function of (seed, step) alone.
"""

# Shapes: B = batch, E = embedding width, P = images, 3 = RGB, H, W = pixels

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cm3leon.pipeline import pick_device
from retrieval.encoder import DualEncoder, EncoderConfig, SmallEmbedder
from tokenizer import config as settings
from tokenizer.data.tars import find_tars, read_ids
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import to_bytes
from tokenizer.text import TextTokenizer
from tokenizer.vqgan.perceptual import FeatureNet
from train import config, state
from train.data.corpus import load_pixels
from train.data.paraphrase import reword
from train.metrics import MetricLogger
from train.schedule import Schedule
from train.state import Say

GROUP = 64  # images per batch of `through_codebook`


@dataclass(frozen=True, kw_only=True)
class EncoderRecipe:
    """Recipe of one training run of the dual encoder."""

    job: Literal["encoder"] = "encoder"
    data: str  # WebDataset tars: a folder of train-*.tar, or a glob
    exclude: str | None = None  # file of held-out image ids, one per line
    text_tokenizer: str  # .model file
    features: str  # MobileNetV2's weights, made by scripts/convert_mobilenet.py, to start from
    shares: dict[str, float] = field(default_factory=dict)  # kind -> share of draws; {}: by count
    evenly: float = 0.0  # sampling within a kind: 0 is uniform over images, 1 over families
    reworded: float = 0.0  # share of captions that are paraphrased (`paraphrase`)
    recoded: float = 0.0  # share of images reconstructed by `image_tokenizer`
    image_tokenizer: str | None = None  # a folder
    model: EncoderConfig
    schedule: Schedule
    features_rate: float = 0.1  # learning rate factor of the MobileNetV2 weights
    weight_decay: float = 0.1
    shift: int = 4  # largest random shift of an image in pixels, in each direction
    steps: int
    batch: int
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch < 2:
            raise UserError("batch must be at least 2: an image is told apart from others")
        for name in ("shift", "features_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("evenly", "reworded", "recoded"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.recoded and not self.image_tokenizer:
            raise UserError("recoded images need image_tokenizer=FOLDER")


def load(recipe: str, overrides: Sequence[str]) -> EncoderRecipe:
    """Return a checked recipe; `model.pieces` is UNKNOWN for now if the recipe does not set it."""
    table = config.read(EncoderRecipe, recipe, overrides)
    if isinstance(model := table.get("model"), dict):
        model.setdefault("pieces", config.UNKNOWN)
    return settings.build(EncoderRecipe, table)


class PairBatches:
    """Batches of images with one of their captions each, by (seed, step)."""

    def __init__(
        self,
        metadata: Sequence[Mapping[str, Any]],
        pixels: NDArray[np.uint8],
        recipe: EncoderRecipe,
        recoded: NDArray[np.uint8] | None = None,
    ) -> None:
        self.metadata, self.pixels, self.recipe, self.recoded = metadata, pixels, recipe, recoded
        kinds = np.array([str(one.get("kind", "picture")) for one in metadata])
        told = np.array([bool(one["captions"]) for one in metadata])
        if not told.any():
            raise UserError("no image has a caption to learn from")
        found = sorted(set(kinds[told].tolist()))
        shares = recipe.shares or {k: float((told & (kinds == k)).sum()) for k in found}
        if missing := sorted(shares.keys() - set(found)):
            raise UserError(f"shares: no captioned image of kind '{missing[0]}'; found {found}")
        self.groups = [np.flatnonzero(told & (kinds == kind)) for kind in shares]
        self.share = np.array(list(shares.values())) / sum(shares.values())
        families = [str(one.get("family", one["id"])) for one in metadata]
        size = Counter(family for family, one in zip(families, told, strict=True) if one)
        weight = np.array([size[family] or 1 for family in families]) ** -recipe.evenly
        self.weights = [weight[group] / weight[group].sum() for group in self.groups]

    def at(self, step: int) -> tuple[list[str], Tensor]:
        """Return captions, and pixels [B, 3, size, size] in -1..1, of step `step`."""
        rng = np.random.default_rng((self.recipe.seed, step))
        group = rng.choice(len(self.groups), self.recipe.batch, p=self.share)
        rows = [self._row(int(place), rng) for place in group]
        captions = [self._caption(self.metadata[row], rng) for row in rows]
        moved = [self._moved(self._seen(row, rng), rng) for row in rows]
        return captions, torch.from_numpy(np.stack(moved)).float() / 127.5 - 1

    def _row(self, place: int, rng: np.random.Generator) -> int:
        even = self.weights[place] if self.recipe.evenly else None
        return int(rng.choice(self.groups[place], p=even))

    def _caption(self, picture: Mapping[str, Any], rng: np.random.Generator) -> str:
        asked = self.recipe.reworded and rng.random() < self.recipe.reworded
        if asked and (found := reword(picture, rng)):
            return found
        return str(rng.choice(picture["captions"]))

    def _seen(self, row: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        if self.recoded is not None and rng.random() < self.recipe.recoded:
            return self.recoded[row]
        return self.pixels[row]

    def _moved(self, pixels_3HW: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Shift an image at random, padding with white, the background of most images."""
        most, size = self.recipe.shift, pixels_3HW.shape[-1]
        white = ((0, 0), (most, most), (most, most))
        padded = np.pad(pixels_3HW, white, constant_values=255)
        top, left = (int(place) for place in rng.integers(2 * most + 1, size=2))
        return padded[:, top : top + size, left : left + size]


def codebook_of(recipe: EncoderRecipe) -> ImageTokenizer | None:
    """Return the image tokenizer that reconstructs images, or None if the recipe has no `recoded`.

    Raises UserError if it is missing or of another size.
    """
    if not recipe.recoded:
        return None
    image = ImageTokenizer.load(Path(str(recipe.image_tokenizer)))
    if image.size != recipe.model.size:
        raise UserError(
            f"{recipe.image_tokenizer} takes images of {image.size} pixels, the encoder of "
            f"{recipe.model.size}; name an image_tokenizer of that size"
        )
    return image


@torch.inference_mode()
def through_codebook(
    pixels_P3HW: NDArray[np.uint8], image: ImageTokenizer, device: torch.device
) -> NDArray[np.uint8]:
    """Return the reconstructions of all images by an image tokenizer, as uint8."""
    image = image.to(device)
    rows: list[NDArray[np.uint8]] = []
    for start in range(0, len(pixels_P3HW), GROUP):
        group_B3HW = torch.from_numpy(np.array(pixels_P3HW[start : start + GROUP]))
        again_B3HW = image.decode(image.encode(group_B3HW.to(device).float() / 127.5 - 1))
        rows.append(to_bytes(again_B3HW).byte().cpu().numpy())
    return np.concatenate(rows)


def contrastive_loss(text_BE: Tensor, picture_BE: Tensor, scale: Tensor, same_BB: Tensor) -> Tensor:
    """Return the symmetric contrastive cross-entropy in nats.

    `same_BB[i, j]` is true if image j has caption i too, and is then a positive like image i.
    """
    logits_BB = scale * text_BE @ picture_BE.T
    wanted_BB = same_BB.to(logits_BB.dtype)
    losses = [
        F.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
        for logits, wanted in ((logits_BB, wanted_BB), (logits_BB.T, wanted_BB.T))
    ]
    return torch.stack(losses).mean()


def same_captions(captions: Sequence[str]) -> Tensor:
    """Return bool [B, B]: true for pairs of equal captions of a batch."""
    return torch.tensor([[one == other for other in captions] for one in captions])


class ContrastiveJob:
    """Network and optimiser of one run; `step` does one training step."""

    def __init__(
        self, recipe: EncoderRecipe, text: TextTokenizer, batches: PairBatches, device: torch.device
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.text, self.batches, self.device = recipe, text, batches, device
        self.net = DualEncoder(recipe.model)
        self.net.features.load_state_dict(FeatureNet.load(recipe.features).state_dict())
        self.net.to(device)
        started = list(self.net.features.parameters())
        known = {id(weight) for weight in started}
        others = [weight for weight in self.net.parameters() if id(weight) not in known]
        groups: list[dict[str, Any]] = [
            {"params": others, "share": 1.0},
            {"params": started, "share": recipe.features_rate},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )

    def step(self, step: int) -> dict[str, float]:
        """Do one training step; return its metrics. Raises UserError if the loss is not finite."""
        rate = self.recipe.schedule.rate(step, self.recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        captions, pixels_B3HW = self.batches.at(step)
        text_BE = self.net.of_texts([self.text.encode(caption) for caption in captions])
        picture_BE = self.net.of_pictures(pixels_B3HW.to(self.device))
        same_BB = same_captions(captions).to(self.device)
        loss = contrastive_loss(text_BE, picture_BE, self.net.scale(), same_BB)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0).item()
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise UserError(f"the loss is {loss.item()}; begin anew with a lower schedule.peak")
        self.optimizer.step()
        best_B = (text_BE @ picture_BE.T).detach().argmax(1)
        right = same_BB[torch.arange(len(captions), device=self.device), best_B]
        figures = {"loss": loss.item(), "right": right.float().mean().item()}
        return {**figures, "scale": self.net.scale().item(), "gradient": norm, "rate": rate}


def main(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    resume: str,
    say: Say,
    device: str = "auto",
    minutes: float = math.inf,
) -> Path:
    """Train, and return the folder `out/encoder`.

    After `minutes` the run stops with its state saved, and `out` is returned instead. Raises
    UserError for inconsistent settings, before the first step.
    """
    deadline = time.monotonic() + 60 * minutes
    named = load(recipe, overrides)
    text = TextTokenizer.load(Path(named.text_tokenizer))
    if named.model.pieces not in (config.UNKNOWN, text.pieces):
        raise UserError(
            f"model.pieces is {named.model.pieces}, but {named.text_tokenizer} has "
            f"{text.pieces}; leave it out"
        )
    wanted = replace(named, model=replace(named.model, pieces=text.pieces))
    image = codebook_of(wanted)
    tars, place = find_tars(wanted.data, "train-"), pick_device(device)
    exclude = read_ids(wanted.exclude) if wanted.exclude else frozenset[str]()
    with state.open_run(out, wanted, resume, ("save_every",)):
        metadata, pixels = load_pixels(tars, wanted.model.size, exclude, out, say=say)
        recoded = None
        if image is not None:
            say(f"{len(pixels)} images go through the codebook once")
            recoded = through_codebook(pixels, image, place)
        job = ContrastiveJob(wanted, text, PairBatches(metadata, pixels, wanted, recoded), place)
        done = run(job, out, say, deadline, resume)
    if done < wanted.steps:
        say(f"time is up after step {done} of {wanted.steps}; go on with --resume latest")
        return out
    SmallEmbedder(job.net.to("cpu"), text).save(out / "encoder", replace=True)
    return out / "encoder"


def run(
    job: ContrastiveJob, folder: Path, say: Say, deadline: float = math.inf, resume: str = "latest"
) -> int:
    """Train from a checkpoint in `folder`, or from the start; return the number of steps done."""
    recipe = job.recipe
    done = 0
    if found := state.find(folder, resume, say):
        done = found.step
        state.unpack(found, job.net, job.optimizer)
        say(f"resumed at step {done}")
    with MetricLogger(folder, start=done, steps=recipe.steps) as report:
        while done < recipe.steps:
            figures = job.step(done)
            done += 1
            report.step(done, **figures)
            late = time.monotonic() >= deadline
            if done % recipe.save_every == 0 or done == recipe.steps or late:
                state.save(folder, done, state.pack(job.net, job.optimizer).items())
            if late:
                break
    return done
