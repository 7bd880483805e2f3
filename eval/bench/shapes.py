"""Settings and jobs of the decoding benchmark: a decoder, its prompts and sampling parameters.

The decoder has some shape and random weights, or is that of a checkpoint. Used by `decode` and
`batching`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cm3leon import prompts as forms
from cm3leon.attention import best_attention
from cm3leon.engine.request import Streams
from cm3leon.fast.quantize import Precision, prepare
from cm3leon.generate import generate
from cm3leon.grammar import Drawn, longest, picture
from cm3leon.model import SIZES, Decoder, ModelConfig, sized
from cm3leon.pipeline import CM3Leon, pick_device
from cm3leon.sampling import Sampling
from tokenizer.errors import UserError

CODES = 8192  # image ids, at the end of the vocabulary
TEXT, NOTHING = tuple(range(10, 42)), (2, 5, 7)  # ids of a prompt, and of the empty prompt
HEAD = 64  # width of an attention head
SCALE = 3.0  # guidance scale
PROMPT = "a red fox, Noto emoji style"
BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.625}  # per weight, with its scales
SHAPES: dict[str, dict[str, Any]] = {
    "chameleon": {
        "norm": "rmsnorm",
        "norm_affine": True,
        "mlp": "swiglu",
        "positions": "rope",
        "qk_norm": True,
        "tied": False,
    },
    "paper": {},
}
SHARED = {"vocabulary": 4096 + CODES, "layers": 12, "width": 512}
PAPERS_TEXT = 56320  # text ids in the paper's vocabulary


@dataclass(frozen=True, kw_only=True)
class DecodeSetting:
    """Configuration to measure: a shape with random weights, or a checkpoint's images (`model`)."""

    shape: str = "chameleon"
    model: str | None = None
    n: int = 1
    guided: bool = True
    precision: Precision | None = None
    """Of the weights during decoding; None is fp32, and bf16 for a named size."""
    against: bool = False
    times: int = 5
    device: str = "cpu"
    threads: int | None = None
    layers: int | None = None
    width: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        known = (*SHAPES, *SIZES)
        if self.shape not in known:
            raise UserError(f"there is no shape '{self.shape}'; known: {', '.join(known)}")
        if self.precision not in (None, *BYTES):
            raise UserError(f"there is no precision '{self.precision}'; known: {', '.join(BYTES)}")
        alone = self.model is not None or self.shape not in SHAPES
        if self.against and alone:
            raise UserError(
                f"transformers is compared with in the shapes {' and '.join(SHAPES)} only; "
                "leave '--against' out"
            )
        sizes = (self.layers, self.width, self.tokens)
        if self.model is not None and (sizes != (None,) * 3 or not self.guided):
            raise UserError(
                "a checkpoint has its own sizes, and its images are guided; leave --layers, "
                "--width, --tokens and --unguided out"
            )

    @property
    def drawn(self) -> int:
        """Image tokens per image, if a shape is measured."""
        return self.tokens or (256 if self.shape in SHAPES else 1024)

    @property
    def weights(self) -> Precision:
        """Storage precision of the weights during decoding."""
        return self.precision or ("fp32" if self.shape in SHAPES or self.model else "bf16")


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """Generation job of one run: `n` samples of these streams."""

    model: Decoder
    prompts: tuple[tuple[int, ...], ...]
    allowed: range
    tokens: int
    sampling: Sampling
    leon: CM3Leon | None = None

    def run(self, n: int, tokens: int) -> list[list[int]]:
        """Generate `tokens` tokens of `n` samples, with our own decoding."""
        rule = (Drawn(self.allowed, tokens),)
        return generate(self.model, Streams(self.prompts), rule, self.sampling, list(range(n)))


def config_of(setting: DecodeSetting) -> ModelConfig:
    """Return the decoder configuration of a shape."""
    given = {"layers": setting.layers, "width": setting.width}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if setting.width is not None:
        changes["heads"] = max(1, setting.width // HEAD)
    room = len(TEXT) + setting.drawn
    if setting.shape not in SHAPES:
        made = sized(setting.shape, vocabulary=PAPERS_TEXT + CODES, **changes)
        return replace(made, context=max(made.context, room))
    sizes = {**SHARED, "heads": SHARED["width"] // HEAD, "context": max(512, room), **changes}
    return ModelConfig(**sizes, **SHAPES[setting.shape])


@torch.no_grad()
def random_decoder(model: ModelConfig, device: torch.device, dtype: torch.dtype) -> Decoder:
    """Return a decoder with random weights: matrices small, norms near 1, so every part counts."""
    with torch.device("meta"):
        made = Decoder(model).to(dtype)
    made = made.to_empty(device=device).eval().requires_grad_(False)
    draw = torch.Generator(device).manual_seed(0)
    for name, weight in made.named_parameters():
        one = weight.ndim == 1 and name.endswith("weight")
        nn.init.normal_(weight, float(one), 0.02 if weight.ndim > 1 else 0.1, generator=draw)
    made.attend = best_attention(device)
    return made


def ready(job: DecodeJob, precision: Precision) -> DecodeJob:
    """Convert the job's decoder to this precision, and return the job."""
    prepare(job.model, precision)
    return job


def job_of(setting: DecodeSetting) -> DecodeJob:
    """Return the model and its prompts; the model is not yet converted (`ready`)."""
    device = pick_device(setting.device)
    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    if setting.model is None:
        made = config_of(setting)
        dtype = torch.float32 if setting.shape in SHAPES else torch.bfloat16
        return DecodeJob(
            model=random_decoder(made, device, dtype),
            prompts=(TEXT, NOTHING) if setting.guided else (TEXT,),
            allowed=range(made.vocabulary - CODES, made.vocabulary),
            tokens=setting.drawn,
            sampling=Sampling(cfg_scale=SCALE),
        )
    leon = CM3Leon.from_pretrained(setting.model, device=setting.device)
    rule = picture(leon.codec.vocabulary, leon.codec.picture_codes)
    (run,) = rule
    assert isinstance(run, Drawn)
    return DecodeJob(
        model=leon.model,
        prompts=tuple(leon.codec.open(document) for document in forms.paint(PROMPT)),
        allowed=run.allowed,
        tokens=longest(rule),
        sampling=leon.sampling.text_to_image,
        leon=leon,
    )
