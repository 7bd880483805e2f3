"""Small dual encoder shipped with the package: texts and images to vectors in one space.

An `Embedder` for users without CLIP; `train/retriever/contrastive.py` trains it. Images go through
MobileNetV2's features, texts through a few bidirectional transformer layers over the pieces of its
own text tokenizer; both encoders end in a vector of length 1.
"""

# Shapes: B = batch, L = pieces, D = width, E = vector width, H, W = pixels

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.embed import BATCH, files_id
from retrieval.index import Vectors
from tokenizer import config as settings
from tokenizer.errors import UserError
from tokenizer.image import read_weights
from tokenizer.manifest import new_folder, verify
from tokenizer.pixels import fit, to_pixels
from tokenizer.text import TextTokenizer
from tokenizer.vqgan.perceptual import FeatureNet

CONFIG, WEIGHTS, TEXT, CARD = "config.json", "model.safetensors", "tokenizer.model", "README.md"
FEATURES = 1280  # width of MobileNetV2's pooled features
FIRST_SCALE, MOST_SCALE = 1 / 0.07, 100.0  # initial and maximum logit scale, as in CLIP


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of a dual encoder."""

    pieces: int  # vocabulary size of the text tokenizer
    dimension: int = 128  # width of a vector
    size: int = 64  # side of an image in pixels
    longest: int = 48  # maximum pieces of a text; the rest is truncated
    width: int = 192
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        for name in ("pieces", "dimension", "size", "longest", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of heads {self.heads}")


class DualEncoder(nn.Module):
    """Text and image encoders, and the learned logit scale of the contrastive loss."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.pieces + 1, config.width)  # the last row is padding
        self.position = nn.Embedding(config.longest, config.width)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.text = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.text_norm = nn.LayerNorm(config.width)
        self.text_out = nn.Linear(config.width, config.dimension, bias=False)
        self.features = FeatureNet()
        self.picture_out = nn.Linear(FEATURES, config.dimension, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(FIRST_SCALE).log())

    def of_texts(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Return vectors of length 1 of texts as pieces, [B, E]; an empty text has a vector too."""
        device, most = self.position.weight.device, self.config.longest
        length = max(1, min(most, max(map(len, pieces))))
        padding = self.config.pieces
        rows = [[*row[:length], *[padding] * (length - len(row))] for row in pieces]
        ids_BL = torch.tensor(rows, device=device)
        blank_BL = ids_BL == padding
        blank_BL[:, 0] = False  # a row of only padding would have no key to attend to
        x_BLD = self.embed(ids_BL) + self.position.weight[:length]
        x_BLD = self.text(x_BLD, src_key_padding_mask=blank_BL)
        there_BL1 = (~blank_BL).unsqueeze(-1)
        mean_BD = (self.text_norm(x_BLD) * there_BL1).sum(1) / there_BL1.sum(1)
        return F.normalize(self.text_out(mean_BD), dim=-1)

    def of_pictures(self, pixels_B3HW: Tensor) -> Tensor:
        """Return vectors of length 1 of pixels in -1..1, [B, E]."""
        return F.normalize(self.picture_out(self.features.pooled(pixels_B3HW)), dim=-1)

    def scale(self) -> Tensor:
        """Return the factor by which the loss multiplies similarities."""
        return self.log_scale.exp().clamp(max=MOST_SCALE)


class SmallEmbedder:
    """Trained dual encoder with its files; implements `Embedder` (`retrieval/embed.py`)."""

    def __init__(self, net: DualEncoder, text: TextTokenizer, files_id: str = "") -> None:
        if net.config.pieces != text.pieces:
            raise UserError(
                f"the encoder knows {net.config.pieces} text pieces, its tokenizer has "
                f"{text.pieces}; use the one saved beside it"
            )
        self.net, self.text = net.eval().requires_grad_(False), text
        self.id = files_id  # "" before it is saved
        self.dimension = net.config.dimension

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        pieces = [self.text.encode(text) for text in texts]
        return self._joined(
            [self.net.of_texts(pieces[k : k + BATCH]) for k in range(0, len(pieces), BATCH)]
        )

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Vectors:
        device, size = self.net.log_scale.device, self.net.config.size
        rows: list[Tensor] = []
        for start in range(0, len(pictures), BATCH):
            group = [to_pixels(fit(one, size)) for one in pictures[start : start + BATCH]]
            rows.append(self.net.of_pictures(torch.stack(group).to(device)))
        return self._joined(rows)

    def _joined(self, rows: Sequence[Tensor]) -> Vectors:
        empty = np.zeros((0, self.dimension), np.float32)
        return np.concatenate([empty, *(row.float().cpu().numpy() for row in rows)])

    def save(self, folder: Path, *, card: str | None = None, replace: bool = False) -> None:
        """Write the encoder as a new folder, with weights in fp16."""
        state = {name: tensor.half().contiguous() for name, tensor in self.net.state_dict().items()}
        with new_folder(folder, replace=replace) as aside:
            save_file(state, aside / WEIGHTS)
            table = json.dumps(settings.table_of(self.net.config), indent=2)
            (aside / CONFIG).write_text(table + "\n", "utf-8")
            (aside / TEXT).write_bytes(self.text.model)
            (aside / CARD).write_text(card or "# A dual encoder of text and images\n", "utf-8")

    @classmethod
    def load(cls, folder: Path | str, device: torch.device | str = "cpu") -> Self:
        """Read a folder written by `save`, strictly; the network computes in fp32.

        Raises UserError for a part that is missing, damaged or from another encoder.
        """
        folder = Path(folder)
        verify(folder)
        try:
            table: Any = json.loads((folder / CONFIG).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / CONFIG}: cannot be read ({error})") from error
        if not isinstance(table, dict):
            raise UserError(f"{folder / CONFIG}: not a table of settings")
        net = DualEncoder(settings.build(EncoderConfig, cast("dict[str, object]", table)))
        net.load_state_dict(read_weights(folder / WEIGHTS, net.state_dict()))
        text = TextTokenizer.load(folder / TEXT)
        files = (folder / name for name in (CONFIG, WEIGHTS, TEXT))
        return cls(net.to(device), text, f"small-{files_id(files)}")
