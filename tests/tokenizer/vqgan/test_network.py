"""The VQGAN computes what taming-transformers computes, and loads its weights strictly."""

# Shapes: B = batch, E = code width, K = entries, H, W = feature height and width, L = codes

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from scripts import make_taming_fixture as oracle
from tokenizer import config as settings
from tokenizer.errors import UserError
from tokenizer.vqgan.network import VQGAN, VQGANConfig, from_taming

FIXTURE = Path(__file__).parents[2] / "assets" / "taming.safetensors"
SMALL = VQGANConfig(
    size=16, codes=16, embed_dim=8, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1,
    attn_resolutions=(),
)  # fmt: skip


def assert_agrees(net: VQGAN, pixels_B3HW: Tensor, wanted: dict[str, Tensor]) -> float:
    """Features, codes and pixels are the wanted ones; returns the share of clear codes."""
    z_BEHW = net.features(pixels_B3HW)
    torch.testing.assert_close(z_BEHW, wanted["features"], atol=1e-4, rtol=1e-4)
    z_BLE = wanted["features"].flatten(2).mT.double()
    entries_KE = net.quantize.embedding.weight.double()
    near_BL2 = torch.cdist(z_BLE, entries_KE[None]).square().topk(2, largest=False).values
    clear_BL = near_BL2[..., 1] - near_BL2[..., 0] > 1e-4 * near_BL2[..., 1]
    assert torch.equal(net.encode(pixels_B3HW)[clear_BL], wanted["codes"][clear_BL])
    torch.testing.assert_close(net.decode(wanted["codes"]), wanted["pixels"], atol=1e-4, rtol=0)
    return clear_BL.float().mean().item()


def read_fixture() -> tuple[VQGANConfig, dict[str, Tensor], dict[str, Tensor]]:
    """Its configuration, taming's state dict, and all else."""
    with safe_open(FIXTURE, framework="pt") as file:
        config = settings.build(VQGANConfig, json.loads(file.metadata()["config"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {k.removeprefix("state."): v.float() for k, v in tensors.items() if "state." in k}
    return config, state, {k: v for k, v in tensors.items() if "state." not in k}


@torch.no_grad()
def test_what_taming_computed_is_computed_again() -> None:
    config, state, wanted = read_fixture()
    assert config == oracle.CONFIG
    net = from_taming(state, config).eval()
    clear = assert_agrees(net, oracle.to_pixels(wanted["pictures"]), wanted)
    assert clear > 0.99
    assert len(wanted["codes"].unique()) > 40  # of 64: the pictures say something


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ch_mult": (1, 1, 2), "attn_resolutions": (8, 32), "codes": 300},
        {"size": 48, "num_res_blocks": 2, "attn_resolutions": (24,), "z_channels": 8},
        {"ch": 64, "ch_mult": (1,), "attn_resolutions": (), "embed_dim": 4},
        {"size": 64, "ch_mult": (1, 2, 2, 1), "attn_resolutions": (16, 8), "embed_dim": 64},
    ],
)
@torch.no_grad()
def test_taming_computes_the_same_live(change: dict[str, object]) -> None:
    pytest.importorskip("taming")
    config = replace(oracle.CONFIG, **change)
    pixels_B3HW = oracle.to_pixels(oracle.pictures(3, config.size, seed=2))
    theirs = oracle.taming_network(config)
    oracle.randomise(theirs, pixels_B3HW, seed=3)
    wanted = oracle.run(theirs, pixels_B3HW)
    net = from_taming(theirs.state_dict(), config).eval()
    clear = assert_agrees(net, pixels_B3HW, wanted)
    apart = (net.decode(wanted["codes"]) - wanted["pixels"]).abs().max().item()
    same = (net.encode(pixels_B3HW) == wanted["codes"]).float().mean().item()
    print(
        f"{change}: {wanted['codes'].numel()} codes, {len(wanted['codes'].unique())} different, "
        f"{clear:.2%} clear, {same:.2%} the same, pixels at most {apart:.1e} apart"
    )
    assert clear > 0.99


@pytest.mark.parametrize(
    "config",
    [
        VQGANConfig(),  # the paper's sizes
        VQGANConfig(codes=16384, ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,)),  # taming's f16
        VQGANConfig(embed_dim=4, z_channels=4, ch_mult=(1, 2, 2, 4)),  # taming's f8
    ],
)
def test_large_networks_have_the_names_and_shapes_of_taming(config: VQGANConfig) -> None:
    pytest.importorskip("taming")
    with torch.device("meta"):
        theirs = oracle.taming_network(config).state_dict()
        ours = VQGAN(config).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    print(f"{len(ours)} tensors, {sum(v.numel() for v in ours.values()):,} weights")


def test_the_defaults_are_the_sizes_of_the_paper() -> None:
    config = VQGANConfig()
    assert (config.size, config.factor, config.grid, config.codes) == (256, 8, 32, 8192)
    with torch.device("meta"):
        state = VQGAN(config).state_dict()
    assert state["quantize.embedding.weight"].shape == (8192, 256)
    assert state["decoder.up.2.block.0.nin_shortcut.weight"].shape == (256, 512, 1, 1)
    assert state["encoder.down.3.attn.1.proj_out.weight"].shape == (512, 512, 1, 1)
    assert state["decoder.up.3.attn.2.q.weight"].shape == (512, 512, 1, 1)


