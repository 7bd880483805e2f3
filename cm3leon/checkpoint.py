"""Checkpoint folder format: `save` writes a complete folder, `load` reads and validates it.

    config.json              sizes of the decoder, the vocabulary and the images
    model.safetensors        decoder weights (or shards, with model.safetensors.index.json)
    tokenizer.model          text tokenizer: text <-> text pieces
    image_tokenizer/         image tokenizer: pixels <-> codes
    generation_config.json   default sampling parameters of each task
    README.md                model card
    manifest.json            size and SHA-256 of each part

Training writes the folder and the pipeline reads it. Nothing is guessed: errors name the part that
is missing, damaged or from another model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from cm3leon.model import Decoder, ModelConfig
from cm3leon.sampling import Sampling
from cm3leon.weight_format import Stored, listed, pack, unpack
from tokenizer import config as settings
from tokenizer.codec import Codec
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer, read_weights
from tokenizer.manifest import MANIFEST, new_folder, verify
from tokenizer.text import TextTokenizer
from tokenizer.vocabulary import Vocabulary

FORMAT = 1
CONFIG, SAMPLING, CARD = "config.json", "generation_config.json", "README.md"
TEXT, IMAGE = "tokenizer.model", "image_tokenizer"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 16_000_000  # of tensors per file; larger files are impractical in git and downloads

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Side of an image in pixels (`size`) and in codes (`grid`)."""

    size: int
    grid: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """Contents of `config.json`."""

    format: int
    model: ModelConfig
    vocabulary: Vocabulary
    picture: PictureConfig
    text_tokenizer: str  # hashes of the tokenizers that the model was trained with
    image_tokenizer: str
    stored: Literal["float", "int8"] = "float"  # format of the matrices in the files

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(f"format is {self.format}; this version reads {FORMAT}")
        rows, tokens = self.model.vocabulary, self.vocabulary.size
        if rows != tokens:
            raise UserError(f"the model has {rows} embedding rows, its vocabulary {tokens} tokens")


Task = Literal["text_to_image", "edit", "infill", "caption", "answer"]


