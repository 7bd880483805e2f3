"""tokenizer/vqgan/perceptual.py and scripts/convert_mobilenet.py, with small random weights."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenizer.errors import UserError
from tokenizer.vqgan.perceptual import FeatureNet, perceptual_distance

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_mobilenet.py"


@pytest.fixture(scope="module")
def net(features_file: Path) -> FeatureNet:
    return FeatureNet.load(features_file)


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


@pytest.mark.parametrize("side", [32, 64, 96])
def test_shapes(net: FeatureNet, side: int) -> None:
    pixels_B3HW = pictures(2, side)
    maps = net(pixels_B3HW)
    channels = (16, 24, 32, 96, 320)
    assert [tuple(map_BCHW.shape) for map_BCHW in maps] == [
        (2, count, side // stride, side // stride)
        for count, stride in zip(channels, (2, 4, 8, 16, 32), strict=True)
    ]
    assert net.pooled(pixels_B3HW).shape == (2, 1280)


def test_a_picture_does_not_depend_on_its_batch(net: FeatureNet) -> None:
    pixels_B3HW = pictures(2, 32)
    net.train()  # there is no training mode to fall into
    together_BC = net.pooled(pixels_B3HW)
    alone_BC = torch.cat([net.pooled(pixels_B3HW[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together_BC, alone_BC, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together_BC[0], together_BC[1])


def test_the_network_is_frozen_and_the_gradient_flows_to_the_picture(net: FeatureNet) -> None:
    assert not any(parameter.requires_grad for parameter in net.parameters())
    x_B3HW = pictures(2, 64).requires_grad_()
    perceptual_distance(net, x_B3HW, pictures(2, 64, seed=1)).sum().backward()
    assert x_B3HW.grad is not None
    assert torch.isfinite(x_B3HW.grad).all()
    assert (x_B3HW.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_distance(net: FeatureNet) -> None:
    x_B3HW, noise_B3HW = pictures(2, 64), pictures(2, 64, seed=1)
    assert perceptual_distance(net, x_B3HW, x_B3HW).tolist() == [0, 0]
    near_B = perceptual_distance(net, x_B3HW, x_B3HW + 0.05 * noise_B3HW)
    far_B = perceptual_distance(net, x_B3HW, noise_B3HW)
    assert near_B.shape == (2,)
    assert (near_B > 0).all()
    assert (far_B > near_B).all()
    assert (far_B <= 4).all()
    torch.testing.assert_close(far_B, perceptual_distance(net, noise_B3HW, x_B3HW))
    flat_B3HW = torch.zeros(1, 3, 64, 64).requires_grad_()
    perceptual_distance(net, flat_B3HW, flat_B3HW.detach()).sum().backward()
    assert flat_B3HW.grad is not None
    assert torch.isfinite(flat_B3HW.grad).all()


def test_load_is_strict(features_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match="no MobileNetV2 weights there"):
        FeatureNet.load(path)
    path.write_bytes(features_file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        FeatureNet.load(path)
    good = load_file(features_file)
    bias = good["blocks.0.0.bias"]
    for change, reason in (
        ({"blocks.0.0.bias": None}, r"'blocks\.0\.0\.bias' is not there, wanted 32\."),
        ({"blocks.0.0.bias": bias[:5]}, r"'blocks\.0\.0\.bias' is 5, wanted 32\."),
        ({"classifier.bias": bias.clone()}, r"'classifier\.bias' is 32, wanted not there\."),
    ):
        changed = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
        save_file(changed, path)
        with pytest.raises(UserError, match=reason) as error:
            FeatureNet.load(path)
        assert "\n" not in str(error.value)


def test_half_weights_load_as_float32(features_file: Path, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in load_file(features_file).items()}
    save_file(half, tmp_path / "half.safetensors")
    net = FeatureNet.load(tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def as_torchvision(net: FeatureNet) -> dict[str, Tensor]:
    """A checkpoint with torchvision's names, random batch norms and a classifier."""
    weights: dict[str, Tensor] = {"classifier.1.weight": torch.zeros(10, 1280)}
    for name, kernel in net.state_dict().items():
        _, block, place, kind = name.split(".")
        if kind != "weight":
            continue
        last = sum(other.startswith(f"blocks.{block}.") for other in net.state_dict()) // 2 - 1
        if block in ("0", "18"):
            parent, number = f"features.{block}", 0
        elif int(place) < last:
            parent, number = f"features.{block}.conv.{place}", 0
        else:
            parent, number = f"features.{block}.conv", int(place)
        weights[f"{parent}.{number}.weight"] = kernel
        channels = len(kernel)
        norm = f"{parent}.{number + 1}"
        weights[f"{norm}.weight"] = torch.rand(channels) + 0.5
        weights[f"{norm}.bias"] = torch.randn(channels)
        weights[f"{norm}.running_mean"] = torch.randn(channels)
        weights[f"{norm}.running_var"] = torch.rand(channels) + 0.1
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return weights


def test_convert_folds_batch_norms(net: FeatureNet, tmp_path: Path) -> None:
    torch.manual_seed(1)
    weights = as_torchvision(net)
    folded = runpy.run_path(str(SCRIPT))["convert"](weights)
    save_file(folded, tmp_path / "folded.safetensors")
    loaded = FeatureNet.load(tmp_path / "folded.safetensors")  # strict: all names and shapes

    narrow = loaded.get_submodule("blocks.2.2")
    plain = nn.Conv2d(96, 24, 1, bias=False)
    norm = nn.BatchNorm2d(24).eval()
    plain.load_state_dict({"weight": weights["features.2.conv.2.weight"]})
    start = "features.2.conv.3."
    norm.load_state_dict(
        {name.removeprefix(start): value for name, value in weights.items() if start in name}
    )
    x_BCHW = torch.randn(2, 96, 4, 4)
    torch.testing.assert_close(narrow(x_BCHW), norm(plain(x_BCHW)), rtol=1e-4, atol=1e-4)


def test_convert_refuses_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "other.pth"
    source.write_bytes(b"not the file that was pinned")
    result = tmp_path / "weights.safetensors"
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(source), str(result)])
    with pytest.raises(UserError, match="its SHA-256 is"):
        runpy.run_path(str(SCRIPT))["main"]()
    assert not result.exists()