def test_the_loss_of_taming_is_dropped() -> None:
    state = VQGAN(SMALL).state_dict()
    extra = {"loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    loaded = from_taming(state | extra, SMALL).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("encoder.mid.attn_1.q.weight", None),
        ("quantize.embedding.weight", torch.zeros(17, 8)),
        ("quantize.proj.weight", torch.zeros(16, 8, 1, 1)),  # taming's Gumbel quantiser
    ],
)
def test_another_state_dict_is_refused_by_name(name: str, tensor: Tensor | None) -> None:
    state = VQGAN(SMALL).state_dict() | {name: tensor}
    if tensor is None:
        del state[name]
    with pytest.raises(UserError, match=f"1 keys differ, first '{name}'"):
        from_taming(state, SMALL)


@pytest.mark.parametrize(("patch", "ch_mult"), [(2, (1, 1)), (4, (1,))])
def test_patches_go_in_and_come_out_at_full_size(patch: int, ch_mult: tuple[int, ...]) -> None:
    config = replace(SMALL, patch=patch, ch_mult=ch_mult)
    assert (config.factor, config.grid) == (4, 4)
    net = VQGAN(config)
    out = net(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert out.codes_BL.shape == (2, 16)
    assert out.z_BEHW.shape == out.entries_BEHW.shape == (2, 8, 4, 4)
    assert out.pixels_B3HW.shape == net.decode(out.codes_BL).shape == (2, 3, 16, 16)


@torch.no_grad()
def test_a_code_of_patches_depends_on_its_place_in_the_picture() -> None:
    """Row by row: painting another code at place 1 of row 0 changes the top right, not the rest."""
    net = VQGAN(replace(SMALL, size=64, patch=8, ch_mult=(1,)))
    net.decoder.mid = torch.nn.Identity()  # attention lets every place see every other
    net.decoder.norm_out = torch.nn.Identity()  # and so do the norms' means
    for block in net.decoder.up[0].block:
        block.norm1 = block.norm2 = torch.nn.Identity()
    torch.nn.init.normal_(net.quantize.embedding.weight)
    codes_BL = torch.zeros(1, 64, dtype=torch.long)
    before_B3HW = net.decode(codes_BL)
    codes_BL[0, 7] = 5
    changed_HW = (net.decode(codes_BL) != before_B3HW).any(1)[0]
    assert changed_HW[:8, 56:].all()
    assert not changed_HW[:, :8].any()
    assert not changed_HW[56:].any()


@torch.no_grad()
def test_a_local_code_tells_of_its_own_cell_and_its_border_alone() -> None:
    torch.manual_seed(0)
    config = replace(SMALL, size=32, patch=2, ch_mult=(1, 1), attn_resolutions=(8, 16))
    before_B3HW = torch.rand(1, 3, 32, 32) * 2 - 1
    after_B3HW = before_B3HW.clone()
    after_B3HW[:, :, 12:16, 20:24] *= -1  # the cell of code (3, 5)
    moved: dict[bool, list[list[int]]] = {}
    for local in (True, False):
        net = VQGAN(replace(config, local=local))
        apart_HW = (net.features(after_B3HW) - net.features(before_B3HW)).abs().sum(1)[0]
        moved[local] = (apart_HW > 1e-7).nonzero().tolist()
    # Downsampling reaches one position beyond the cell, to the right and down.
    assert moved[True] == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert len(moved[False]) == 64


@torch.no_grad()
def test_with_l2_norm_only_directions_count() -> None:
    torch.manual_seed(0)
    net = VQGAN(replace(SMALL, l2_norm=True))
    z_BEHW = torch.randn(2, 8, 8, 8)
    codes_BL = net.quantize.nearest(net.quantize.project(z_BEHW))
    torch.testing.assert_close(net.quantize.entries().norm(dim=1), torch.ones(16))
    painted = net.decode(codes_BL)
    net.quantize.embedding.weight.mul_(torch.rand(16, 1) * 10 + 0.1)
    assert torch.equal(net.quantize.nearest(net.quantize.project(7.3 * z_BEHW)), codes_BL)
    torch.testing.assert_close(net.decode(codes_BL), painted)
    cosine_BKL = torch.einsum(
        "be...,ke->bk...", z_BEHW.flatten(2), net.quantize.embedding.weight
    ) / net.quantize.embedding.weight.norm(dim=1).view(-1, 1)
    assert torch.equal(cosine_BKL.argmax(1), codes_BL)
    net.quantize.l2_norm = False
    assert not torch.equal(net.quantize.nearest(z_BEHW), codes_BL)


@pytest.mark.parametrize("l2_norm", [False, True])
def test_the_gradient_passes_straight_through_the_choice(l2_norm: bool) -> None:
    torch.manual_seed(0)
    net = VQGAN(replace(SMALL, l2_norm=l2_norm))
    out = net(torch.rand(1, 3, 16, 16) * 2 - 1)
    out.z_BEHW.retain_grad()
    out.pixels_B3HW.square().mean().backward()
    assert net.encoder.conv_in.weight.grad is not None
    assert net.encoder.conv_in.weight.grad.abs().max() > 0
    assert net.quantize.embedding.weight.grad is None  # entries learn from their own term
    # Two ways: the gradient at the encoder's output is the one the decoder asks of its input.
    entries_BEHW = out.entries_BEHW.detach().requires_grad_()
    net.paint(entries_BEHW).square().mean().backward()
    torch.testing.assert_close(out.z_BEHW.grad, entries_BEHW.grad)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"codes": 0}, "codes must be at least 1, got 0"),
        ({"ch": 48}, "ch must be a multiple of 32"),
        ({"ch_mult": ()}, "ch_mult a list"),
        ({"size": 17}, "size 17 is not a multiple of 2"),
        ({"size": 20, "patch": 4}, "size 20 is not a multiple of 8"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        settings.build(VQGANConfig, asdict(SMALL) | change)
