"""Recipe of an image tokenizer's training."""

from dataclasses import dataclass, field
from typing import Literal

from tokenizer.errors import UserError
from tokenizer.vqgan.network import VQGANConfig
from train.config import Precision
from train.schedule import Schedule
from train.tokenizers.codebook import CodebookConfig
from train.tokenizers.discriminator import SMALLEST


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms; 0 disables a term."""

    l1: float = 1.0
    l2: float = 0.0
    perceptual: float = 0.0  # needs `features`
    perceptual_start: int = 0  # first step of the perceptual term
    features: str | None = None  # safetensors of MobileNetV2, made by scripts/convert_mobilenet.py
    adversarial: float = 0.0
    adversarial_start: int = 0  # first step of the adversarial term
    commitment: float = 0.25  # beta: weight of the encoder's part of the codebook loss


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerRecipe:
    """Recipe of one training run of an image tokenizer."""

    job: Literal["image-tokenizer"] = "image-tokenizer"
    data: str  # WebDataset tars: a folder of train-*.tar, or a glob
    exclude: str | None = None  # file of held-out image ids, one per line
    shares: dict[str, float] = field(default_factory=dict)  # kind -> share of draws; {}: by count
    steps: int
    batch: int
    seed: int = 0
    schedule: Schedule
    betas: tuple[float, float] = (0.5, 0.9)  # of Adam, for both networks; taming's
    model: VQGANConfig
    codes_of: str | None = None  # image tokenizer to keep the codes of: only the decoder is trained
    loss: LossConfig = LossConfig()
    codebook: CodebookConfig = CodebookConfig()  # noqa: RUF009
    precision: Precision = "fp32"  # of the network; on a GPU, fp32 convolutions use TF32
    save_every: int = 500
    sample_every: int = 1000
    keep: int = 2  # newest checkpoints to keep
    keep_every: int | None = None  # checkpoints at multiples of this are kept for good
    hung_after: float = 1800  # seconds without a step after which a process counts as hanging

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every", "sample_every", "keep", "keep_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.hung_after <= 0:
            raise UserError(f"hung_after is {self.hung_after}; it must be above 0")
        if self.loss.adversarial and self.model.size < SMALLEST:
            raise UserError(
                f"the adversarial term judges patches of images from {SMALLEST} pixels; got "
                f"size {self.model.size}: set loss.adversarial to 0"
            )
