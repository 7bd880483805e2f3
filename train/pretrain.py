"""Make one run of the decoder's training: from a recipe and token shards to a checkpoint folder.

`cm3leon pretrain` and `cm3leon tune` call `main`; the steps themselves are in `loop`.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from cm3leon import checkpoint, prompts
from cm3leon.attention import attend, attend_by_products
from cm3leon.likelihood import bits_per_image_token, bits_per_text_token
from cm3leon.model import Decoder, ModelConfig
from cm3leon.pipeline import CM3Leon, pick_device
from cm3leon.sampling import Sampling
from retrieval.neighbours import read_neighbours
from tokenizer.codec import Codec
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import sheet
from tokenizer.shards import Shards
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train import config, loop, state
from train.config import PretrainRecipe
from train.data import Rows
from train.optimizer import new_optimizer
from train.state import Say
from train.views import read_views

HELD_OUT = 256  # most pictures of the validation shards that a run looks at
FREE = ("save_every", "validate_every", "sample_every", "sample_prompts", "workers")


def main(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    resume: bool,
    init: str | None,
    say: Say,
    device: str = "auto",
    minutes: float = math.inf,
) -> Path:
    """Train, and return the checkpoint folder `out/model`.

    After `minutes` the run stops with its state saved, and `out` is returned in its place.
    With `resume` the newest state in `out` is continued, exactly; with `init` the weights start
    as those of another model, with a new optimiser. Raises UserError for whatever does not fit
    together, before the first step and before anything is written.
    """
    deadline = time.monotonic() + 60 * minutes
    named = config.load_pretrain(recipe, overrides)
    place = pick_device(device)
    image_tokenizer = ImageTokenizer.load(Path(named.image_tokenizer))
    text_tokenizer = TextTokenizer.load(Path(named.text_tokenizer))
    vocabulary = Vocabulary(image_codes=image_tokenizer.codes, text_pieces=text_tokenizer.pieces)
    wanted = config.with_vocabulary(named, vocabulary.size)
    codec = Codec(vocabulary, text_tokenizer, image_tokenizer.picture_codes, wanted.model.context)
    rows = open_rows(wanted, codec, image_tokenizer)
    torch.manual_seed(wanted.seed)
    model = Decoder(wanted.model)
    if init is not None and not state.states(out):  # a state is further than where it started
        start_from(model, init, codec, image_tokenizer, say)
    model.to(place).attend = attend_by_products if place.type == "cpu" else attend
    job = loop.Job(
        recipe=wanted,
        model=model,
        optimizer=new_optimizer(model, wanted.optimizer),
        rows=rows,
        vocabulary=vocabulary,
        device=place,
        watch=Watch(wanted, codec, image_tokenizer),
        folder=out,
    )
    state.open_run(out, wanted, resume, FREE)
    kind = "bf16" if loop.in_bf16(wanted.precision, place) else "fp32"
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters on {place} in {kind}")
    found = state.load_latest(out, say)
    start = 0
    if found:
        start, table = found
        state.unpack(table, model, job.optimizer)
        say(f"resumed at step {start}")
    elif init is not None:  # so that resuming does not need the other model
        state.save(out, 0, state.pack(model, job.optimizer))
    done = loop.run(job, start, deadline)
    if done < wanted.steps:
        say(f"time is up after step {done} of {wanted.steps}; go on with --resume")
        return out
    folder = out / "model"
    checkpoint.save(folder, model.to("cpu"), codec, image_tokenizer, half=True, replace=True)
    return folder


def open_rows(recipe: PretrainRecipe, codec: Codec, image_tokenizer: ImageTokenizer) -> Rows:
    """The rows of a run, from its shards and what was made for them."""
    shards = Shards.open(recipe.shards, image_tokenizer.hash, codec.text.hash)
    near = read_neighbours(recipe.neighbours, shards) if recipe.neighbours else None
    views = read_views(recipe.views, shards) if recipe.views else None
    return Rows(shards, codec, recipe.rows, recipe.mask, recipe.seed, near, views)


def start_from(
    model: Decoder, init: str, codec: Codec, image_tokenizer: ImageTokenizer, say: Say
) -> None:
    """Give a model the weights of a released one; refuses another shape, or other tokenizers."""
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


class Watch:
    """Held-out bits and sample pictures of a run. Raises UserError for prompts that do not fit."""

    def __init__(
        self, recipe: PretrainRecipe, codec: Codec, image_tokenizer: ImageTokenizer
    ) -> None:
        self.codec, self.image_tokenizer = codec, image_tokenizer
        self.prompts = recipe.sample_prompts
        for prompt in self.prompts:
            codec.open(prompts.paint(prompt)[0])
        self.pictures: list[tuple[int, ...]] = []  # codes
        self.before: list[tuple[int, ...]] = []  # ids that such a picture follows: its caption
        self.texts: list[list[int]] = []  # ids of that caption
        self.around: list[tuple[int, ...]] = []  # ids that it follows: the picture
        if recipe.validation is not None:
            self.hold_out(Shards.open(recipe.validation, image_tokenizer.hash, codec.text.hash))
            if not self.texts:
                raise UserError(
                    f"validation: {recipe.validation} has no picture with a caption that fits"
                )

    def hold_out(self, shards: Shards) -> None:
        """Take pictures evenly from all shards, each with its first caption, where both fit."""
        context = self.codec.context
        assert context is not None
        # without a context: what is too long is left out here, where others refuse it
        codec = Codec(self.codec.vocabulary, self.codec.text, self.codec.picture_codes)
        for number in range(0, shards.pictures, -(-shards.pictures // HELD_OUT)):
            metadata, codes = shards.picture(number)
            if not metadata.get("captions"):
                continue
            caption, picture = metadata["captions"][0], Picture(codes)
            whole = codec.encode(prompts.pair(caption, picture))
            text = [whole.ids[place] for span in whole.fields for place in range(*span)]
            around = codec.infill(prompts.describe(picture, asked=False))
            if len(around) + len(text) <= context:
                self.pictures.append(codes)
                self.before.append(codec.open(prompts.paint(caption)[0]))
                self.texts.append(text)
                self.around.append(around)

    def validate(self, model: Decoder) -> dict[str, float]:
        """Bits per image token given the caption, and per text token given the picture."""
        if not self.texts:
            return {}
        vocabulary = self.codec.vocabulary
        return {
            "held_out_image_bits": bits_per_image_token(
                model, vocabulary, self.before, self.pictures
            ),
            "held_out_text_bits": bits_per_text_token(model, vocabulary, self.around, self.texts),
        }

    def draw(self, model: Decoder, path: Path) -> None:
        """One picture a sample prompt, side by side, at seed 0."""
        if not self.prompts:
            return
        painter = CM3Leon(model, self.codec, self.image_tokenizer)
        drawn = [
            painter.text_to_image(prompt, seed=0, sampling=Sampling())[0] for prompt in self.prompts
        ]
        sheet(drawn, min(8, len(drawn)), list(self.prompts)).save(path)
