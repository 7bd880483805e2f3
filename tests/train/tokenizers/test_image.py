"""Training the image tokenizer: it learns, its codebook stays alive, and a kill changes nothing."""

# Shapes: B = batch, E = code width, K = entries, H, W = feature height and width, N = B * H * W

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.vqgan.network import VQGAN, VQGANConfig
from tokenizer.vqgan.perceptual import FeatureNet, perceptual_distance
from train.metrics import read
from train.schedule import Schedule
from train.tokenizers.codebook import CodebookConfig
from train.tokenizers.image import (
    Codebook,
    ImageBatches,
    ImageTokenizerJob,
    Terms,
    psnr,
    run,
)
from train.tokenizers.recipe import ImageTokenizerRecipe, LossConfig

SMALL = VQGANConfig(
    size=16, codes=16, embed_dim=8, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1,
    attn_resolutions=(),
)  # fmt: skip
RECIPE = ImageTokenizerRecipe(
    data="unused", steps=24, batch=8, schedule=Schedule(peak=3e-3, warmup=4), model=SMALL,
    loss=LossConfig(l2=0.5), save_every=6, sample_every=24,
)  # fmt: skip
# All that the plain recipe leaves out: both networks, entries by gradient, dropout, patches.
ADVERSARIAL = replace(
    RECIPE,
    steps=8,
    save_every=2,
    model=replace(SMALL, size=32, patch=2, l2_norm=True, dropout=0.1, attn_resolutions=(8,)),
    loss=LossConfig(adversarial=0.5, adversarial_start=2),
    codebook=CodebookConfig(ema=None),
)


def pictures(size: int) -> np.ndarray:
    """Twenty pictures [P, 3, H, W] of a bright square on a dark ground."""
    rng = np.random.default_rng(0)
    pixels = np.empty((20, 3, size, size), np.uint8)
    for picture in pixels:
        picture[:] = rng.integers(0, 100, (3, 1, 1))
        top, left = rng.integers(0, size // 2, 2)
        picture[:, top : top + size // 2, left : left + size // 2] = rng.integers(
            150, 256, (3, 1, 1)
        )
    return pixels


def batches(recipe: ImageTokenizerRecipe) -> ImageBatches:
    return ImageBatches(pictures(recipe.model.size), ["square"] * 20, recipe)


class Killed(ImageBatches):
    """Batches of a run that is interrupted while it makes a certain step."""

    def at(self, step: int) -> torch.Tensor:
        if step == self.recipe.steps * 2 // 3:
            raise KeyboardInterrupt
        return super().at(step)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read(folder)]


@pytest.mark.parametrize("wider", [None, 64])
def test_a_decoder_is_trained_on_while_the_codes_stay(wider: int | None, tmp_path: Path) -> None:
    pixels_B3HW = batches(RECIPE).at(0)
    (tmp_path / "first").mkdir()
    first = run(RECIPE, batches(RECIPE), tmp_path / "first", print)
    first.save(tmp_path / "codes")
    more = replace(
        RECIPE, codes_of=str(tmp_path / "codes"), model=replace(SMALL, decoder_ch=wider), steps=48
    )
    (tmp_path / "more").mkdir()
    second = run(more, batches(more), tmp_path / "more", print)
    second.save(tmp_path / "decoder", half=True)
    codes_BL = first.encode(pixels_B3HW)
    assert torch.equal(second.encode(pixels_B3HW), codes_BL)
    assert torch.equal(second.net.quantize.entries(), first.net.quantize.entries())
    assert second.net.decoder.conv_in.out_channels == (wider or 32)
    assert torch.equal(ImageTokenizer.load(tmp_path / "decoder").encode(pixels_B3HW), codes_BL)
    before, after = lines(tmp_path / "first")[-1], lines(tmp_path / "more")[-1]
    assert after["psnr"] > before["psnr"]
    assert after["used"] > 0
    with pytest.raises(UserError, match="its l2_norm is False, the recipe's True"):
        ImageTokenizerJob(replace(more, model=replace(SMALL, l2_norm=True)), batches(more), print)


