"""Training of the text tokenizer on captions, instructions, questions and answers of a corpus."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from cm3leon import prompts
from tokenizer.data.tars import find_tars, read_ids
from tokenizer.manifest import check_writable, write_file
from tokenizer.text import TextTokenizer
from train import config
from train.config import TextTokenizerRecipe
from train.data import corpus
from train.data.paraphrase import reword
from train.data.wordnet import synonyms
from train.state import Say

OFTEN = 2000  # repetitions of each template in the training text
SYNONYM = 4  # repetitions of each synonym


def main(recipe: str, overrides: Sequence[str], out: Path, say: Say) -> Path:
    """Train a SentencePiece model, write it to `out` and return that path (`cm3leon train`)."""
    settings = config.load(config.TextTokenizerRecipe, recipe, overrides)
    check_writable(out)
    lines = list(texts(settings, say))
    # as in a training row, where a field includes the space before its text
    spaced = (f" {line}" for line in lines)
    trained = TextTokenizer.train(chain(spaced, templates()), settings.pieces, fold=settings.fold)
    write_file(out, trained.model)
    say(f"{trained.pieces} pieces")
    return out


def texts(recipe: TextTokenizerRecipe, say: Say) -> Iterator[str]:
    """Yield the texts of the corpus, and the paraphrases and synonyms that the recipe adds."""
    labels: set[str] = set()

    def also(metadata: Mapping[str, Any]) -> Iterator[str]:
        labels.add(str(metadata.get("label") or ""))
        rng = np.random.default_rng(zlib.crc32(str(metadata["id"]).encode()))
        for _ in range(recipe.reworded):
            if said := reword(metadata, rng):
                yield said

    yield from corpus.text_lines(
        find_tars(recipe.data, "train-"),
        Path(recipe.edits) if recipe.edits else None,
        Path(recipe.questions) if recipe.questions else None,
        read_ids(recipe.exclude) if recipe.exclude else frozenset(),
        also=also,
        say=say,
    )
    if recipe.wordnet:
        found = synonyms(Path(recipe.wordnet), sorted(labels))
        say(f"{len(found)} synonyms")
        yield from found * SYNONYM


def templates() -> Iterator[str]:
    """Yield the template text of the tasks, repeated so often that each word becomes a piece."""
    for _ in range(OFTEN):
        yield prompts.DESCRIBE
        yield prompts.EDIT
        for before, _, after in prompts.QUESTION_FORMS:
            yield before.format("") + after
