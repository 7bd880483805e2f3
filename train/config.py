"""The settings of a decoder's training, typed and checked once; recipes/*.yaml fill them in."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from cm3leon.model import ModelConfig
from tokenizer import settings
from tokenizer.errors import UserError
from train.forms import FORMS
from train.objective import MaskConfig
from train.schedule import Schedule

T = TypeVar("T")
Precision = Literal["auto", "fp32", "bf16"]
UNKNOWN = 1  # a vocabulary that the tokenizers are yet to tell


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What stands in a training row.

    `pair` is {caption} <break> {picture}, `described` the same behind an instruction, the others
    are those of `train/forms.py`, after the paper's Table 5; each is one whole document a row.
    `packed` is a row of the whole context, filled with documents of the other forms and cut
    (section 2.3).
    The shares of `forms` are weights, they need not add up to 1; in the other tables a share is
    one of 1, and what is not named shares the rest by how much of it there is.
    """

    forms: dict[str, float] = field(default_factory=lambda: {"pair": 1.0})
    kinds: dict[str, float] = field(default_factory=dict)  # of pictures in pairs; {} is as found
    edits: dict[str, float] = field(default_factory=dict)  # type of edit
    questions: dict[str, float] = field(default_factory=dict)  # type of question
    first_caption: float = 0.5  # how often a picture goes under its first caption
    retrieved: int = 2  # most documents in front of one, where there is a table of neighbours
    unrelated: float = 0.0  # share of those drawn from all of its kind, so that not all are trusted
    seen_anew: float = 0.6  # share of captioned pictures behind others to see through a view

    def __post_init__(self) -> None:
        for table in (self.forms, self.kinds, self.edits, self.questions):
            for name, share in table.items():
                if not share >= 0:
                    raise UserError(f"the share of '{name}' is {share}; it must be 0 or more")
        known = ("pair", "described", *FORMS, "packed")
        for name in self.forms:
            if name not in known:
                raise UserError(f"unknown form '{name}'; known: {', '.join(known)}")
        if not any(share for name, share in self.forms.items() if name != "packed"):
            raise UserError("forms must name at least one kind of document beside 'packed'")
        if not 0 <= self.first_caption <= 1:
            raise UserError(f"first_caption is {self.first_caption}; a probability lies in 0..1")
        for name in ("unrelated", "seen_anew"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; a probability lies in 0..1")
        if self.retrieved < 0:
            raise UserError(f"retrieved is {self.retrieved}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. The paper is silent beyond the rate: the rest is OPT's launcher (facts 4.4).

    `matrices` says what moves those of the decoder's blocks; Muon's momentum is betas[1].
    """

    matrices: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas are {self.betas}; each must be at least 0 and below 1")
        if not (self.eps > 0 and self.clip > 0 and self.weight_decay >= 0):
            raise UserError(f"eps and clip must be above 0, weight_decay at least 0, got {self}")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """One run of the decoder: what it learns from, what it is, how long."""

    job: Literal["pretrain"] = "pretrain"
    shards: str  # token shards to train on
    validation: str | None = None  # token shards never trained on
    neighbours: str | None = None  # what `index build --neighbours` made for these shards
    views: str | None = None  # what `data views` made for these shards
    image_tokenizer: str  # folder
    text_tokenizer: str  # .model file
    model: ModelConfig
    rows: RowsConfig = RowsConfig()
    mask: MaskConfig = MaskConfig()  # noqa: RUF009
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule
    steps: int
    batch: int  # rows a step
    micro_tokens: int = 8192  # padded ids in one forward pass; more is cut into micro-batches
    precision: Precision = "auto"
    workers: int = 0  # processes that make rows ahead, for a GPU that would wait; 0 makes none
    seed: int = 0
    save_every: int = 500
    validate_every: int = 500
    sample_every: int = 1000
    sample_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch", "micro_tokens", "save_every", "validate_every", "sample_every",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.views is not None and self.neighbours is None:
            raise UserError("views need neighbours: only behind documents is a row seen anew")


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRecipe:
    """One text tokenizer: whose captions, instructions and questions, and how many pieces."""

    job: Literal["text-tokenizer"] = "text-tokenizer"
    data: str
    edits: str | None = None
    questions: str | None = None
    exclude: str | None = None
    pieces: int


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read(cls: type[T], recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe by shipped name or by path, with `a.b=c` overrides on top, as a plain table.

    Raises UserError for a recipe that is not there or is for another job.
    """
    known = shipped()
    path = known.get(recipe, Path(recipe))
    if recipe not in known and not path.is_file():
        raise UserError(f"no recipe '{recipe}': neither a file nor one of {', '.join(known)}")
    table: dict[str, Any] = settings.override(settings.read(path), overrides)
    wanted = cls.__dataclass_fields__["job"].default  # type: ignore[attr-defined]
    if table.get("job") != wanted:
        raise UserError(f"{path}: its job is '{table.get('job')}', this command wants '{wanted}'")
    return table


def load(cls: type[T], recipe: str, overrides: Sequence[str]) -> T:
    """A recipe, checked; raises UserError for a wrong, missing or unknown setting."""
    return settings.build(cls, read(cls, recipe, overrides))


def load_pretrain(recipe: str, overrides: Sequence[str]) -> PretrainRecipe:
    """A decoder's recipe; where it does not state `model.vocabulary`, that is UNKNOWN for now."""
    table = read(PretrainRecipe, recipe, overrides)
    if isinstance(model := table.get("model"), dict):
        model.setdefault("vocabulary", UNKNOWN)
    return settings.build(PretrainRecipe, table)


def with_vocabulary(recipe: PretrainRecipe, vocabulary: int) -> PretrainRecipe:
    """The recipe for tokenizers that make `vocabulary` ids: the number is computed, not typed."""
    if recipe.model.vocabulary not in (UNKNOWN, vocabulary):
        raise UserError(
            f"model.vocabulary is {recipe.model.vocabulary}, but the tokenizers make {vocabulary} "
            f"token ids; leave it out"
        )
    return replace(recipe, model=replace(recipe.model, vocabulary=vocabulary))
