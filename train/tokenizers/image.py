"""Training of the image tokenizer: reconstruction, perceptual and adversarial losses, and codebook
updates.

The first stage of training: it reads images and writes an image tokenizer folder. Pixels are in
memory as bytes; the images of a batch are a function of (seed, step) alone.
"""

# Shapes: B = batch, H, W = feature height and width, E = code width

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cm3leon.pipeline import pick_device
from tokenizer.data.tars import find_tars, read_ids
from tokenizer.distributed import DistributedContext, distributed_context, quiet
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import sheet, to_bytes, to_image
from tokenizer.vqgan.network import VQGAN
from tokenizer.vqgan.perceptual import FeatureNet, perceptual_distance
from train import config, state
from train.data.corpus import load_pixels
from train.metrics import MetricLogger
from train.precision import autocast
from train.state import ALONE, Say
from train.tokenizers.codebook import Codebook, keep_codes
from train.tokenizers.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
)
from train.tokenizers.recipe import ImageTokenizerRecipe

CPU = torch.device("cpu")
HELD = 4 << 30  # largest corpus in bytes that is kept in GPU memory, to avoid copies per batch
FREE = ("save_every", "sample_every", "keep", "keep_every", "hung_after")


class ImageBatches:
    """Batches of images by (seed, step): every draw is independent of all earlier ones."""

    def __init__(
        self,
        pixels: np.ndarray,
        kinds: list[str],
        recipe: ImageTokenizerRecipe,
        device: torch.device = CPU,
        dist: DistributedContext = ALONE,
    ) -> None:
        if not kinds:
            raise UserError("there are no images to train on")
        self.recipe, self.device, self.share_of = recipe, device, dist.share(recipe.batch)
        held = device.type != "cpu" and pixels.nbytes <= HELD
        self.pixels = torch.from_numpy(np.array(pixels)).to(device) if held else pixels
        numbers = np.arange(len(kinds))
        shares = recipe.shares or {k: float(kinds.count(k)) for k in sorted(set(kinds))}
        missing = [k for k in shares if k not in kinds]
        if missing:
            raise UserError(f"shares: no image of kind '{missing[0]}'; found {set(kinds)}")
        self.groups = [numbers[np.array(kinds) == kind] for kind in shares]
        self.share = np.array(list(shares.values())) / sum(shares.values())

    def at(self, step: int) -> Tensor:
        """Return this process's share of the images of step `step`: [B, 3, size, size] in -1..1.

        Each is mirrored with probability 1/2.
        """
        rng = np.random.default_rng((self.recipe.seed, step))
        group = rng.choice(len(self.groups), self.recipe.batch, p=self.share)
        rows = [self.groups[g][rng.integers(len(self.groups[g]))] for g in group]
        half = rng.random(self.recipe.batch) < 0.5
        mine = slice(self.share_of.start, self.share_of.stop)
        drawn_B3HW = torch.as_tensor(self.pixels[rows[mine]], device=self.device)
        x_B3HW = drawn_B3HW.float() / 127.5 - 1
        mirrored = torch.from_numpy(half[mine]).to(self.device)
        x_B3HW[mirrored] = x_B3HW[mirrored].flip(-1)
        return x_B3HW.contiguous(memory_format=torch.channels_last)


class Terms:
    """Terms of the loss of one batch."""

    def __init__(self, recipe: ImageTokenizerRecipe, say: Say) -> None:
        self.c = recipe.loss
        self.features: FeatureNet | None = None
        if self.c.perceptual and self.c.features is None:
            say("perceptual term is off: loss.features names no MobileNetV2 weights")
        elif self.c.perceptual and self.c.features is not None:
            self.features = FeatureNet.load(Path(self.c.features))

    def seen(self, x_B3HW: Tensor, y_B3HW: Tensor, step: int) -> Tensor:
        """Return the sum of the reconstruction and perceptual terms."""
        loss = self.c.l1 * (x_B3HW - y_B3HW).abs().mean()
        loss = loss + self.c.l2 * F.mse_loss(y_B3HW, x_B3HW)
        if self.features is not None and step >= self.c.perceptual_start:
            near = perceptual_distance(self.features, x_B3HW, y_B3HW).mean()
            loss = loss + self.c.perceptual * near
        return loss

    def codes(self, z_BEHW: Tensor, entries_BEHW: Tensor) -> Tensor:
        """Return the commitment term plus the codebook term, which has no gradient if the entries
        follow a moving average."""
        commitment = self.c.commitment * F.mse_loss(z_BEHW, entries_BEHW.detach())
        return commitment + F.mse_loss(entries_BEHW, z_BEHW.detach())


