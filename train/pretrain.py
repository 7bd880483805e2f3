"""Training run of the decoder: from a recipe and token shards to a checkpoint folder.

`cm3leon pretrain` and `cm3leon tune` call `main`; the training loop is `train/loop.py`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import torch

from cm3leon import checkpoint
from cm3leon.attention import Attention, attend_by_products, best_attention
from cm3leon.model import Decoder, ModelConfig
from cm3leon.pipeline import CM3Leon, pick_device
from retrieval.neighbours import read_neighbours
from tokenizer.codec import Codec
from tokenizer.data.shards import Shards
from tokenizer.distributed import DistributedContext, distributed_context, quiet
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train import config, loop, state
from train.config import PretrainRecipe, SourceConfig
from train.data.cached import CachedRows
from train.data.rows import Mixture, Rows, balanced
from train.data.views import read_views
from train.engine import new_engine, no_deepspeed
from train.flops import Speed, parameters
from train.metrics import check_tensorboard
from train.precision import in_bf16
from train.state import Say
from train.validation import Validator

SOURCE_SEEDS = 1_000_003  # difference of the seeds of two sources
FREE = (  # settings that may differ when a run is resumed: at most rounding of the results changes
    "save_every", "keep", "keep_every", "validate_every", "sample_every", "sample_prompts",
    "workers", "engine", "micro_tokens", "bad_step", "spike", "hung_after", "tensorboard",
)  # fmt: skip


def main(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    resume: str,
    init: str | None,
    say: Say,
    device: str = "auto",
    minutes: float = math.inf,
) -> Path | None:
    """Train, and return the checkpoint folder `out/model`; None in all processes but the first.

    After `minutes`, or on SIGTERM, the run saves its state and ends; then `out` is returned
    instead. `resume`: `none`, `latest` or a step; a run resumes exactly, with any number of
    processes. With `init`, training starts from the weights of another model, with a new optimizer.
    Raises UserError for inconsistent arguments, before the first step and before anything is
    written.
    """
    deadline = time.monotonic() + 60 * minutes
    named = config.load_pretrain(recipe, overrides, init)
    with distributed_context(named.hung_after) as dist:
        made = train(named, out, resume, init, say if dist.first else quiet, device, deadline, dist)
    return made if dist.first else None


def check(recipe: str, overrides: Sequence[str], init: str | None, size: int) -> None:
    """Raise UserError for a recipe that a run of `size` processes would refuse; call it before
    starting them."""
    named = config.load_pretrain(recipe, overrides, init)
    config.check_batch(named.batch, size)
    if named.engine.zero and find_spec("deepspeed") is None:
        raise no_deepspeed()


def train(
    named: PretrainRecipe,
    out: Path,
    resume: str,
    init: str | None,
    say: Say,
    device: str,
    deadline: float,
    dist: DistributedContext,
) -> Path:
    """Train in one process of the group `dist`; see `main`."""
    place = dist.device(pick_device(device))
    image_tokenizer = ImageTokenizer.load(Path(named.image_tokenizer))
    text_tokenizer = TextTokenizer.load(Path(named.text_tokenizer))
    vocabulary = Vocabulary(image_codes=image_tokenizer.codes, text_pieces=text_tokenizer.pieces)
    wanted = config.with_vocabulary(named, vocabulary.size)
    config.check_batch(wanted.batch, dist.size)
    check_tensorboard(wanted.tensorboard)
    codec = Codec(vocabulary, text_tokenizer, image_tokenizer.picture_codes, wanted.model.context)
    rows = open_rows(wanted, codec, image_tokenizer)
    torch.manual_seed(wanted.seed)
    model = Decoder(wanted.model)
    if init is not None and not state.states(out):  # a saved state supersedes `init`
        start_from(model, init, codec, image_tokenizer, say)
    model.to(place).attend = attention_of(wanted, place)
    watch = Validator(wanted, codec, image_tokenizer)
    with state.open_run(out, wanted, resume, FREE, dist):
        engine = new_engine(model, vocabulary, wanted, place, dist)
        cached = CachedRows(rows, wanted, vocabulary, place, dist) if wanted.cached_rows else None
        job = loop.Job(
            recipe=wanted,
            engine=engine,
            rows=rows,
            vocabulary=vocabulary,
            watch=watch,
            folder=out,
            speed=Speed(model=wanted.model, device=place, devices=dist.size),
            say=say,
            dist=dist,
            cached=cached,
        )
        kind = "bf16" if in_bf16(wanted.precision, place) else "fp32"
        on = f"{place} in {kind}" if dist.size == 1 else f"{dist.size} x {place.type} in {kind}"
        say(f"{parameters(wanted.model) / 1e6:.1f}M parameters on {on}")
        start = go_on(job, resume, new=init is not None)
        done = loop.run(job, start, deadline)
        if done < wanted.steps:
            say(f"stopped after step {done} of {wanted.steps}; go on with --resume latest")
            return out
        dist.note(done, "exporting")
        folder = out / "model"
        if whole := engine.whole():
            whole.to("cpu")
            checkpoint.save(folder, whole, codec, image_tokenizer, stored="fp16", replace=True)
        dist.wait()
        return folder


def attention_of(recipe: PretrainRecipe, device: torch.device) -> Attention:
    """Return the attention implementation: on a CPU by default explicit matrix products."""
    if device.type == "cpu" and recipe.engine.attention == "torch":
        return attend_by_products
    return best_attention(device, recipe.engine.attention)


def go_on(job: loop.Job, resume: str, *, new: bool) -> int:
    """Load the requested state, if the run has one, and return the number of steps done.

    If training starts from the weights of another model (`new`), they are saved as step 0, so that
    resuming does not need that model. Raises UserError for a state of another model.
    """
    found = state.find(job.folder, resume, job.say, job.dist)
    if found is None:
        if new:
            loop.save(job, 0)
        return 0
    try:
        job.engine.put(found, found.step)
    except (KeyError, RuntimeError) as error:  # a missing name, another shape
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{found.folder} is a state of another model: {reason}") from error
    job.losses.extend(found.told.get("losses", ()))
    job.say(f"resumed at step {found.step}")
    return found.step


def open_rows(
    recipe: PretrainRecipe, codec: Codec, image_tokenizer: ImageTokenizer
) -> Rows | Mixture:
    """Return the rows of a run, from its shards and their tables of neighbours and views."""

    def rows_of(source: SourceConfig, seed: int) -> Rows:
        shards = Shards.open(source.shards, image_tokenizer.hash, codec.text.hash)
        near = read_neighbours(source.neighbours, shards) if source.neighbours else None
        views = read_views(source.views, shards) if source.views else None
        return Rows(shards, codec, source.rows or recipe.rows, recipe.mask, seed, near, views)

    if recipe.shards is not None:
        alone = SourceConfig(
            shards=recipe.shards,
            neighbours=recipe.neighbours,
            views=recipe.views,
            rows=recipe.rows,
        )
        return rows_of(alone, recipe.seed)
    found = {
        name: rows_of(source, recipe.seed + SOURCE_SEEDS * number)
        for number, (name, source) in enumerate(sorted(recipe.sources.items()))
    }
    shares = {name: source.weight for name, source in recipe.sources.items()}
    if recipe.balance:
        counts = {name: rows.documents for name, rows in found.items()}
        shares = balanced(shares, counts, recipe.balance)
    return Mixture(found, shares, recipe.seed)


def start_from(
    model: Decoder, init: str, codec: Codec, image_tokenizer: ImageTokenizer, say: Say
) -> None:
    """Load the weights of the checkpoint `init` into a model.

    Raises UserError if its configuration or its tokenizers differ.
    """
    other = CM3Leon.from_pretrained(init, say=say)
    for item in fields(ModelConfig):
        old, new = getattr(other.model.config, item.name), getattr(model.config, item.name)
        if old != new and item.name not in ("z_loss", "init_std", "position_std"):
            raise UserError(f"init: {init} has {item.name} {old}, the recipe asks for {new}")
    if other.codec.vocabulary != codec.vocabulary:
        raise UserError(f"init: {init} has {other.codec.vocabulary}, the recipe {codec.vocabulary}")
    for name, old, new in (
        ("text_tokenizer", other.codec.text.hash, codec.text.hash),
        ("image_tokenizer", other.image_tokenizer.hash, image_tokenizer.hash),
    ):
        if old != new:
            raise UserError(f"init: {init} knows another {name}; name the one in its own folder")
    model.load_state_dict(other.model.state_dict())
