"""ImageTokenizer: the VQGAN with its files, which converts pixels to codes and back.

It is between `pixels` and `document` for input images, and between `codec` and `pixels` for output
images.
"""

# Shapes: B = batch, L = codes of one image, H, W = pixels

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokenizer import config as settings
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash, new_folder
from tokenizer.vqgan.network import VQGAN, VQGANConfig

WEIGHTS = "model.safetensors"


class PictureEncoder(Protocol):
    """Protocol of an image tokenizer for code that only encodes images."""

    hash: str

    @property
    def size(self) -> int: ...
    @property
    def grid(self) -> int: ...
    @property
    def codes(self) -> int: ...
    def encode(self, pixels_B3HW: Tensor) -> Tensor: ...


class ImageTokenizer:
    """VQGAN image tokenizer (paper section 2.1: 256 x 256 pixels are 1,024 codes of 8,192)."""

    def __init__(self, net: VQGAN, files_hash: str = "") -> None:
        self.net = net.eval().requires_grad_(False)
        self.hash = files_hash  # hash of its files; "" before it is saved

    @property
    def config(self) -> VQGANConfig:
        return self.net.config

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return self.config.size

    @property
    def grid(self) -> int:
        """Codes per side."""
        return self.config.grid

    @property
    def picture_codes(self) -> int:
        """Codes per image."""
        return self.config.grid**2

    @property
    def codes(self) -> int:
        """Codebook entries."""
        return self.config.codes

    @torch.inference_mode()
    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode pixels in -1..1, [B, 3, size, size], as codes [B, L] int64, in row-major order."""
        if pixels_B3HW.shape[1:] != (3, self.size, self.size):
            raise UserError(
                f"got pixels of shape {tuple(pixels_B3HW.shape)}; this image tokenizer wants "
                f"[B, 3, {self.size}, {self.size}]"
            )
        return self.net.encode(pixels_B3HW.contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def decode(self, codes_BL: Tensor) -> Tensor:
        """Decode codes [B, L] to pixels [B, 3, size, size] in -1..1."""
        if codes_BL.ndim != 2 or codes_BL.shape[1] != self.picture_codes:
            raise UserError(
                f"got codes of shape {tuple(codes_BL.shape)}; this image tokenizer wants "
                f"[B, {self.picture_codes}]"
            )
        return self.net.decode(codes_BL).clamp(-1, 1).contiguous()

    def to(self, device: torch.device | str) -> "ImageTokenizer":
        self.net.to(device)
        return self

    def save(self, folder: Path, *, half: bool = False, replace: bool = False) -> None:
        """Write `config.json` and `model.safetensors` (fp16 when `half`) as a new folder."""
        state = {k: v.half() if half else v for k, v in self.net.state_dict().items()}
        with new_folder(folder, replace=replace) as aside:
            write_files(aside, state, self.config)

    @classmethod
    def load(cls, folder: Path) -> "ImageTokenizer":
        """Read a folder written by `save`, strictly; the network computes in fp32.

        Raises UserError for a part that is missing, broken or from another network.
        """
        path, config_path = folder / WEIGHTS, folder / "config.json"
        for part in (config_path, path):
            if not part.is_file():
                raise UserError(f"{folder}: not an image tokenizer, {part.name} is missing")
        try:
            table: object = json.loads(config_path.read_text("utf-8"))
        except ValueError as error:
            raise UserError(f"{config_path}: not JSON ({error})") from error
        if not isinstance(table, dict):
            raise UserError(f"{config_path}: not a table of settings")
        try:
            config = settings.build(VQGANConfig, cast("dict[str, object]", table))
        except UserError as error:
            raise UserError(f"{config_path}: {error}") from error
        net = VQGAN(config)
        net.load_state_dict(read_weights(path, net.state_dict()))
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return cls(net, file_hash(config_path)[:32] + file_hash(path)[:32])


def write_files(folder: Path, state: Mapping[str, Tensor], config: VQGANConfig) -> None:
    """Write the two files of an image tokenizer to an existing folder."""
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS)
    table = settings.table_of(config)
    given = {name: value for name, value in table.items() if value is not None}  # for a stable hash
    text = json.dumps(given, indent=2) + "\n"
    (folder / "config.json").write_text(text, "utf-8")


def read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read tensors of a safetensors file as fp32; names and shapes must match `wanted` exactly."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    for name in sorted(wanted.keys() ^ state.keys()):
        side = "is missing" if name in wanted else "does not belong to this model"
        raise UserError(f"{path}: weight '{name}' {side}; config.json is of another model")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{path}: weight '{name}' has shape {tuple(state[name].shape)}, config.json asks "
                f"for {tuple(tensor.shape)}; the two files are of different models"
            )
    return state
