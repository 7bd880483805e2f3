"""Embeddings of texts and images: vectors of length 1 by which a memory is searched.

Data path: document or query -> `Embedder` -> vectors -> index. The paper's embedder is CLIP
ViT-B/32 (CM3Leon, section 2.1), loaded here from a folder with transformers; any class that
implements the protocol `Embedder` can replace it.
"""

# Shapes: D = documents, B = batch, E = vector width

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrieval.index import Vectors
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash

BATCH = 64
WORDS = ("tokenizer.json", "vocab.json")  # without these, transformers creates an empty tokenizer
PLAIN = ["*.json", "*.txt", "*.safetensors"]  # files downloaded from the hub: no pickles
DECISIVE = ("*.safetensors", "config.json", "preprocessor_config.json", "merges.txt", *WORDS)
T = TypeVar("T")


class Embedder(Protocol):
    """Protocol of an embedder. An input has the same vector in any batch."""

    id: str
    """Identifier of the weights: vectors of different ids are never compared."""
    dimension: int

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Return vectors of length 1 of texts, [B, E]; texts that are too long are truncated."""
        ...

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Return vectors of length 1 of RGB images of any size, [B, E]."""
        ...


def document_vectors(
    embedder: Embedder, texts: Sequence[str | None], pictures: Sequence[Image.Image | None]
) -> Vectors:
    """Return one vector of length 1 per document, [D, E]: the normalised mean of its text vector
    and its image vector, or the only one of the two that it has.

    Section 2.1 averages the two vectors; normalising the mean is our addition, so that scores of
    documents lie in -1..1 like those of a text or an image alone. Raises UserError for a document
    with neither text nor image.
    """
    assert len(texts) == len(pictures)
    sums_DE = np.zeros((len(texts), embedder.dimension), np.float32)
    for parts, embed in ((texts, embedder.texts), (pictures, embedder.pictures)):
        there = [place for place, part in enumerate(parts) if part is not None]
        if there:
            sums_DE[there] += embed([parts[place] for place in there])  # type: ignore[arg-type,misc]
    for place, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        if text is None and picture is None:
            raise UserError(f"document {place} has neither a text nor an image to be found by")
    return unit(sums_DE)


def closeness(embedder: Embedder, text: str, pictures: Sequence[Image.Image]) -> list[float]:
    """Return the cosine similarity of a text with each image, to select the best image."""
    return (embedder.pictures(pictures) @ embedder.texts([text])[0]).tolist()


def unit(vectors_DE: Vectors) -> Vectors:
    """Return the vectors scaled to length 1 (a vector of length 0 is unchanged)."""
    lengths_D1 = np.linalg.norm(vectors_DE, axis=1, keepdims=True)
    return (vectors_DE / np.maximum(lengths_D1, 1e-12)).astype(np.float32)


class ClipEmbedder:
    """CLIP embedder based on `transformers.CLIPModel`: a folder in the hub's format, with
    safetensors weights."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, weights_id: str) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self.id = weights_id
        self.dimension: int = model.config.projection_dim
        self.longest: int = model.config.text_config.max_position_embeddings

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """Read a model folder, or `hf:owner/name` from the hub or its cache.

        Raises UserError if transformers is not installed, or if the folder is not a CLIP model.
        """
        try:
            from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
        except ImportError as error:
            raise UserError(
                "CLIP needs transformers, which is not installed; pip install 'cm3leon[retrieval]'"
            ) from error
        folder = _folder(source)
        if not (folder / "config.json").is_file():
            raise UserError(f"{source}: no model folder there, it has no config.json")
        if not any((folder / name).is_file() for name in WORDS):
            raise UserError(f"{source}: has no tokenizer, neither of {', '.join(WORDS)}")
        try:
            local: dict[str, Any] = {"local_files_only": True}
            loaded: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **local
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
            processor = CLIPImageProcessor.from_pretrained(folder, **local)
        # transformers, safetensors and malformed configs raise almost any exception
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: cannot be read as a CLIP model ({reason})") from error
        model, report = loaded
        missing = sorted(report["missing_keys"])  # transformers initialises these at random
        if missing:
            raise UserError(
                f"{source}: its weights lack {missing[0]!r} and {len(missing) - 1} more; copy the "
                "model again"
            )
        files = [path for name in DECISIVE for path in folder.glob(name)]
        return cls(model.to(device), tokenizer, processor, f"clip-{files_id(files)}")

    def texts(self, texts: Sequence[str]) -> Vectors:
        def embed(batch: Sequence[str]) -> Tensor:
            ids = self.tokenizer(
                list(batch),
                padding=True,
                truncation=True,
                max_length=self.longest,
                return_tensors="pt",
            ).to(self.model.device)
            return self.model.get_text_features(**ids).pooler_output

        return self._batched(texts, embed)

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        def embed(batch: Sequence[Image.Image]) -> Tensor:
            pixels = self.processor(images=list(batch), return_tensors="pt").to(self.model.device)
            return self.model.get_image_features(**pixels).pooler_output

        return self._batched(pictures, embed)

    @torch.inference_mode()
    def _batched(self, things: Sequence[T], embed: Callable[[Sequence[T]], Tensor]) -> Vectors:
        rows = [embed(batch).float().cpu().numpy() for batch in _batches(things)]
        empty = np.zeros((0, self.dimension), np.float32)
        return unit(np.concatenate([empty, *rows]))


def _batches(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), BATCH):
        yield things[start : start + BATCH]


def _folder(source: str) -> Path:
    if not source.startswith("hf:"):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source.removeprefix("hf:"), allow_patterns=PLAIN))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch {source!r} ({reason}); check name and network, or give a folder"
        ) from error


def files_id(files: Iterable[Path]) -> str:
    """Return twelve hexadecimal digits that identify the files which determine the vectors."""
    told = "".join(f"{path.name} {file_hash(path)}\n" for path in sorted(files))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
