"""Training the dual encoder: whose caption is whose is learnt, and a kill changes nothing."""

# Shapes: B = batch, E = width of a vector

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from retrieval.encoder import EncoderConfig, SmallEmbedder
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import to_bytes
from tokenizer.text import TextTokenizer
from tokenizer.vqgan.network import VQGAN, VQGANConfig
from tokenizer.vqgan.perceptual import FeatureNet
from train.metrics import read
from train.retriever.contrastive import (
    ContrastiveJob,
    EncoderRecipe,
    PairBatches,
    codebook_of,
    contrastive_loss,
    run,
    same_captions,
    through_codebook,
)
from train.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer.train([f"a {colour} square" for colour in COLOURS], 280)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> EncoderRecipe:
    folder = tmp_path_factory.mktemp("features")
    torch.manual_seed(0)
    net = FeatureNet()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):  # so that colours come through all its layers
            torch.nn.init.kaiming_normal_(module.weight)
    save_file(net.state_dict(), folder / "features.safetensors")
    config = EncoderConfig(
        pieces=280, dimension=8, size=32, longest=12, width=16, layers=1, heads=2
    )
    return EncoderRecipe(
        data="unused", text_tokenizer="unused", features=str(folder / "features.safetensors"),
        model=config, schedule=Schedule(peak=1e-3, warmup=4), steps=140, batch=8, save_every=10,
        features_rate=1.0,
    )  # fmt: skip


def batches(recipe: EncoderRecipe) -> PairBatches:
    """Twelve pictures of four colours; the captions of a colour are one."""
    pixels = np.full((12, 3, 32, 32), 255, np.uint8)
    metadata: list[dict[str, Any]] = []
    for number, (name, colour) in enumerate([*COLOURS.items()] * 3):
        side = 12 + 2 * (number // 4)
        pixels[number, :, 6 : 6 + side, 6 : 6 + side] = np.array(colour, np.uint8)[:, None, None]
        kind = "dark" if name == "black" else "bright"
        metadata.append({"id": str(number), "captions": [f"a {name} square"], "kind": kind})
    metadata[-1]["captions"] = []
    return PairBatches(metadata, pixels, recipe)


def job(recipe: EncoderRecipe, text: TextTokenizer) -> ContrastiveJob:
    return ContrastiveJob(recipe, text, batches(recipe), torch.device("cpu"))


def test_the_loss_is_the_mean_of_two_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(0)
    text_BE, picture_BE = (torch.randn(3, 5, generator=generator) for _ in range(2))
    logits_BB = 2.0 * text_BE @ picture_BE.T
    plain = torch.stack([-logits_BB.log_softmax(d).diagonal().mean() for d in (0, 1)]).mean()
    loss = contrastive_loss(text_BE, picture_BE, torch.tensor(2.0), torch.eye(3).bool())
    torch.testing.assert_close(loss, plain)


def test_pictures_of_one_caption_are_all_right() -> None:
    same_BB = same_captions(["a", "b", "a"])
    assert same_BB.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    ideal = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    loss = contrastive_loss(ideal, ideal, torch.tensor(50.0), same_BB)
    assert loss.item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)


def test_a_batch_is_a_function_of_its_step(recipe: EncoderRecipe) -> None:
    captions, pixels_B3HW = batches(recipe).at(3)
    again, same_B3HW = batches(recipe).at(3)
    assert captions == again
    assert torch.equal(pixels_B3HW, same_B3HW)
    assert batches(recipe).at(4)[0] != captions or batches(recipe).at(5)[0] != captions
    for caption, pixels_3HW in zip(captions, pixels_B3HW, strict=True):
        wanted = torch.tensor(COLOURS[caption.split()[1]]) / 127.5 - 1
        assert (pixels_3HW == wanted[:, None, None]).all(0).sum() >= 144
    shared = batches(replace(recipe, shares={"dark": 1.0}))
    assert set(shared.at(0)[0]) == {"a black square"}
    with pytest.raises(UserError, match="no captioned image of kind 'odd'"):
        batches(replace(recipe, shares={"odd": 1.0}))


