"""Train the text tokenizer on the captions, instructions, questions and answers of a corpus."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from cm3leon import prompts
from tokenizer.manifest import check_writable, write_file
from tokenizer.tars import find_tars, read_ids
from tokenizer.text import TextTokenizer
from train import config, corpus
from train.state import Say

OFTEN = 2000  # times a template counts as a line


def main(recipe: str, overrides: Sequence[str], out: Path, say: Say) -> Path:
    """`cm3leon tokenizer train-text`: write a SentencePiece model to `out`, return its path."""
    settings = config.load(config.TextTokenizerRecipe, recipe, overrides)
    check_writable(out)
    lines = corpus.text_lines(
        find_tars(settings.data, "train-"),
        Path(settings.edits) if settings.edits else None,
        Path(settings.questions) if settings.questions else None,
        read_ids(settings.exclude) if settings.exclude else frozenset(),
        say=say,
    )
    # as fields stand in a row: the space before a text belongs to it
    spaced = (f" {line}" for line in lines)
    trained = TextTokenizer.train(chain(spaced, templates()), settings.pieces)
    write_file(out, trained.model)
    say(f"{trained.pieces} pieces")
    return out


def templates() -> Iterator[str]:
    """The words around every task, often enough that each becomes a piece."""
    for _ in range(OFTEN):
        yield prompts.DESCRIBE
        yield prompts.EDIT
        for before, _, after in prompts.QUESTION_FORMS:
            yield before.format("") + after
