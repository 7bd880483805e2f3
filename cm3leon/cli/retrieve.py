"""Retrieval options; retrieved documents are prepended to the prompt."""

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
    from retrieval.memory import Memory
    from tokenizer.document import Document

COUNT = 2  # documents where the user names a memory and no number
DEFAULT = "default"  # the name of what ships

EncoderName = Annotated[
    str,
    typer.Option(
        metavar="ENCODER",
        help="The retriever's encoder: 'default', a trained folder, a CLIP folder, hf:owner/name.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """Memory, encoder and number of the documents to retrieve."""

    memory: Annotated[
        Path | None,
        typer.Option(metavar="MEMORY", help="Memory to retrieve from; 'default' ships."),
    ] = None
    encoder: EncoderName = DEFAULT
    retrieve: Annotated[
        int | None, typer.Option(min=0, max=8, help="Documents to retrieve (2); 0 is none.")
    ] = None

    @property
    def silent(self) -> bool:
        """True if the user gave no option of retrieval."""
        return self.memory is None and self.retrieve is None

    @property
    def count(self) -> int:
        """Documents to retrieve: as the user says, or COUNT from a memory that is named."""
        if self.retrieve is None:
            return 0 if self.memory is None else COUNT
        return self.retrieve

    def check(self, encoder_has_use: bool = False) -> None:
        """Raise BadParameter for options that need --memory."""
        idle = self.encoder != DEFAULT and not encoder_has_use
        if self.memory is None and (idle or self.retrieve):
            raise typer.BadParameter("--encoder and --retrieve go with --memory")

    def or_default(self, default: int) -> "RetrievalOptions":
        """Return the options, with a model's default count of documents from the memory that ships
        where the user says nothing and it can be searched."""
        if self.memory is not None or self.encoder != DEFAULT or not default or self.retrieve == 0:
            return self
        if self.retrieve is None and find_spec("faiss") is None:
            options.say(
                "no documents stand in front of the prompt, for faiss is not installed; "
                "pip install 'cm3leon[retrieval]'"
            )
            return self
        count = default if self.retrieve is None else self.retrieve
        return RetrievalOptions(memory=Path(DEFAULT), encoder=self.encoder, retrieve=count)


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """Documents for a prompt; their ids, scores, captions and licences for people."""

    documents: tuple["Document", ...] = ()
    used: tuple[dict[str, Any], ...] = ()

    @property
    def metadata(self) -> str:
        """The entry of an image's metadata, as JSON; empty where there are none."""
        return json.dumps(self.used, ensure_ascii=False) if self.used else ""


Find = Callable[["str | None", "Image.Image | None"], Retrieved]


def open_retriever(wanted: RetrievalOptions, model: Path, device: str, *, quiet: bool) -> Find:
    """Open encoder and memory once, for any number of queries by text, image or both.

    quiet: print nothing where fewer documents keep the rules than were asked for. Raises UserError
    for a memory that is missing, damaged, too small, or of another encoder or codebook than the
    model's.
    """
    from retrieval.memory import read_contents
    from retrieval.retrieve import Query, retrieve

    count = wanted.count
    if wanted.memory is None or count == 0:
        return lambda text, image: Retrieved()
    there = read_contents(find_memory(wanted.memory)).count  # cheap, before the encoder
    if count > there:
        raise UserError(f"--retrieve is {count}, but {wanted.memory} has {there} documents")
    embedder = open_embedder(wanted.encoder, device)
    memory = open_memory(wanted.memory, embedder, model)

    def find(text: str | None, image: "Image.Image | None") -> Retrieved:
        (found,) = retrieve([Query(text=text, image=image)], memory, embedder, count)
        if len(found) < count and not quiet:
            options.say(f"only {len(found)} of {count} documents keep the rules of retrieval")
        return Retrieved(
            documents=tuple(memory.document(one.id) for one in found),
            used=tuple(described(memory.row(one.id)[0], one.score) for one in found),
        )

    return find


def described(metadata: dict[str, Any], score: float) -> dict[str, Any]:
    """Return a document's score, id, caption, licence and credit."""
    return {
        "score": round(score, 4),
        "id": metadata["id"],
        "caption": next(iter(metadata.get("captions") or []), ""),
        "licence": metadata.get("licence", "unknown"),
        "credit": metadata.get("credit", "unknown"),
    }


def find_memory(folder: Path) -> Path:
    """Return the folder of a memory; `default` is the one that ships."""
    return _shipped("memory") if str(folder) == DEFAULT else folder


def open_memory(folder: Path, embedder: "Embedder", model: Path) -> "Memory":
    """Open a memory that was made with this encoder and with a model's image tokenizer."""
    from cm3leon.checkpoint import read_config
    from retrieval.memory import Memory

    codebook = read_config(model).image_tokenizer
    return Memory.open(find_memory(folder), embedder.id, codebook, options.say)


def open_embedder(source: str, device: str) -> "Embedder":
    """Load an encoder by name: `default` ships; a folder that training wrote, or a CLIP's."""
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