def test_it_learns_whose_caption_is_whose(
    recipe: EncoderRecipe, text: TextTokenizer, tmp_path: Path
) -> None:
    made = job(recipe, text)
    assert run(made, tmp_path, print) == 140
    log = read(tmp_path)
    assert log[0]["right"] < 0.9
    assert sum(line["right"] for line in log[-10:]) / 10 > 0.85
    assert log[-1]["loss"] < log[0]["loss"] - 0.8
    SmallEmbedder(made.net, text).save(tmp_path / "encoder")
    embedder = SmallEmbedder.load(tmp_path / "encoder")
    scores = embedder.texts(["a red square", "a blue square"]) @ embedder.texts(["a red square"]).T
    assert scores[0, 0] > scores[1, 0] + 0.1


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_run_resumed_goes_on_to_the_last_bit(
    recipe: EncoderRecipe, text: TextTokenizer, tmp_path: Path, rate: float
) -> None:
    recipe = replace(recipe, features_rate=rate, steps=6)
    whole = job(recipe, text)
    (tmp_path / "whole").mkdir()
    run(whole, tmp_path / "whole", print)
    (tmp_path / "cut").mkdir()
    assert run(job(recipe, text), tmp_path / "cut", print, deadline=0.0) == 1
    again = job(recipe, text)
    assert run(again, tmp_path / "cut", print) == 6
    for one, other in zip(whole.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rare_families_are_drawn_as_often_as_full_ones(recipe: EncoderRecipe) -> None:
    pixels = np.zeros((20, 3, 32, 32), np.uint8)
    metadata = [
        {"id": str(n), "captions": ["rare" if n == 7 else "full"], "family": str(n == 7)}
        for n in range(20)
    ]
    for evenly, least, most in ((0.0, 0.02, 0.09), (0.5, 0.12, 0.26), (1.0, 0.4, 0.6)):
        made = PairBatches(metadata, pixels, replace(recipe, evenly=evenly, batch=400))
        assert least < made.at(0)[0].count("rare") / 400 < most


def test_captions_are_reworded_and_pictures_recoded_as_often_as_asked(
    recipe: EncoderRecipe,
) -> None:
    wanted = replace(recipe, reworded=0.5, recoded=0.25, image_tokenizer="one", batch=400, shift=0)
    metadata = [{"id": "0", "captions": ["the template"], "label": "fox"}]
    white, black = np.full((1, 3, 32, 32), 255, np.uint8), np.zeros((1, 3, 32, 32), np.uint8)
    captions, pixels_B3HW = PairBatches(metadata, white, wanted, black).at(0)
    assert 0.4 < captions.count("the template") / 400 < 0.6
    assert all("fox" in caption.lower() or caption == "the template" for caption in captions)
    assert 0.15 < (pixels_B3HW[:, 0, 0, 0] == -1).float().mean() < 0.35


def test_pictures_go_through_the_codebook_of_their_size(
    recipe: EncoderRecipe, tmp_path: Path
) -> None:
    config = VQGANConfig(
        size=32, codes=8, embed_dim=4, z_channels=4, ch=32, ch_mult=(1, 1), num_res_blocks=1,
        attn_resolutions=(),
    )  # fmt: skip
    torch.manual_seed(0)
    image = ImageTokenizer(VQGAN(config))
    image.save(tmp_path / "image")
    wanted = replace(recipe, recoded=1.0, image_tokenizer=str(tmp_path / "image"))
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 32, 32), np.uint8)
    assert codebook_of(recipe) is None
    loaded = codebook_of(wanted)
    assert loaded is not None
    recoded = through_codebook(pixels, loaded, torch.device("cpu"))
    one_1L = image.encode(torch.from_numpy(pixels[66:67]).float() / 127.5 - 1)
    assert np.abs(recoded[66] - to_bytes(image.decode(one_1L))[0].numpy()).max() <= 1
    assert recoded.shape == pixels.shape
    small = replace(wanted, model=replace(recipe.model, size=16))
    with pytest.raises(UserError, match="takes images of 32 pixels, the encoder of 16"):
        codebook_of(small)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"batch": 1}, "batch must be at least 2"),
        ({"shift": -1}, "shift must not be negative"),
        ({"reworded": 1.5}, "reworded must be between 0 and 1, got 1.5"),
        ({"recoded": 0.5}, "recoded images need image_tokenizer=FOLDER"),
    ],
)
def test_settings_out_of_range_are_refused(
    recipe: EncoderRecipe, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(recipe, **change)
