"""`cm3leon export`: convert a saved training state to a checkpoint folder for `from_pretrained`.

A run exports its final weights itself; this exports earlier states, in one process without a GPU,
on any machine.
"""

from pathlib import Path

import torch

from cm3leon import checkpoint
from cm3leon.model import Decoder
from cm3leon.weight_format import Stored
from tokenizer import config as settings
from tokenizer.codec import Codec
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.manifest import check_writable, verify
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary
from train import state
from train.config import PretrainRecipe
from train.state import Say

START = "weights."


def main(run: Path, out: Path, *, step: str = "latest", stored: Stored = "fp16", say: Say) -> Path:
    """Write the weights of a run's newest intact state, or of the state of a step, as a checkpoint
    folder; return `out`.

    Raises UserError if the run, its state or its tokenizers are missing.
    """
    check_writable(out)
    if not (run / state.RECIPE).is_file():
        raise UserError(f"{run} is no run of a decoder: it has no {state.RECIPE}")
    table = settings.read(run / state.RECIPE)
    if table.get("job") != "pretrain":
        raise UserError(f"{run} is a run of the job '{table.get('job')}', not of a decoder")
    recipe = settings.build(PretrainRecipe, table)
    found = _state(run, step, say)
    image_tokenizer = ImageTokenizer.load(Path(recipe.image_tokenizer))
    text = TextTokenizer.load(Path(recipe.text_tokenizer))
    vocabulary = Vocabulary(image_codes=image_tokenizer.codes, text_pieces=text.pieces)
    if vocabulary.size != recipe.model.vocabulary:
        raise UserError(
            f"the tokenizers that {run / state.RECIPE} names make {vocabulary.size} ids, the run "
            f"has {recipe.model.vocabulary}; put back those it was trained with"
        )
    codec = Codec(vocabulary, text, image_tokenizer.picture_codes, recipe.model.context)
    with torch.device("meta"):
        model = Decoder(recipe.model)
    weights = {k.removeprefix(START): found[k] for k in found if k.startswith(START)}
    model.load_state_dict(weights, assign=True)
    checkpoint.save(out, model, codec, image_tokenizer, stored=stored)
    say(f"the weights after step {found.step} of {recipe.steps}")
    return out


def _state(run: Path, step: str, say: Say) -> state.State:
    """Return the requested state, without changing the run's folder.

    Raises UserError if there is none.
    """
    if step == "latest":
        found = state.find(run, step, say)
        if found is None:
            raise UserError(f"{run} has no state yet")
        return found
    known = {state.step_of(folder): folder for folder in state.states(run)}
    if not step.isdigit() or int(step) not in known:
        listed = ", ".join(map(str, known)) or "none"
        raise UserError(f"{run} has no state of step {step}; there are: {listed}")
    verify(known[int(step)])
    return state.read(known[int(step)])