@pytest.mark.parametrize("recipe", [RECIPE, ADVERSARIAL], ids=["plain", "adversarial"])
def test_it_learns_and_a_kill_changes_nothing(recipe: ImageTokenizerRecipe, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    said: list[str] = []
    wanted = run(recipe, batches(recipe), whole, said.append)
    assert said == []
    with pytest.raises(KeyboardInterrupt):
        run(recipe, Killed(pictures(recipe.model.size), ["square"] * 20, recipe), killed, print)
    stopped = recipe.steps * 2 // 3
    assert [line["step"] for line in lines(killed)] == list(range(1, stopped + 1))
    got = run(recipe, batches(recipe), killed, said.append)
    saved = stopped // recipe.save_every * recipe.save_every
    assert said == [f"resumed at step {saved}"]
    assert lines(killed) == lines(whole)
    weights = wanted.net.state_dict()
    assert all(torch.equal(got.net.state_dict()[name], weights[name]) for name in weights)
    losses = [line["loss"] for line in lines(whole)]
    if recipe is RECIPE:
        assert losses[0] > 0.6
        assert max(losses[-3:]) < 0.4
        assert lines(whole)[-1]["psnr"] > lines(whole)[0]["psnr"] + 3
        with Image.open(whole / "sample-00000024.png") as sample:
            assert sample.width >= 8 * 16
            assert sample.height >= 2 * 16
    else:
        assert ["judge" in line for line in lines(whole)] == [False] * 2 + [True] * 6


def test_a_run_out_of_time_saves_its_state_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, box = tmp_path / "whole", tmp_path / "box"
    whole.mkdir()
    box.mkdir()
    recipe = replace(RECIPE, steps=3)
    wanted = run(recipe, batches(recipe), whole, print)
    said: list[str] = []
    for _ in range(2):  # a step is made, however late it is
        assert run(recipe, batches(recipe), box, said.append, deadline=0.0) is None
    got = run(recipe, batches(recipe), box, said.append, deadline=0.0)
    assert said == [
        "stopped after step 1 of 3; go on with --resume latest",
        "resumed at step 1",
        "stopped after step 2 of 3; go on with --resume latest",
        "resumed at step 2",
    ]
    assert got is not None
    assert wanted is not None
    assert lines(box) == lines(whole)
    weights = wanted.net.state_dict()
    assert all(torch.equal(got.net.state_dict()[name], weights[name]) for name in weights)


def test_in_bf16_the_network_learns_and_the_codes_are_still_exact(tmp_path: Path) -> None:
    recipe = replace(RECIPE, precision="bf16")
    run(recipe, batches(recipe), tmp_path, print)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert losses[0] > 0.6
    assert max(losses[-3:]) < 0.45
    net = VQGAN(SMALL)
    torch.nn.init.normal_(net.quantize.embedding.weight)
    z_BEHW = torch.randn(4, 8, 16, 16)
    wanted = net.quantize.nearest(z_BEHW)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.quantize.nearest(z_BEHW), wanted)
        assert net.encoder(torch.zeros(1, 3, 16, 16)).dtype == torch.bfloat16
        assert net(torch.zeros(1, 3, 16, 16)).codes_BL.shape == (1, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_it_learns_the_same(precision: Literal["fp32", "bf16"], tmp_path: Path) -> None:
    recipe = replace(ADVERSARIAL, precision=precision)
    folders = {name: tmp_path / name for name in ("cpu", "cuda")}
    losses: dict[str, list[float]] = {}
    for name, folder in folders.items():
        folder.mkdir()
        pixels = pictures(recipe.model.size)
        found = ImageBatches(pixels, ["square"] * 20, recipe, torch.device(name))
        for _ in range(2):  # the second finds the state of the first
            assert run(recipe, found, folder, print) is not None
        losses[name] = [line["loss"] for line in lines(folder)]
    # rounding soon leads to other codes, but not to another quality
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=0.02)
    assert losses["cuda"][-1] == pytest.approx(losses["cpu"][-1], rel=0.3)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    recipe = replace(RECIPE, steps=2)
    first = run(recipe, batches(recipe), tmp_path, print).net.state_dict()
    log = read(tmp_path)
    again = run(recipe, batches(recipe), tmp_path, print).net.state_dict()
    assert read(tmp_path) == log
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_entries_are_moving_averages_of_what_chose_them() -> None:
    net = VQGAN(SMALL)
    torch.nn.init.normal_(net.quantize.embedding.weight)
    codebook = Codebook(net, CodebookConfig(ema=0.9, dead=0.0), seed=0)
    before_KE = net.quantize.embedding.weight.detach().clone()
    count_K, sum_KE = np.zeros(16), np.zeros((16, 8))
    rng = np.random.default_rng(0)
    for step in (1, 2, 3):
        z_BHWE = rng.normal(size=(2, 3, 3, 8)).astype(np.float32)
        codes_BHW = rng.integers(0, 12, (2, 3, 3))  # nobody chooses the last four
        z_BEHW = torch.from_numpy(z_BHWE).permute(0, 3, 1, 2)
        codes_BL = torch.from_numpy(codes_BHW).flatten(1)
        assert codebook.update(z_BEHW, codes_BL, step) == 0
        for k in range(16):
            chose_NE = z_BHWE[codes_BHW == k]
            count_K[k] = 0.9 * count_K[k] + 0.1 * len(chose_NE)
            sum_KE[k] = 0.9 * sum_KE[k] + 0.1 * chose_NE.sum(0)
    weight_KE = net.quantize.embedding.weight.detach().numpy()
    np.testing.assert_allclose(weight_KE[:12], sum_KE[:12] / count_K[:12, None], atol=1e-5)
    np.testing.assert_array_equal(weight_KE[12:], before_KE[12:])
    assert not net.quantize.embedding.weight.requires_grad


def rows_of(weight_KE: torch.Tensor, z_BEHW: torch.Tensor) -> torch.Tensor:
    """Which entries are exactly one of the encoder's outputs: bool [K]."""
    z_NE = z_BEHW.permute(0, 2, 3, 1).reshape(-1, z_BEHW.shape[1])
    return (weight_KE[:, None] == z_NE).all(-1).any(-1)


