"""What all tests share: random examples are the same on every machine and never timed, and a tiny
model that can do everything, badly."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from cm3leon.pipeline import CM3Leon

# A deadline would fail on a busy machine; fresh examples on each run would fail by luck.
settings.register_profile("house", deadline=None, derandomize=True, database=None)
settings.load_profile("house")


def make_tiny(seed: int) -> "CM3Leon":
    """A random model: pictures of 16 x 16 pixels are 4 x 4 codes of 32."""
    import torch

    from cm3leon.model import Decoder, ModelConfig
    from cm3leon.pipeline import CM3Leon
    from tokenizer.codec import Codec
    from tokenizer.image import ImageTokenizer
    from tokenizer.text import TextTokenizer
    from tokenizer.vocabulary import Vocabulary
    from tokenizer.vqgan.network import VQGAN, VQGANConfig

    text = TextTokenizer.train([f"a red fox, a blue heart, a cat's head {seed}"], 280)
    vocabulary = Vocabulary(image_codes=32, text_pieces=text.pieces, sentinels=8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = VQGANConfig(
            size=16,
            patch=2,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            z_channels=32,
            embed_dim=4,
            codes=32,
        )
        image_tokenizer = ImageTokenizer(VQGAN(config))
        size = ModelConfig(vocabulary=vocabulary.size, context=160, layers=2, width=32, heads=2)
        model = Decoder(size)
        for weight in model.parameters():  # the paper's start would say the same to every prompt
            torch.nn.init.normal_(weight, std=0.3)
    codec = Codec(vocabulary, text, image_tokenizer.picture_codes, size.context)
    return CM3Leon(model.eval().requires_grad_(False), codec, image_tokenizer)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's checkpoint folder. Look, but do not change it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model, of the same sizes."""
    folder = tmp_path_factory.mktemp("models") / "other"
    make_tiny(1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> "CM3Leon":
    """The tiny model, read from its folder."""
    from cm3leon.pipeline import CM3Leon

    return CM3Leon.from_pretrained(tiny_folder)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of noise, 16 x 16, with their captions: test-0.tar, and as train-0.tar."""
    import io
    import json
    import tarfile

    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    labels = ("fox", "red heart", "cat's head", "cow", "wolf", "bat")
    kinds = ("icon", "emoji", "emoji", "icon", "emoji", "photo")
    with tarfile.open(folder / "test-0.tar", "w") as archive:
        for number, (label, kind) in enumerate(zip(labels, kinds, strict=True)):
            picture = io.BytesIO()
            pixels_HW3 = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels_HW3).save(picture, "PNG")
            caption = f"{label}, Noto {kind} style"
            table = {"id": f"p{number}", "caption": caption, "kind": kind, "label": label}
            for ending, data in (
                ("png", picture.getvalue()),
                ("json", json.dumps(table).encode()),
            ):
                member = tarfile.TarInfo(f"p{number}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (folder / "train-0.tar").write_bytes((folder / "test-0.tar").read_bytes())
    return folder


@pytest.fixture(scope="session")
def shards_folder(
    tiny: "CM3Leon", corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The token shards of the six pictures, made with the tiny model's image tokenizer."""
    from tokenizer.data.shard_writer import write_shards
    from tokenizer.data.tars import Tally, find_tars, read_samples
    from tokenizer.pixels import open_image

    folder = tmp_path_factory.mktemp("shards") / "test"
    samples = list(read_samples(find_tars(corpus_folder, "test-"), Tally()))
    codes = [tiny.to_picture(open_image(sample.picture)).codes for sample in samples]
    image = tiny.image_tokenizer
    write_shards(
        folder,
        ((s.metadata, row) for s, row in zip(samples, codes, strict=True)),
        [{"task": "pair", "picture": sample.metadata["id"]} for sample in samples],
        image_tokenizer_hash=image.hash,
        size=image.size,
        grid=image.grid,
        codes=image.codes,
    )
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order on every machine, and no waiting for a core that is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LESSON = """
job: pretrain
shards: {folder}/shards
validation: {folder}/shards
image_tokenizer: {model}/image_tokenizer
text_tokenizer: {model}/tokenizer.model
model: {{context: 128, layers: 2, width: 64, heads: 2, init_std: 0.02}}
rows:
  forms: {{pair: 0.4, edit: 0.25, question: 0.35}}
schedule: {{peak: 8e-3, warmup: 10}}
mask: {{field: 0.4}}
steps: 160
batch: 8
precision: fp32
save_every: 20
validate_every: 80
sample_every: 80
sample_prompts: [a red fox]
"""


@pytest.fixture(scope="session")
def lesson(tiny: "CM3Leon", tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe for a decoder with eight documents to learn, for the tiny model's tokenizers."""
    import numpy as np

    from tokenizer.data.shard_writer import write_shards

    folder = tmp_path_factory.mktemp("lesson")
    image = tiny.image_tokenizer
    codes = np.random.default_rng(0).integers(0, image.codes, (4, image.picture_codes)).tolist()
    captions = ("a red fox", "a blue heart", "a cat's head", "two foxes")
    pictures = [{"id": str(number), "captions": [line]} for number, line in enumerate(captions)]
    asked = {"task": "question", "question": "What is it?"}
    documents = [
        *({"task": "pair", "picture": picture["id"]} for picture in pictures),
        {"task": "edit", "source": "0", "target": "3", "instructions": ["add a fox"]},
        {"task": "edit", "source": "3", "target": "0", "instructions": ["remove a fox"]},
        {**asked, "picture": "1", "answer": "love"},
        {**asked, "picture": "2", "answer": "a cat"},
    ]
    about = {"image_tokenizer_hash": image.hash, "size": image.size, "grid": image.grid}
    found = zip(pictures, codes, strict=True)
    write_shards(folder / "shards", found, documents, codes=image.codes, **about)
    recipe = folder / "lesson.yaml"
    recipe.write_text(LESSON.format(folder=folder, model=tiny_folder))
    return recipe


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dual encoder of random weights."""
    import torch

    from retrieval.encoder import DualEncoder, EncoderConfig, SmallEmbedder
    from tokenizer.text import TextTokenizer

    text = TextTokenizer.train(["a red fox", "an owl, a fox and a bat"], 270)
    sizes = {"size": 32, "longest": 12, "width": 16, "layers": 1, "heads": 2}
    config = EncoderConfig(pieces=270, dimension=8, **sizes)
    folder = tmp_path_factory.mktemp("encoders") / "encoder"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SmallEmbedder(DualEncoder(config), text).save(folder)
    return folder


@pytest.fixture(scope="session")
def small_memory(
    tiny: "CM3Leon",
    small_encoder: Path,
    corpus_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A memory of the six pictures, with the tiny model's codes."""
    from retrieval.build import add_sources, codebook_of
    from retrieval.encoder import SmallEmbedder
    from retrieval.memory import Contents, Memory
    from tokenizer.data.tars import Tally

    embedder = SmallEmbedder.load(small_encoder)
    empty = Contents(
        encoder=embedder.id,
        dimension=embedder.dimension,
        codebook=codebook_of(tiny.image_tokenizer),
        near=1.0,
    )
    memory = Memory.create(tmp_path_factory.mktemp("memories") / "memory", empty)
    tars = [str(corpus_folder / "train-0.tar")]
    said: list[str] = []
    images = tiny.image_tokenizer
    add_sources(memory, tars, embedder, images, tally=Tally(), say=said.append)
    return memory.folder


@pytest.fixture(scope="session")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2's file with random weights; larger than torch's own, so that something is left
    after 50 layers."""
    import torch
    from safetensors.torch import save_file

    from tokenizer.vqgan.perceptual import FeatureNet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = FeatureNet()
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.ndim == 4 else 100
            torch.nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5)
    path = tmp_path_factory.mktemp("mobilenet") / "weights.safetensors"
    save_file(net.state_dict(), path)
    return path


SIZE = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3}
EDITS: list[Any] = [
    {"source": "red", "target": "green", "instructions": ["make it green", "green!"], "type": "c"},
    {"source": "red", "target": "white", "instructions": ["make it white"], "type": "c"},
    {"source": "red", "target": "mauve", "instructions": ["make it mauve"], "type": "c"},
    {"source": "red", "target": "green", "instructions": []},
    {"source": "red", "target": "green", "instructions": ["green!", " "]},
]
QUESTIONS: list[Any] = [
    {"id": "blue", "question": "Which colour?", "answer": "blue", "type": "what"},
    {"id": "white", "question": "Is it bright?", "answer": "yes", "type": "yesno"},
    ["not a question"],
    {"id": "blue", "question": "Which colour?", "answer": " "},
]


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Two tars of two pictures each, one colour a picture, with a damaged picture between."""
    from PIL import Image

    def picture(colour: tuple[int, ...]) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE * 2), colour).save(file, format="PNG")
        return file.getvalue()

    paths = [tmp_path / "t-0.tar", tmp_path / "t-1.tar"]
    for path, names in zip(paths, (["red", "green"], ["blue", "white"]), strict=True):
        with tarfile.open(path, "w") as archive:
            members = {"README.md": b"more"}
            if path is paths[0]:
                members = {"bad.png": b"no image", "bad.json": b"{}"}
            for name in names:
                members[f"{name}.png"] = picture(COLOURS[name])
                metadata = {"id": name, "captions": [f"a {name} square", "a square"]}
                members[f"{name}.json"] = json.dumps(metadata).encode()
            for name, data in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return paths


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, EDITS)).encode()))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)) + "\n{half")
    return path
