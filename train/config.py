"""Configuration of the decoder's training: dataclasses that check the recipes (recipes/*.yaml)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from cm3leon import checkpoint
from cm3leon.model import ModelConfig
from tokenizer import config as settings
from tokenizer.errors import UserError
from train.data.templates import FORMS
from train.objective import MaskConfig
from train.schedule import Schedule

T = TypeVar("T")
Precision = Literal["auto", "fp32", "bf16"]
UNKNOWN = 1  # placeholder of the vocabulary size, until the tokenizers are loaded
ALONE = "views need neighbours, behind which a row is seen anew, or rows.moved above 0"


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Composition of the training rows.

    `pair` is {caption} <break> {image}, `described` the same after an instruction; the other forms
    are those of `train/data/templates.py`, after the paper's Table 5. A row is one whole document,
    or, for a share `packed` of the rows, a block of the full context length, cut from a stream of
    such documents (the paper's section 2.3). The values of `forms` are weights and need not add up
    to 1; {} means every form in the shards, in proportion to its number of documents. In the other
    tables a value is an absolute share; entries that are not named split the remainder in
    proportion to their counts.
    """

    forms: dict[str, float] = field(default_factory=lambda: {"pair": 1.0})
    packed: float = 0.0  # share of rows that are packed blocks of the stream
    kinds: dict[str, float] = field(default_factory=dict)  # of images in pairs; {}: by counts
    edits: dict[str, float] = field(default_factory=dict)  # by type of edit
    questions: dict[str, float] = field(default_factory=dict)  # by type of question
    first_caption: float = 0.5  # probability of the first caption; else a random caption
    reworded: float = 0.0  # probability of a paraphrase (`paraphrase`), which is never a target
    retrieved: int = 2  # most documents before a document, if there is a table of neighbours
    unrelated: float = 0.0  # share of them replaced by random images of the kind, to limit trust
    seen_anew: float = 0.6  # share of captioned images after retrieved ones in an augmented view
    swapped: float = 0.0  # share of rows of several images with all their codes permuted alike
    moved: float = 0.0  # share of documents in a view, all their images alike; not with neighbours

    def __post_init__(self) -> None:
        for table in (self.forms, self.kinds, self.edits, self.questions):
            for name, share in table.items():
                if not share >= 0:
                    raise UserError(f"the share of '{name}' is {share}; it must be 0 or more")
        known = ("pair", "described", *FORMS)
        for name in self.forms:
            if name not in known:
                raise UserError(f"unknown form '{name}'; known: {', '.join(known)}")
        if self.forms and not any(self.forms.values()):
            raise UserError("forms must name at least one kind of document")
        for name in (
            "packed",
            "first_caption",
            "reworded",
            "swapped",
            "unrelated",
            "seen_anew",
            "moved",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; a probability lies in 0..1")
        if self.retrieved < 0:
            raise UserError(f"retrieved is {self.retrieved}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One of several folders of token shards, with the tables computed for them."""

    shards: str
    weight: float = 1.0  # relative share of the rows among the sources
    neighbours: str | None = None
    views: str | None = None
    rows: RowsConfig | None = None  # instead of the recipe's

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight is {self.weight}; it must be above 0, or leave the source out")
        if self.views and not (self.neighbours or (self.rows and self.rows.moved)):
            raise UserError(ALONE)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Parallelism and memory settings of a training step; they do not change the trained model."""

    zero: int = 0  # DeepSpeed's ZeRO stage; 0: data parallelism with full copies, no DeepSpeed
    offload: Literal["none", "optimizer", "all"] = "none"  # to the CPU; `all`: the weights too
    recompute: bool = False  # activation checkpointing: recompute each layer in the backward pass
    attention: Literal["torch", "xformers"] = "torch"  # xformers needs a GPU
    compile: bool = False  # torch.compile each layer: minutes at the start, faster on a GPU

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise UserError(f"zero is {self.zero}; ZeRO has the stages 1, 2 and 3, and 0 is none")
        if self.offload != "none" and self.zero == 0:
            raise UserError(f"offload '{self.offload}' is ZeRO's; set zero to 1, 2 or 3")
        if self.offload == "all" and self.zero != 3:
            raise UserError("offload 'all' needs zero 3: only that has weights in parts")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, or Muon for the matrices of the decoder's blocks (`matrices`).

    The paper states only the learning rate; the other defaults are those of OPT's launcher.
    Muon's momentum is betas[1].
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
    """Recipe of a training run of the decoder: data, model, optimization, duration."""

    job: Literal["pretrain"] = "pretrain"
    shards: str | None = None  # training token shards; or, if there are several, ...
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # ... these, under any names
    balance: tuple[float, float] | None = None  # limits of a source's share of the rows, as
    # multiples of its share of the documents (the paper's tuning: 0.3 and 3)
    validation: str | None = None  # held-out token shards
    neighbours: str | None = None  # table of `index build --neighbours` for these shards
    views: str | None = None  # table of `data views` for these shards
    image_tokenizer: str  # folder
    text_tokenizer: str  # .model file
    model: ModelConfig
    rows: RowsConfig = RowsConfig()
    mask: MaskConfig = MaskConfig()  # noqa: RUF009
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Schedule
    engine: EngineConfig = EngineConfig()
    steps: int
    batch: int  # rows per step, over all processes
    micro_tokens: int = 8192  # most ids per micro-batch, with padding; gradients are accumulated
    precision: Precision = "auto"
    workers: int = 0  # processes that prefetch rows, if a GPU would wait; 0: the main process
    cached_rows: int = 0  # rows that are computed once and stay on the device (`cached`); 0: none
    seed: int = 0
    save_every: int = 500
    keep: int = 2  # newest states to keep
    keep_every: int | None = None  # also keep the states of every `keep_every`-th step
    validate_every: int = 500
    sample_every: int = 1000
    sample_prompts: tuple[str, ...] = ()
    bad_step: Literal["stop", "skip"] = "stop"  # at a non-finite loss or gradient, or a loss spike
    spike: float | None = None  # a loss above this multiple of the recent losses' mean is a spike
    hung_after: float = 1800  # seconds without a step until a process is reported as hanging
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch", "micro_tokens", "save_every", "validate_every", "sample_every",
            "keep", "keep_every",
        ):  # fmt: skip
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if (self.shards is None) == (not self.sources):
            raise UserError("name either shards or sources: one folder of token shards, or several")
        if self.sources and (self.neighbours or self.views):
            raise UserError("with several sources, neighbours and views stand in each of them")
        if self.balance and not 0 <= self.balance[0] <= 1 <= self.balance[1]:
            raise UserError(
                f"balance is {self.balance}; the least must be 0..1, the most 1 or more"
            )
        if self.spike is not None and self.spike <= 1:
            raise UserError(f"spike is {self.spike}; it must be above 1")
        if self.hung_after <= 0:
            raise UserError(f"hung_after is {self.hung_after}; it must be above 0")
        if self.engine.zero and self.optimizer.matrices == "muon":
            raise UserError(
                "optimizer.matrices 'muon' needs whole matrices, which ZeRO cuts; set engine.zero "
                "to 0, or matrices to 'adamw'"
            )
        for name in ("seed", "workers", "cached_rows"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.views and not (self.neighbours or self.rows.moved):
            raise UserError(ALONE)


@dataclass(frozen=True, kw_only=True)
class TextTokenizerRecipe:
    """Recipe of a text tokenizer: its training texts and its number of pieces."""

    job: Literal["text-tokenizer"] = "text-tokenizer"
    data: str
    edits: str | None = None
    questions: str | None = None
    exclude: str | None = None
    pieces: int
    fold: bool = False  # normalise case, spaces and typographic quotes (`tokenizer/text`)
    reworded: int = 0  # additional paraphrased captions per image (`paraphrase`)
    wordnet: str | None = None  # folder of WordNet, for synonyms of the labels


JOBS = ("pretrain", "image-tokenizer", "text-tokenizer", "encoder")


def shipped() -> dict[str, Path]:
    """Return the recipes that are shipped with the package, by name."""
    folder = Path(str(resources.files("train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def path_of(recipe: str) -> Path:
    """Return the file of a recipe, given as a shipped name or a path. Raises UserError if it is
    missing."""
    known = shipped()
    path = known.get(recipe, Path(recipe))
    if recipe not in known and not path.is_file():
        raise UserError(f"no recipe '{recipe}': neither a file nor one of {', '.join(known)}")
    return path


def job_of(recipe: str) -> str:
    """Return the `job` of a recipe. Raises UserError for an unknown job."""
    path = path_of(recipe)
    job = settings.read(path).get("job")
    if job not in JOBS:
        raise UserError(f"{path}: its job is '{job}'; wanted one of {', '.join(JOBS)}")
    return str(job)


def read(cls: type[T], recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe as a plain dict, with the `a.b=c` overrides applied.

    Raises UserError for a missing recipe, and for a recipe of another job.
    """
    path = path_of(recipe)
    table: dict[str, Any] = settings.override(settings.read(path), overrides)
    wanted = cls.__dataclass_fields__["job"].default  # type: ignore[attr-defined]
    if table.get("job") != wanted:
        raise UserError(f"{path}: its job is '{table.get('job')}', this command wants '{wanted}'")
    return table


def load(cls: type[T], recipe: str, overrides: Sequence[str]) -> T:
    """Return a checked recipe. Raises UserError for an invalid, missing or unknown setting."""
    return settings.build(cls, read(cls, recipe, overrides))


def load_pretrain(recipe: str, overrides: Sequence[str], init: str | None = None) -> PretrainRecipe:
    """Return a decoder's checked recipe; without `model.vocabulary`, it is UNKNOWN for now.

    `model`, `image_tokenizer` and `text_tokenizer`, if missing as a whole, are taken from the
    checkpoint `init`, so that a recipe for tuning fits any model size.
    """
    table = read(PretrainRecipe, recipe, overrides)
    if init is not None and not {"model", "image_tokenizer", "text_tokenizer"} <= table.keys():
        folder = checkpoint.find(init)
        table.setdefault("model", settings.table_of(checkpoint.read_config(folder).model))
        table.setdefault("image_tokenizer", str(folder / checkpoint.IMAGE))
        table.setdefault("text_tokenizer", str(folder / checkpoint.TEXT))
    if isinstance(model := table.get("model"), dict):
        model.setdefault("vocabulary", UNKNOWN)
    return settings.build(PretrainRecipe, table)


def with_vocabulary(recipe: PretrainRecipe, vocabulary: int) -> PretrainRecipe:
    """Return the recipe with the vocabulary size of its tokenizers.

    Raises UserError if the recipe states another size.
    """
    if recipe.model.vocabulary not in (UNKNOWN, vocabulary):
        raise UserError(
            f"model.vocabulary is {recipe.model.vocabulary}, but the tokenizers make {vocabulary} "
            f"token ids; leave it out"
        )
    return replace(recipe, model=replace(recipe.model, vocabulary=vocabulary))


def check_batch(batch: int, size: int) -> None:
    """Raise UserError if the batch does not divide evenly among `size` processes."""
    if batch % size:
        raise UserError(f"batch {batch} does not divide among {size} processes; change one of them")
