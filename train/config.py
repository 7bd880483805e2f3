"""The settings of a decoder's training, typed and checked once; recipes/*.yaml fill them in."""

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
UNKNOWN = 1  # a vocabulary that the tokenizers are yet to tell
ALONE = "views need neighbours, behind which a row is seen anew, or rows.moved above 0"


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """What stands in a training row.

    `pair` is {caption} <break> {picture}, `described` the same behind an instruction, the others
    are those of `train/data/templates.py`, after the paper's Table 5. A row is one whole document,
    or, in a share `packed` of the rows, a block of the whole context, cut from a stream of such
    documents (the paper's, section 2.3). The shares of `forms` are weights, they need not add up to
    1; {} is all that the shards hold, each by how many documents there are. In the other tables a
    share is one of 1, and what is not named shares the rest by how much of it there is.
    """

    forms: dict[str, float] = field(default_factory=lambda: {"pair": 1.0})
    packed: float = 0.0  # share of rows that are blocks of a stream
    kinds: dict[str, float] = field(default_factory=dict)  # of pictures in pairs; {} is as found
    edits: dict[str, float] = field(default_factory=dict)  # type of edit
    questions: dict[str, float] = field(default_factory=dict)  # type of question
    first_caption: float = 0.5  # how often a picture goes under its first caption
    reworded: float = 0.0  # how often under people's words for it (`paraphrase`), never asked back
    retrieved: int = 2  # most documents in front of one, where there is a table of neighbours
    unrelated: float = 0.0  # share of those drawn from all of its kind, so that not all are trusted
    seen_anew: float = 0.6  # share of captioned pictures behind others to see through a view
    swapped: float = 0.0  # of rows of several pictures: every code stands for another, in all alike
    moved: float = 0.0  # of all documents where no table of neighbours is: both ends of an edit too

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
    """One of several folders of token shards, and what was made for them."""

    shards: str
    weight: float = 1.0  # its share of the rows, beside the other sources' weights
    neighbours: str | None = None
    views: str | None = None
    rows: RowsConfig | None = None  # its own, where the recipe's do not fit

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise UserError(f"weight is {self.weight}; it must be above 0, or leave the source out")
        if self.views and not (self.neighbours or (self.rows and self.rows.moved)):
            raise UserError(ALONE)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How one step is spread over processes and memory; another choice trains the same model."""

    zero: int = 0  # DeepSpeed's ZeRO stage; 0 is a whole copy in each process, without DeepSpeed
    offload: Literal["none", "optimizer", "all"] = "none"  # to the CPU; `all` is the weights too
    recompute: bool = False  # activations of a layer are made again in the backward pass
    attention: Literal["torch", "xformers"] = "torch"  # xformers needs a GPU
    compile: bool = False  # each layer by torch.compile: minutes at the start, faster on a GPU

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise UserError(f"zero is {self.zero}; ZeRO has the stages 1, 2 and 3, and 0 is none")
        if self.offload != "none" and self.zero == 0:
            raise UserError(f"offload '{self.offload}' is ZeRO's; set zero to 1, 2 or 3")
        if self.offload == "all" and self.zero != 3:
            raise UserError("offload 'all' needs zero 3: only that has weights in parts")


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
    shards: str | None = None  # token shards to train on; or, where there are several, ...
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # ... these, by any name
    balance: tuple[float, float] | None = None  # least and most times that a source may come more
    # often than its documents are many (the paper's tuning: 0.3 and 3)
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
    engine: EngineConfig = EngineConfig()
    steps: int
    batch: int  # rows a step, over all processes
    micro_tokens: int = 8192  # padded ids in one forward pass; more is cut into micro-batches
    precision: Precision = "auto"
    workers: int = 0  # processes that make rows ahead, for a GPU that would wait; 0 makes none
    cached_rows: int = 0  # rows that are made once and kept on the device (`cached`); 0 keeps none
    seed: int = 0
    save_every: int = 500
    keep: int = 2  # newest states
    keep_every: int | None = None  # states of every so many steps are kept for good
    validate_every: int = 500
    sample_every: int = 1000
    sample_prompts: tuple[str, ...] = ()
    bad_step: Literal["stop", "skip"] = "stop"  # where loss or gradient is no number, or a spike
    spike: float | None = None  # times the mean of the last losses from which a loss is a spike
    hung_after: float = 1800  # seconds without a step after which a process is said to hang
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
    """One text tokenizer: whose captions, instructions and questions, and how many pieces."""

    job: Literal["text-tokenizer"] = "text-tokenizer"
    data: str
    edits: str | None = None
    questions: str | None = None
    exclude: str | None = None
    pieces: int
    fold: bool = False  # case, spaces and typographic quotes make no difference (`tokenizer/text`)
    reworded: int = 0  # of each picture so many captions in people's words too (`paraphrase`)
    wordnet: str | None = None  # a folder of WordNet, for synonyms of the labels


JOBS = ("pretrain", "image-tokenizer", "text-tokenizer", "encoder")


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("train"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def path_of(recipe: str) -> Path:
    """Return the file of a recipe by shipped name or by path. Raises UserError where it is not
    there."""
    known = shipped()
    path = known.get(recipe, Path(recipe))
    if recipe not in known and not path.is_file():
        raise UserError(f"no recipe '{recipe}': neither a file nor one of {', '.join(known)}")
    return path


def job_of(recipe: str) -> str:
    """Return what a recipe trains: its `job`. Raises UserError for one that is not known."""
    path = path_of(recipe)
    job = settings.read(path).get("job")
    if job not in JOBS:
        raise UserError(f"{path}: its job is '{job}'; wanted one of {', '.join(JOBS)}")
    return str(job)


def read(cls: type[T], recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a recipe with `a.b=c` overrides on top, as a plain table.

    Raises UserError for a recipe that is not there or is for another job.
    """
    path = path_of(recipe)
    table: dict[str, Any] = settings.override(settings.read(path), overrides)
    wanted = cls.__dataclass_fields__["job"].default  # type: ignore[attr-defined]
    if table.get("job") != wanted:
        raise UserError(f"{path}: its job is '{table.get('job')}', this command wants '{wanted}'")
    return table


def load(cls: type[T], recipe: str, overrides: Sequence[str]) -> T:
    """A recipe, checked; raises UserError for a wrong, missing or unknown setting."""
    return settings.build(cls, read(cls, recipe, overrides))


def load_pretrain(recipe: str, overrides: Sequence[str], init: str | None = None) -> PretrainRecipe:
    """A decoder's recipe; where it does not state `model.vocabulary`, that is UNKNOWN for now.

    What it leaves out of `model`, `image_tokenizer` and `text_tokenizer` altogether is that of the
    model `init`, so that a recipe for tuning fits any size.
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
    """The recipe for tokenizers that make `vocabulary` ids: the number is computed, not typed."""
    if recipe.model.vocabulary not in (UNKNOWN, vocabulary):
        raise UserError(
            f"model.vocabulary is {recipe.model.vocabulary}, but the tokenizers make {vocabulary} "
            f"token ids; leave it out"
        )
    return replace(recipe, model=replace(recipe.model, vocabulary=vocabulary))


def check_batch(batch: int, size: int) -> None:
    """Refuse a batch that cannot be shared by `size` processes."""
    if batch % size:
        raise UserError(f"batch {batch} does not divide among {size} processes; change one of them")