class ImageTokenizerJob:
    """Networks, optimisers and codebook of one run; `step` does one training step."""

    def __init__(
        self,
        recipe: ImageTokenizerRecipe,
        batches: ImageBatches,
        say: Say,
        dist: DistributedContext = ALONE,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.batches, self.dist = recipe, batches, dist
        device = batches.device
        self.net = VQGAN(recipe.model)
        self.fixed = recipe.codes_of is not None
        if recipe.codes_of is not None:
            keep_codes(self.net, Path(recipe.codes_of))
        self.net.to(device)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.terms = Terms(recipe, say)
        if self.terms.features is not None:
            self.terms.features.to(device)
        self.codebook = Codebook(self.net, recipe.codebook, recipe.seed, fixed=self.fixed)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=0.0, betas=recipe.betas)
        self.judge = PatchDiscriminator().to(device) if recipe.loss.adversarial else None
        parameters = self.judge.parameters() if self.judge else [torch.nn.Parameter()]
        self.judge_optimizer = torch.optim.Adam(parameters, lr=0.0, betas=recipe.betas)

    def tensors(self) -> dict[str, Tensor]:
        table = state.pack(self.net, self.optimizer) | self.codebook.tensors()
        if self.judge:
            table |= state.pack(self.judge, self.judge_optimizer, "judge.")
        return table

    def restore(self, table: Mapping[str, Tensor]) -> None:
        state.unpack(table, self.net, self.optimizer)
        self.codebook.restore(table)
        if self.judge:
            state.unpack(table, self.judge, self.judge_optimizer, "judge.")

    def step(self, step: int) -> dict[str, float]:
        """Do one training step of both networks; return its metrics."""
        torch.manual_seed(self.recipe.seed * 1_000_003 + step)  # dropout depends on step alone
        rate = self.recipe.schedule.rate(step, self.recipe.steps)
        for group in (*self.optimizer.param_groups, *self.judge_optimizer.param_groups):
            group["lr"] = rate
        x_B3HW = self.batches.at(step)
        with autocast(self.recipe.precision, x_B3HW.device):
            out = self.net(x_B3HW)
        y_B3HW, z_BEHW = out.pixels_B3HW.float(), out.z_BEHW.float()
        seen = self.terms.seen(x_B3HW, y_B3HW, step)
        loss = seen if self.fixed else seen + self.terms.codes(z_BEHW, out.entries_BEHW)
        judge = self.judge if step >= self.recipe.loss.adversarial_start else None
        if judge:
            fooled = -judge(y_B3HW).mean()
            last = self.net.decoder.conv_out.weight
            weight = adaptive_weight(seen, fooled, last, self.dist)
            loss = loss + self.recipe.loss.adversarial * weight * fooled
        self.optimizer.zero_grad()
        loss.backward()
        self.dist.mean_(weight.grad for weight in self.net.parameters() if weight.requires_grad)
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        z_BEHW, codes_BL = (self.dist.gathered(one) for one in (z_BEHW.detach(), out.codes_BL))
        reseeded = self.codebook.update(z_BEHW, codes_BL, step)
        error_B = (to_bytes(x_B3HW) - to_bytes(y_B3HW)).square().mean((1, 2, 3))
        judged = self.judge_step(judge, x_B3HW, y_B3HW.detach()) if judge else 0.0
        means = self.dist.table([loss.item(), psnr(error_B).mean().item(), judged]).mean(0).tolist()
        figures = {
            "loss": means[0],
            "psnr": means[1],
            "used": (self.codebook.count_K > 1e-3).float().mean().item(),
            "reseeded": float(reseeded),
            "gradient": norm.item(),
            "rate": rate,
        }
        if judge:
            figures["judge"] = means[2]
        return figures

    def judge_step(self, judge: PatchDiscriminator, real_B3HW: Tensor, fake_B3HW: Tensor) -> float:
        loss = discriminator_loss(judge(real_B3HW), judge(fake_B3HW))
        self.judge_optimizer.zero_grad()
        loss.backward()
        self.dist.mean_(weight.grad for weight in judge.parameters())
        self.judge_optimizer.step()
        return loss.item()


