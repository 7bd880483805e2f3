"""Words and pictures -> vectors of length 1 that can be compared: what a memory is searched by.

On the path: document or query -> `Embedder` -> vectors -> index. The paper's embedder is CLIP
ViT-B/32 (CM3Leon, section 2.1), taken here from a folder through transformers; whatever has the
face of `Embedder` may stand in its place.
"""

# Shapes: D = documents, B = batch, E = width of a vector

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
WORDS = ("tokenizer.json", "vocab.json")  # transformers makes an empty tokenizer where it has none
PLAIN = ["*.json", "*.txt", "*.safetensors"]  # what is fetched of a model: no pickles
DECISIVE = ("*.safetensors", "config.json", "preprocessor_config.json", "merges.txt", *WORDS)
T = TypeVar("T")


class Embedder(Protocol):
    """What a memory asks of an embedder. The same thing gets the same vector in any batch."""

    id: str
    """Tells its weights apart: vectors of two ids are never compared."""
    dimension: int

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1 of texts, [B, E]; what is longer than it reads is cut."""
        ...

    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        """Vectors of length 1 of RGB pictures of any size, [B, E]."""
        ...


def document_vectors(
    embedder: Embedder, texts: Sequence[str | None], pictures: Sequence[Image.Image | None]
) -> Vectors:
    """One vector of length 1 a document, [D, E]: its text's and its picture's vector averaged and
    made of length 1 again; of a document with one of them alone, that one's.

    Section 2.1 averages the two; making the mean of length 1 is ours, so that scores of documents
    lie in -1..1 like those of parts. Raises UserError for a document with neither.
    """
    assert len(texts) == len(pictures)
    sums_DE = np.zeros((len(texts), embedder.dimension), np.float32)
    for parts, embed in ((texts, embedder.texts), (pictures, embedder.pictures)):
        there = [place for place, part in enumerate(parts) if part is not None]
        if there:
            sums_DE[there] += embed([parts[place] for place in there])  # type: ignore[arg-type,misc]
    for place, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        if text is None and picture is None:
            raise UserError(f"document {place} has neither a text nor a picture to be found by")
    return unit(sums_DE)


def closeness(embedder: Embedder, text: str, pictures: Sequence[Image.Image]) -> list[float]:
    """The cosine of a text with each picture: which of several shows it best."""
    return (embedder.pictures(pictures) @ embedder.texts([text])[0]).tolist()


def unit(vectors_DE: Vectors) -> Vectors:
    """The vectors made of length 1 (one of length 0 stays)."""
    lengths_D1 = np.linalg.norm(vectors_DE, axis=1, keepdims=True)
    return (vectors_DE / np.maximum(lengths_D1, 1e-12)).astype(np.float32)


class ClipEmbedder:
    """CLIP through `transformers.CLIPModel`: a folder as the hub has it, in safetensors."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, weights_id: str) -> None:
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self.id = weights_id
        self.dimension: int = model.config.projection_dim
        self.longest: int = model.config.text_config.max_position_embeddings

    @classmethod
    def load(cls, source: str, device: torch.device | str = "cpu") -> Self:
        """Read a folder, or `hf:owner/name` from the hub or its cache.

        Raises UserError where transformers is missing, or the folder is not of a CLIP.
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
        # transformers, safetensors and the hub's configs raise nearly anything for a bad file
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: cannot be read as a CLIP model ({reason})") from error
        model, report = loaded
        missing = sorted(report["missing_keys"])  # which transformers draws at random
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
    """Twelve hexadecimal digits over the files that decide what the vectors are."""
    told = "".join(f"{path.name} {file_hash(path)}\n" for path in sorted(files))
    return hashlib.sha256(told.encode()).hexdigest()[:12]
