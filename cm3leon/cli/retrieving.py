"""Retrieval's options, and what becomes of them: documents that stand in front of a prompt."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
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
DEFAULT = "default"  # the name of what ships

MemoryFolder = Annotated[
    Path | None,
    typer.Option("--memory", metavar="MEMORY", help="A memory to retrieve from; 'default' ships."),
]
EncoderName = Annotated[
    str,
    typer.Option(
        metavar="ENCODER",
        help="What makes vectors: 'default', a folder of `train-encoder` or a CLIP, hf:owner/name.",
    ),
]
Count = Annotated[
    int | None,
    typer.Option("--retrieve", min=0, max=8, help="Documents to retrieve (2); 0 is none."),
]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user said of retrieval."""

    memory: Path | None
    encoder: str
    count: int | None
    picks: bool = False  # the encoder has candidates to judge, too
    habit: bool = False  # nobody said so: no word where fewer are found

    def __post_init__(self) -> None:
        idle = self.encoder != DEFAULT and not self.picks
        if self.memory is None and (idle or self.count):
            raise typer.BadParameter("--encoder and --retrieve go with --memory")


def with_habit(
    memory: Path | None, encoder: str, count: int | None, usual: int
) -> tuple[Path | None, int | None]:
    """Memory and number of documents: what the user said, else `usual` documents of the memory that
    ships, where it can be searched."""
    if memory is not None or encoder != DEFAULT or not usual or count == 0:
        return memory, count
    if count is None and find_spec("faiss") is None:
        options.say(
            "no documents stand in front of the prompt, for faiss is not installed; "
            "pip install 'cm3leon[retrieval]'"
        )
        return None, None
    return Path(DEFAULT), usual if count is None else count


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
    """The documents that the rules take for this query; none without a memory (`finder`)."""
    return finder(wanted, model, device)(text, picture)


def finder(
    wanted: Wanted, model: Path, device: str
) -> "Callable[[str | None, Image.Image | None], Retrieved]":
    """Open encoder and memory once, for any number of queries.

    Raises UserError for a memory that is missing, damaged, too small, or of another encoder or
    codebook than the model's.
    """
    from cm3leon.checkpoint import read_config
    from retrieval.embed import document_vectors
    from retrieval.memory import Memory, read_contents
    from retrieval.rules import Rules, select

    count = COUNT if wanted.count is None else wanted.count
    if wanted.memory is None or count == 0:
        return lambda text, picture: Retrieved()
    folder = find_memory(wanted.memory)
    there = read_contents(folder).count  # cheap, before the encoder
    if count > there:
        raise UserError(f"--retrieve is {count}, but {wanted.memory} has {there} documents")
    embedder = open_embedder(wanted.encoder, device)
    codebook = read_config(model).image_tokenizer
    bank = Memory.open(folder, embedder.id, codebook, options.say)

    def find(text: str | None, picture: "Image.Image | None") -> Retrieved:
        least = bank.contents.least if picture is None else Rules().least
        rules = Rules(count=count, near=bank.contents.near, least=least)
        (found,) = bank.search(document_vectors(embedder, [text], [picture]), rules.pool)
        chosen = select(found, rules)
        if len(chosen) < count and not wanted.habit:
            options.say(f"only {len(chosen)} of {count} documents keep the rules of retrieval")
        return Retrieved(
            documents=tuple(bank.document(one.id) for one in chosen),
            used=tuple(described(bank.row(one.id)[0], one.score) for one in chosen),
        )

    return find


def described(metadata: dict[str, Any], score: float) -> dict[str, Any]:
    """A document for people: score, id, caption, licence, credit."""
    return {
        "score": round(score, 4),
        "id": metadata["id"],
        "caption": next(iter(metadata.get("captions") or []), ""),
        "licence": metadata.get("licence", "unknown"),
        "credit": metadata.get("credit", "unknown"),
    }


def find_memory(folder: Path) -> Path:
    """Where a memory lies: `default` is the one that ships, anything else is a folder."""
    return _shipped("memory") if str(folder) == DEFAULT else folder


def open_embedder(source: str, device: str) -> "Embedder":
    """The encoder of a name: `default` ships; a folder that `train-encoder` wrote, or a CLIP's."""
    from cm3leon.pipeline import pick_device
    from retrieval.embed import ClipEmbedder
    from retrieval.encoder import SmallEmbedder
    from tokenizer.manifest import MANIFEST

    place = pick_device(device)
    folder = _shipped("default") if source == DEFAULT else Path(source)
    if (folder / MANIFEST).is_file():
        return SmallEmbedder.load(folder, place)
    return ClipEmbedder.load(source, place)


def _shipped(name: str) -> Path:
    folder = Path(str(files("retrieval") / "assets" / name))
    if not folder.is_dir():
        raise UserError(f"the default for retrieval is not installed: there is no folder {folder}")
    return folder