def psnr(error: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of a mean squared error of 8-bit values."""
    return 10 * torch.log10(255.0**2 / error.clamp_min(1e-3))


def main(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    resume: str,
    say: Say,
    device: str = "auto",
    minutes: float = math.inf,
) -> Path | None:
    """Train, and return the folder `out/image_tokenizer`; None in all processes but the first.

    `cm3leon train` calls it. After `minutes`, or when asked to stop by SIGTERM, the run ends with
    its state saved, and `out` is returned instead. The batch is distributed over the processes and
    gradients are averaged; only the discriminator's batch norms use the images of one process, as
    taming's do.
    """
    deadline = time.monotonic() + 60 * minutes
    wanted = config.load(ImageTokenizerRecipe, recipe, overrides)
    with distributed_context(wanted.hung_after) as dist:
        say = say if dist.first else quiet
        place = dist.device(pick_device(device))
        config.check_batch(wanted.batch, dist.size)
        tars = find_tars(wanted.data, "train-")
        exclude = read_ids(wanted.exclude) if wanted.exclude else frozenset[str]()
        with state.open_run(out, wanted, resume, FREE, dist):
            if dist.first:  # writes the cache, which the others read
                with dist.at_work(0, "reading images"):
                    load_pixels(tars, wanted.model.size, exclude, out, say=say)
            dist.wait()
            metadata, pixels = load_pixels(tars, wanted.model.size, exclude, out, say=say)
            kinds = [str(picture.get("kind", "picture")) for picture in metadata]
            batches = ImageBatches(pixels, kinds, wanted, place, dist)
            trained = run(wanted, batches, out, say, deadline, resume, dist)
            if trained is None or not dist.first:
                return out if dist.first else None
            folder = out / "image_tokenizer"
            trained.to("cpu").save(folder, half=True, replace=True)
            return folder


def check(recipe: str, overrides: Sequence[str], size: int) -> None:
    """Check the recipe's batch size for `size` processes, before any process starts."""
    config.check_batch(config.load(ImageTokenizerRecipe, recipe, overrides).batch, size)


def run(
    recipe: ImageTokenizerRecipe,
    batches: ImageBatches,
    folder: Path,
    say: Say,
    deadline: float = math.inf,
    resume: str = "latest",
    dist: DistributedContext = ALONE,
) -> ImageTokenizer | None:
    """Train from a checkpoint in `folder` (or from the start) to the end of the recipe.

    Returns None if the clock (`time.monotonic`) passed `deadline` before the end, or a stop was
    requested; the state is then saved.
    """
    job = ImageTokenizerJob(recipe, batches, say, dist)
    start = 0
    if found := state.find(folder, resume, say, dist):
        start = found.step
        job.restore(found)
        say(f"resumed at step {start}")
    with MetricLogger(folder, start=start, steps=recipe.steps, on=dist.first) as report:
        for step in range(start, recipe.steps):
            dist.note(step, "computing")
            figures = job.step(step)
            report.step(step + 1, **figures)
            if (step + 1) % recipe.sample_every == 0 and dist.first:
                save_samples(job, folder / f"sample-{step + 1:08d}.png")
            late = bool(dist.table([dist.must_stop() or time.monotonic() >= deadline]).any())
            if (step + 1) % recipe.save_every == 0 or step + 1 == recipe.steps or late:
                dist.note(step + 1, "saving")
                save(job, folder, step + 1)
            if late and step + 1 < recipe.steps:
                say(f"stopped after step {step + 1} of {recipe.steps}; go on with --resume latest")
                return None
    return ImageTokenizer(job.net)


def save(job: ImageTokenizerJob, folder: Path, done: int) -> None:
    """Save a checkpoint after `done` steps; all processes must call it together."""
    keep, keep_every = job.recipe.keep, job.recipe.keep_every
    tensors = job.tensors().items()
    state.save(folder, done, tensors, keep=keep, keep_every=keep_every, dist=job.dist)


@torch.no_grad()
def save_samples(job: ImageTokenizerJob, path: Path) -> None:
    """Save a sheet of images above their reconstructions."""
    x_B3HW = job.batches.at(0)
    x_B3HW = x_B3HW[: 16 if len(x_B3HW) >= 16 else 8]
    y_B3HW = job.net.decode(job.net.encode(x_B3HW))
    columns = min(8, len(x_B3HW))
    rows = zip(x_B3HW.split(columns), y_B3HW.split(columns), strict=True)
    pictures = [to_image(picture) for pair in rows for row in pair for picture in row]
    sheet(pictures, columns).save(path)
