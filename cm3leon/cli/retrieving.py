"""Retrieval's options, and what becomes of them: documents that stand in front of a prompt."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3leon.cli import options
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from retrieval.embed import Embedder
    from tokenizer.document import Document

COUNT = 2  # documents where the user names a memory and no number

MemoryFolder = Annotated[
    Path | None, typer.Option("--memory", metavar="MEMORY", help="A memory to retrieve from.")
]
EncoderName = Annotated[
    str | None, typer.Option("--encoder", metavar="ENCODER", help="What made the memory's vectors.")
]
Count = Annotated[
    int | None,
    typer.Option("--retrieve", min=0, max=8, help="Documents to retrieve (2); 0 is none."),
]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user said of retrieval."""

    memory: Path | None
    encoder: str | None
    count: int | None

    def __post_init__(self) -> None:
        if self.memory is None and (self.encoder is not None or self.count):
            raise typer.BadParameter("--encoder and --retrieve go with --memory")
        if self.memory is not None and self.encoder is None and self.count != 0:
            raise typer.BadParameter("name what made the memory's vectors with --encoder")


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Documents for a prompt, and for people their ids, scores, captions and licences."""

    documents: tuple["Document", ...] = ()
    used: tuple[dict[str, Any], ...] = ()

    @property
    def told(self) -> str:
        """What the notes of a picture say of them, as JSON; empty where there are none."""
        return json.dumps(self.used, ensure_ascii=False) if self.used else ""


def retrieve(
    wanted: Wanted,
    model: Path,
    device: str,
    *,
    text: str | None = None,
    picture: "Image.Image | None" = None,
) -> Retrieved:
    """The documents that the rules take for this query; none without a memory.

    Raises UserError for a memory that is missing, damaged, too small, or of another encoder or
    codebook than the model's.
    """
    from cm3leon.checkpoint import read_config
    from retrieval.embed import document_vectors
    from retrieval.memory import Memory, read_contents
    from retrieval.retrieve import Rules, select

    count = COUNT if wanted.count is None else wanted.count
    if wanted.memory is None or wanted.encoder is None or count == 0:
        return Retrieved()
    there = read_contents(wanted.memory).count  # cheap, before the encoder
    if count > there:
        raise UserError(f"--retrieve is {count}, but {wanted.memory} has {there} documents")
    embedder = open_embedder(wanted.encoder, device)
    codebook = read_config(model).image_tokenizer
    bank = Memory.open(wanted.memory, embedder.id, codebook, options.say)
    rules = Rules(count=count, near=bank.contents.near)
    (found,) = bank.search(document_vectors(embedder, [text], [picture]), rules.pool)
    chosen = select(found, rules)
    if len(chosen) < count:
        options.say(f"only {len(chosen)} of {count} documents keep the rules of retrieval")
    return Retrieved(
        documents=tuple(bank.document(one.id) for one in chosen),
        used=tuple(described(bank.row(one.id)[0], one.score) for one in chosen),
    )


def described(metadata: dict[str, Any], score: float) -> dict[str, Any]:
    """A document for people: score, id, caption, licence, credit."""
    return {
        "score": round(score, 4),
        "id": metadata["id"],
        "caption": next(iter(metadata.get("captions") or []), ""),
        "licence": metadata.get("licence", "unknown"),
        "credit": metadata.get("credit", "unknown"),
    }


def open_embedder(source: str, device: str) -> "Embedder":
    """The encoder of a name: a folder that `train-encoder` wrote, or a CLIP's."""
    from cm3leon.pipeline import pick_device
    from retrieval.embed import ClipEmbedder
    from retrieval.encoder import SmallEmbedder
    from tokenizer.manifest import MANIFEST

    place = pick_device(device)
    if (Path(source) / MANIFEST).is_file():
        return SmallEmbedder.load(source, place)
    return ClipEmbedder.load(source, place)
