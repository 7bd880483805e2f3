"""`cm3leon data encode`: WebDataset tars and an image tokenizer -> token shards."""

from pathlib import Path

from cm3leon.pipeline import pick_device
from tokenizer.image import ImageTokenizer
from tokenizer.tars import find_tars, read_ids
from tokenizer.text import TextTokenizer
from train.corpus import encode_corpus
from train.state import Say


def main(
    tars: str,
    image_tokenizer: Path,
    out: Path,
    *,
    edits: Path | None = None,
    questions: Path | None = None,
    exclude: Path | None = None,
    keep: Path | None = None,
    text_tokenizer: Path | None = None,
    device: str = "auto",
    say: Say,
) -> Path:
    """Encode every picture once and write the folder `out`; `exclude` and `keep` are files with
    one picture id a line. Shards made for a `text_tokenizer` are refused with others.
    Returns `out`."""
    place = pick_device(device)
    counts = encode_corpus(
        find_tars(tars),
        edits,
        questions,
        read_ids(exclude) if exclude else frozenset(),
        ImageTokenizer.load(image_tokenizer).to(place),
        out,
        say=say,
        keep=read_ids(keep) if keep else None,
        device=place,
        text_tokenizer_hash=TextTokenizer.load(text_tokenizer).hash if text_tokenizer else None,
    )
    say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return out
