"""Inception, the FID of folders and scripts/convert_inception.py, with made-up weights."""

import hashlib
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.metrics.fid import compare, inception_features, mobilenet_features
from eval.networks.distances import frechet
from eval.networks.inception import FidInception
from tokenizer.errors import UserError
from tokenizer.manifest import file_hash
from tokenizer.pixels import to_image
from tokenizer.vqgan.perceptual import FeatureNet

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_inception.py"

# Of pytorch-fid's own network (torchvision's Inception with its patches) under `made_up` weights:
# every 255th feature of `waves`.
REFERENCE = [
    [0.0345823, 0.0240943, 0, 1.469496, 0.0722727, 0.9138618, 0.0034737, 0.1422295, 0.2668054],
    [0.0366953, 0.0136621, 0, 1.6769282, 0.1033214, 0.9831212, 0.0058901, 0.1590876, 0.2685897],
]
LAYOUT = "b628bc492e0cd5a5ea154bb78c4637db2a10ffa3c528519b65fb723b9bb5a5ac"


def made_up(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights by a formula, of a size that lets something come out at the end."""
    weights: dict[str, Tensor] = {}
    for number, name in enumerate(sorted(shapes)):
        size = torch.Size(shapes[name]).numel()
        wave = torch.sin(torch.arange(size, dtype=torch.float64) * 12.9898 + number)
        noise = (wave * 43758.5453 % 1 * 2 - 1).view(shapes[name])
        if name.endswith("conv.weight"):
            weights[name] = noise * (6 * shapes[name][0] / size) ** 0.5
        elif name.endswith(("bn.bias", "running_mean")):
            weights[name] = 0.1 * noise
        else:
            weights[name] = 1 + 0.1 * noise
    return {name: tensor.float() for name, tensor in weights.items()}


def waves() -> Tensor:
    """Two smooth pictures, 64 high and 48 wide."""
    y_HW, x_HW = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    return torch.stack(
        [
            torch.stack(
                [
                    torch.sin(x_HW * (0.1 + 0.05 * number) + channel + y_HW * 0.07 * (number + 1))
                    for channel in range(3)
                ]
            )
            for number in range(2)
        ]
    )


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(one.shape) for name, one in FidInception().state_dict().items()}


@pytest.fixture(scope="module")
def weights_file(
    shapes: dict[str, tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(made_up(shapes), path)
    return path


def filled(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    for number in range(count):
        to_image(torch.rand(3, 9, 9, generator=draw) * 2 - 1).save(folder / f"{number}.png")
    return folder


def test_the_keys_are_those_of_pytorch_fid(shapes: dict[str, tuple[int, ...]]) -> None:
    lines = "\n".join(f"{name} {list(shapes[name])}" for name in sorted(shapes))
    assert hashlib.sha256(lines.encode()).hexdigest() == LAYOUT
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)


def test_the_features_are_those_of_pytorch_fid(weights_file: Path) -> None:
    net = FidInception.load(weights_file)
    net.train()  # there is no training mode to fall into
    found_BF = net(waves())
    assert found_BF.shape == (2, 2048)
    torch.testing.assert_close(found_BF[:, ::255], torch.tensor(REFERENCE), rtol=1e-4, atol=1e-5)
    assert not found_BF.requires_grad


def test_distances_of_folders(weights_file: Path, features_file: Path, tmp_path: Path) -> None:
    one, other = filled(tmp_path / "one", 4, seed=1), filled(tmp_path / "other", 3, seed=2)
    for features, width in (
        (inception_features(weights_file), 2048),
        (mobilenet_features(features_file), 1280),
    ):
        assert abs(compare(one, one, features, frechet).distance.value) < 1e-6
        found = compare(one, other, features, frechet, batch=2)
        assert (found.real_NF.shape, found.made_MF.shape) == ((4, width), (3, width))
        back = compare(other, one, features, frechet).distance.value
        assert found.distance.value == pytest.approx(back, rel=1e-4)
        assert found.distance.value > 1e-3
    net = FeatureNet.load(features_file)
    pixels_3HW = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pooled_BF = net.pooled(((pixels_3HW + 1) * 127.5).round().unsqueeze(0) / 127.5 - 1)
    found = compare(one, other, mobilenet_features(features_file), frechet)
    torch.testing.assert_close(found.real_NF[:1], pooled_BF, rtol=1e-4, atol=1e-4)


def test_load_is_strict(
    shapes: dict[str, tuple[int, ...]], weights_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "inception.safetensors"
    line = (
        r"s: no weights of FID's Inception there\. Make it there .* scripts/convert_inception\.py"
    )
    with pytest.raises(UserError, match=line):
        FidInception.load(path)
    path.write_bytes(weights_file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        FidInception.load(path)
    name = "Conv2d_2a_3x3.conv.weight"
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for wrong, line in (
        ({"fc.bias": torch.zeros(1008)}, "'fc.bias' is float32 1008, wanted not there"),
        ({name: torch.zeros(32, 3, 3, 3)}, f"'{name}' is float32 32 x 3 x 3 x 3, wanted float32 "),
        ({name: weights[name].half()}, f"'{name}' is float16 32 x 32 x 3 x 3, wanted float32 "),
    ):
        save_file({**weights, **wrong}, path)
        with pytest.raises(UserError, match=line):
            FidInception.load(path)
    del weights[name]
    save_file(weights, path)
    with pytest.raises(UserError, match=f"'{name}' is not there, wanted float32 32 x 32 x 3 x 3"):
        FidInception.load(path)


def test_the_script_keeps_names_and_values(weights_file: Path) -> None:
    convert = runpy.run_path(str(SCRIPT))["convert"]
    wanted = load_file(weights_file)
    published = {
        **wanted,
        "fc.weight": torch.zeros(1008, 2048),
        "fc.bias": torch.zeros(1008),
        "Mixed_7c.branch_pool.bn.num_batches_tracked": torch.tensor(0),
    }
    converted = convert(published)
    assert converted.keys() == wanted.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in wanted.items())


def test_the_script_takes_the_published_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, result = tmp_path / "other.pth", tmp_path / "result.safetensors"
    torch.save({"fc.bias": torch.zeros(2)}, source)
    for path, line in ((source, "its SHA-256 is"), (tmp_path / "none.pth", "no such file")):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path), str(result)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert str(caught.value.code).startswith(f"error: {path}: {line}")
        assert not result.exists()


def test_the_script_writes_what_the_network_loads(
    weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, result = tmp_path / "other.pth", tmp_path / "result.safetensors"
    torch.save({**load_file(weights_file), "fc.bias": torch.zeros(1008)}, source)
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.setitem(script["main"].__globals__, "SHA256", file_hash(source))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(source), str(result)])
    script["main"]()
    net = FidInception.load(result)
    torch.testing.assert_close(
        net(waves())[:, ::255], torch.tensor(REFERENCE), rtol=1e-4, atol=1e-5
    )