@dataclass(frozen=True, kw_only=True)
class TaskSampling:
    """Contents of `generation_config.json`: default sampling parameters of each task."""

    text_to_image: Sampling = Sampling()  # noqa: RUF009  frozen
    edit: Sampling = Sampling()  # noqa: RUF009
    infill: Sampling = Sampling()  # noqa: RUF009
    caption: Sampling = Sampling(temperature=0.0)  # noqa: RUF009
    answer: Sampling = Sampling(temperature=0.0)  # noqa: RUF009
    candidates: int = 1  # per text-to-image image; the retriever's encoder selects one
    retrieve: int = 0  # documents from the shipped memory, for text-to-image and captioning
    untrained: tuple[Task, ...] = ()  # tasks the weights were not trained on; commands report it

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.retrieve < 0:
            raise UserError(
                f"candidates is {self.candidates} and retrieve {self.retrieve}; they must be at "
                "least 1 and 0"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Loaded checkpoint. `hash` identifies its files; see `hash_of`."""

    model: Decoder
    codec: Codec
    image_tokenizer: ImageTokenizer
    sampling: TaskSampling
    hash: str


def save(
    folder: Path | str,
    model: Decoder,
    codec: Codec,
    image_tokenizer: ImageTokenizer,
    *,
    sampling: TaskSampling | None = None,
    stored: Stored = "fp32",
    card: str | None = None,
    replace: bool = False,
) -> str:
    """Write a checkpoint as a new folder and return its hash.

    `stored` is the format of the decoder's weights: int8 takes a quarter of the space of fp32, and
    is rounded. The image tokenizer is stored exactly, because the decoder was trained on its codes.
    Raises UserError if the folder cannot be written, or exists and is not to be replaced.
    """
    with new_folder(folder, replace=replace) as aside:
        image_tokenizer.save(aside / IMAGE, half=_fits_half(image_tokenizer.net.state_dict()))
        (aside / TEXT).write_bytes(codec.text.model)
        config = Config(
            format=FORMAT,
            model=model.config,
            vocabulary=codec.vocabulary,
            picture=PictureConfig(size=image_tokenizer.size, grid=image_tokenizer.grid),
            text_tokenizer=codec.text.hash,
            image_tokenizer=ImageTokenizer.load(aside / IMAGE).hash,
            stored="int8" if stored == "int8" else "float",
        )
        _write_json(aside / CONFIG, settings.table_of(config))
        _write_json(aside / SAMPLING, settings.table_of(sampling or TaskSampling()))
        _write_weights(aside, pack(model.state_dict(), stored))
        (aside / CARD).write_text(card or _plain_card(config), "utf-8")
    return hash_of(Path(folder))


def load(folder: Path | str) -> Checkpoint:
    """Read a checkpoint folder, with weights as fp32.

    Raises UserError naming the part that is missing, damaged or from another model.
    """
    folder = Path(folder)
    verify(folder)
    config = read_config(folder)
    text = TextTokenizer.load(folder / TEXT)
    if text.hash != config.text_tokenizer or text.pieces != config.vocabulary.text_pieces:
        raise _foreign(folder, TEXT)
    image = ImageTokenizer.load(folder / IMAGE)
    picture = PictureConfig(size=image.size, grid=image.grid)
    told = (image.hash, picture, image.codes)
    if told != (config.image_tokenizer, config.picture, config.vocabulary.image_codes):
        raise _foreign(folder, IMAGE)
    with torch.device("meta"):  # skips initialising weights that are replaced at once
        model = Decoder(config.model)
    wanted = listed(model.state_dict(), "int8" if config.stored == "int8" else "fp32")
    model.load_state_dict(unpack(_read_state(folder, wanted)), assign=True)
    return Checkpoint(
        model=model.eval().requires_grad_(False),
        codec=Codec(config.vocabulary, text, image.picture_codes, config.model.context),
        image_tokenizer=image,
        sampling=read_sampling(folder),
        hash=hash_of(folder),
    )


def find(source: Path | str, say: Callable[[str], None] | None = None) -> Path:
    """Return the folder of a model.

    `default` is the model shipped with the package, `hf:owner/name` is downloaded from the Hugging
    Face hub (or found in its cache), anything else is a folder.
    """
    if source == "default":
        folder = Path(str(files("cm3leon") / "assets" / "default"))
        if not folder.is_dir():
            raise UserError(f"the default model is not installed: there is no folder {folder}")
        return folder
    if isinstance(source, str) and source.startswith("hf:"):
        return _fetch(source.removeprefix("hf:"), say)
    folder = Path(source)
    if not folder.is_dir():
        hint = "give a checkpoint folder, 'default' or 'hf:owner/name'"
        raise UserError(f"there is no model folder {str(source)!r}; {hint}")
    return folder


def read_config(folder: Path) -> Config:
    """Read `config.json` of a checkpoint folder, without its weights."""
    return _read_json(Config, folder / CONFIG)


def read_sampling(folder: Path) -> TaskSampling:
    """Read `generation_config.json` of a checkpoint folder, without its weights."""
    return _read_json(TaskSampling, folder / SAMPLING)


def hash_of(folder: Path) -> str:
    """Return twelve hexadecimal digits that identify the parts that affect a model's output.

    Its card and its default sampling, which are recorded in every result, are left out.
    """
    listed = json.loads((folder / MANIFEST).read_bytes())["files"]
    lines = [f"{k} {v['sha256']}\n" for k, v in sorted(listed.items()) if k not in (CARD, SAMPLING)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def _foreign(folder: Path, part: str) -> UserError:
    return UserError(f"{folder}: {part} is of another model than {CONFIG}; copy the folder again")


def _fetch(name: str, say: Callable[[str], None] | None) -> Path:
    """Download a model folder. Nothing else in this project accesses the network."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError("hf: models need the package huggingface_hub; install it") from error
    if say is not None:
        say(f"fetching {name} from the Hugging Face hub")
    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:  # no network, no such model, an invalid name
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot fetch {name!r} from the Hugging Face hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from error


def _read_json(cls: type[T], path: Path) -> T:
    try:
        table: object = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise UserError(f"{path}: must hold a table of settings")
    try:
        return settings.build(cls, cast("dict[str, object]", table))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _write_json(path: Path, table: Mapping[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _fits_half(state: Mapping[str, Tensor]) -> bool:
    """Return whether fp16 holds these fp32 weights exactly, as it does if they came from fp16."""
    return all(torch.equal(v.half().float(), v) for v in state.values() if v.is_floating_point())


def _shards(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield weights in shards of at most SHARD_BYTES, or of a single larger tensor."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


def _write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    shards = list(_shards(state))
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in state.values())
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Contents of `model.safetensors.index.json`: the file of every weight."""

    metadata: dict[str, int]
    weight_map: dict[str, str]


def _read_state(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the decoder's tensors as fp32; names and shapes must be exactly those of `wanted`."""
    if not (folder / INDEX).is_file():
        return read_weights(folder / WEIGHTS, wanted)
    places = _read_json(_Index, folder / INDEX).weight_map
    for name in sorted(places.keys() ^ wanted.keys()):
        side = "is missing" if name in wanted else "does not belong to this model"
        raise UserError(f"{folder / INDEX}: weight '{name}' {side}")
    state: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        held = {name: wanted[name] for name, place in places.items() if place == file}
        state |= read_weights(folder / Path(file).name, held)
    return state


def _plain_card(config: Config) -> str:
    model, picture = config.model, config.picture
    return (
        "# A CM3Leon model\n\n"
        f"A decoder of {model.layers} layers, width {model.width}, {model.heads} heads and context "
        f"{model.context}; images of {picture.size} x {picture.size} pixels are "
        f"{picture.grid} x {picture.grid} codes of {config.vocabulary.image_codes}.\n\n"
        'Use it with `cm3leon generate "a red fox" --model FOLDER`, or in Python with\n'
        "`CM3Leon.from_pretrained(FOLDER)`. Whoever trained it has written nothing more here yet.\n"
    )
