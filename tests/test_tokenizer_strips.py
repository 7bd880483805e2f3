"""Wide maps in strips are what whole maps are, whatever their sizes; weights may change between."""

# Shapes: B = batch, C, O = channels in and out, E = code width, H, W = height and width, N = places

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from tokenizer import strips
from tokenizer.blocks import ResBlock, Upsample, norm
from tokenizer.vqgan import VQGAN, VQGANConfig
from tokenizer.winograd import Conv3, Space

Ways = Callable[[bool, int], None]
ROW = 4 * 32  # bytes of a place of 32 channels


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    """Choose between whole maps and strips of so many bytes."""

    def choose(in_strips: bool, size: int) -> None:
        monkeypatch.setattr(strips, "LEAST", 0 if in_strips else 2**60)
        monkeypatch.setattr(strips, "STRIP", size)

    return choose


@pytest.mark.parametrize(
    ("size", "ch_mult", "strip"),
    [
        (44, (1, 2), 8 * 44 * ROW),  # 44 rows by eight, 22 by eight: both end in lower strips
        (36, (2, 1), 1),  # the least strips there are, of four rows
        (27, (1,), 12 * 27 * ROW),  # odd, so tiles reach beyond the right and lower border
        (40, (1, 1, 1), 2**21),  # one strip each
    ],
)
@torch.no_grad()
def test_a_network_in_strips_is_the_whole_one(
    size: int, ch_mult: tuple[int, ...], strip: int, ways: Ways
) -> None:
    torch.manual_seed(0)
    config = VQGANConfig(
        size=size, codes=64, embed_dim=8, z_channels=32, ch=32, ch_mult=ch_mult,
        num_res_blocks=1, attn_resolutions=(22,),
    )  # fmt: skip
    net = VQGAN(config).eval()
    pixels_B3HW = torch.rand(2, 3, size, size) * 2 - 1
    entries_BEHW = torch.randn(2, 8, config.grid, config.grid)
    found = list[tuple[torch.Tensor, ...]]()
    for in_strips in (False, True):
        ways(in_strips, strip)
        codes_BL = net.encode(pixels_B3HW)
        found.append((net.features(pixels_B3HW), net.paint(entries_BEHW), codes_BL))
    for whole, stripped in zip(*found, strict=True):
        torch.testing.assert_close(stripped, whole, atol=1e-5, rtol=1e-5)
    assert not torch.equal(found[0][0], found[1][0])  # two ways indeed


@torch.no_grad()
def test_minimal_filters_lose_hardly_a_digit() -> None:
    torch.manual_seed(0)
    conv = Conv3(128, 64)
    strip_HWC = torch.randn(10, 33, 128)
    packed_24CO = conv.packed()
    assert packed_24CO is not None
    space = Space(16, 33, 128, 64)  # room for more rows than come
    found_HWO = space.convolve(strip_HWC, packed_24CO)
    x_1CHW = strip_HWC.permute(2, 0, 1).unsqueeze(0)
    exact_1OHW = F.conv2d(x_1CHW.double(), conv.weight.double(), padding=(0, 1))
    assert found_HWO.shape == (8, 33, 64)
    far_OHW = found_HWO.permute(2, 0, 1) - exact_1OHW[0]
    assert far_OHW.square().mean().sqrt() < 2e-6 * exact_1OHW.std()


@torch.no_grad()
def test_packed_weights_follow_the_weights(ways: Ways) -> None:
    torch.manual_seed(0)
    block = ResBlock(32, 32, dropout=0.5).eval()
    x_BCHW = torch.randn(1, 32, 9, 9)
    for _ in range(2):
        ways(True, 1)
        in_strips = block(x_BCHW)
        ways(False, 1)
        torch.testing.assert_close(in_strips, block(x_BCHW), atol=1e-5, rtol=1e-5)
        block.conv1.weight.mul_(-3)
    held = block.conv1._packed
    ways(True, 1)
    block(x_BCHW)
    block(x_BCHW)
    assert held is not None
    assert block.conv1._packed is not held
    assert set(block.state_dict()) == set(ResBlock(32, 32, 0.0).state_dict())


@torch.no_grad()
def test_what_comes_in_is_left_as_it_was(ways: Ways) -> None:
    ways(True, 1)
    for block in (ResBlock(32, 32, 0.0), Upsample(32)):
        x_BCHW = torch.randn(2, 32, 6, 10).contiguous(memory_format=torch.channels_last)
        before = x_BCHW.clone()
        block(x_BCHW)
        assert torch.equal(x_BCHW, before)


def test_with_a_gradient_maps_are_whole(ways: Ways) -> None:
    ways(True, 1)
    x_BCHW = torch.randn(1, 32, 8, 8)
    assert not strips.wanted(x_BCHW)
    block = ResBlock(32, 32, 0.0)
    block(x_BCHW).sum().backward()
    assert block.norm1.weight.grad is not None
    with torch.no_grad():
        assert strips.wanted(x_BCHW)
        assert not strips.wanted(x_BCHW.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not strips.wanted(x_BCHW)


@torch.no_grad()
def test_a_norm_of_large_numbers_keeps_its_digits(ways: Ways) -> None:
    ways(True, 7 * 8 * 32)  # sums of seven places each
    torch.manual_seed(0)
    group = norm(32)
    torch.nn.init.normal_(group.weight)
    torch.nn.init.normal_(group.bias)
    x_HWC = torch.randn(11, 13, 32) + 1000 * torch.randn(32)
    turn = strips.turn_of(group, x_HWC)
    exact_CHW = group.double()(x_HWC.permute(2, 0, 1).unsqueeze(0).double())[0]
    found_HWC = x_HWC.double() * turn.scale_C.double() + turn.shift_C.double()
    far_HWC = (found_HWC.permute(2, 0, 1) - exact_CHW).abs()
    assert far_HWC.max() < 1e-3  # a float32 of 1000 is itself up to 3e-5 off; scales are about 1