def test_every_entry_starts_at_an_output_of_the_encoder() -> None:
    net = VQGAN(SMALL)
    codebook = Codebook(net, CodebookConfig(), seed=0)
    z_BEHW = torch.randn(2, 8, 4, 4)
    assert codebook.update(z_BEHW, torch.zeros(2, 16, dtype=torch.long), 0) == 16
    assert rows_of(net.quantize.embedding.weight, z_BEHW).all()
    assert len(net.quantize.embedding.weight.unique(dim=0)) > 8


@pytest.mark.parametrize("ema", [0.9, 0.99, 0.999, None])
def test_dead_entries_are_revived_but_not_at_once(ema: float | None) -> None:
    net = VQGAN(SMALL)
    codebook = Codebook(net, CodebookConfig(ema=ema), seed=0)
    z_BEHW, codes_BL = torch.randn(2, 8, 4, 4), torch.zeros(2, 16, dtype=torch.long)
    codes_BL[1] = 1  # all choose the first two entries
    codebook.update(z_BEHW, codes_BL, 0)
    first = next(n for n in range(1, 4000) if codebook.update(z_BEHW + n, codes_BL, n))
    assert first > 1 / (1 - (ema or 0.99))  # one time constant, to be chosen in
    revived = rows_of(net.quantize.embedding.weight, z_BEHW + first)
    assert revived.tolist() == [False, False] + [True] * 14


def test_pictures_of_a_step_do_not_depend_on_the_steps_before() -> None:
    first = batches(RECIPE)
    asked_in_order = [first.at(step) for step in range(3)]
    assert torch.equal(batches(RECIPE).at(2), asked_in_order[2])
    assert not torch.equal(asked_in_order[1], asked_in_order[2])
    other = replace(RECIPE, seed=1)
    assert not torch.equal(batches(other).at(2), asked_in_order[2])
    assert asked_in_order[0].shape == (8, 3, 16, 16)
    assert -1 <= asked_in_order[0].min() < -0.2
    assert 0.2 < asked_in_order[0].max() <= 1


def test_shares_decide_how_often_a_kind_is_drawn() -> None:
    pixels = np.zeros((10, 3, 2, 2), np.uint8)
    pixels[8:] = 255  # two of ten are white, and are drawn three times in four
    kinds = ["black"] * 8 + ["white"] * 2
    recipe = replace(RECIPE, batch=50, shares={"black": 1.0, "white": 3.0})
    drawn = torch.cat([ImageBatches(pixels, kinds, recipe).at(step) for step in range(20)])
    assert (drawn > 0).float().mean().item() == pytest.approx(0.75, abs=0.05)
    as_found = ImageBatches(pixels, kinds, replace(recipe, shares={})).share
    assert as_found.tolist() == [0.8, 0.2]


def test_pictures_that_are_not_there_are_said() -> None:
    with pytest.raises(UserError, match="no images to train on"):
        ImageBatches(pictures(16)[:0], [], RECIPE)
    with pytest.raises(UserError, match="no image of kind 'photo'"):
        ImageBatches(pictures(16), ["square"] * 20, replace(RECIPE, shares={"photo": 1.0}))


def test_a_perceptual_term_without_its_network_is_said_aloud() -> None:
    said: list[str] = []
    terms = Terms(replace(RECIPE, loss=LossConfig(perceptual=1.0)), said.append)
    assert said == ["perceptual term is off: loss.features names no MobileNetV2 weights"]
    x, y = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert terms.seen(x, y, 0).item() == 1.0
    Terms(RECIPE, said.append)  # not asked for: nothing to say
    assert len(said) == 1


def test_the_terms_add_up_to_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(FeatureNet().state_dict(), tmp_path / "net.safetensors")
    path = str(tmp_path / "net.safetensors")
    loss = LossConfig(l1=0.5, l2=2.0, perceptual=3.0, perceptual_start=5, features=path)
    terms = Terms(replace(RECIPE, loss=loss), print)
    assert terms.features is not None
    x, y = torch.rand(2, 2, 3, 32, 32).unbind()
    y.requires_grad_()
    near = perceptual_distance(terms.features, x, y).mean()
    rebuilt = 0.5 * (x - y).abs().mean() + 2 * (x - y).square().mean()
    torch.testing.assert_close(terms.seen(x, y, 4), rebuilt)
    torch.testing.assert_close(terms.seen(x, y, 5), rebuilt + 3 * near)
    (gradient,) = torch.autograd.grad(near, y)
    assert gradient.abs().max() > 0
    z, entries = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])
    assert terms.codes(z, entries).item() == pytest.approx(1.25 * 2.5)


def test_psnr_is_of_eight_bit_pixels() -> None:
    got = psnr(torch.tensor([255.0**2, 1.0, 0.0])).tolist()
    assert got == pytest.approx([0.0, 48.13, 78.13], abs=0.01)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"sample_every": 0}, "sample_every must be at least 1"),
        ({"loss": LossConfig(adversarial=1.0)}, "from 24 pixels; got size 16"),
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        replace(RECIPE, **change)
    with pytest.raises(UserError, match="ema must be between 0 and 1"):
        CodebookConfig(ema=1.0)
