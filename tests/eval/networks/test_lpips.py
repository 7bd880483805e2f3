"""eval/networks/lpips.py and scripts/convert_lpips.py, with made-up weights."""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from eval.networks.lpips import STAGES, Lpips
from tokenizer.errors import UserError

SCRIPT = Path(__file__).parents[3] / "scripts" / "convert_lpips.py"

# Of torchmetrics' own network (torchvision's VGG16 inside) under `made_up` weights: `waves` against
# themselves turned upside down.
REFERENCE = [1.1126349, 0.9627837]


def made_up(shape: tuple[int, ...], number: int, positive: bool = False) -> Tensor:
    """Weights by a formula, of a size that lets something come out at the end."""
    size = torch.Size(shape).numel()
    wave = torch.sin(torch.arange(size, dtype=torch.float64) * 12.9898 + number)
    noise = (wave * 43758.5453 % 1 * 2 - 1).view(shape)
    if positive:
        return noise.abs().float()
    return (noise * (6 * shape[0] / size) ** 0.5 if len(shape) > 1 else 0.1 * noise).float()


def published() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Under the names of torchvision and torchmetrics."""
    vgg: dict[str, Tensor] = {}
    place, inside = 0, 3
    for widths in STAGES:
        for width in widths:
            vgg[f"features.{place}.weight"] = made_up((width, inside, 3, 3), place)
            vgg[f"features.{place}.bias"] = made_up((width,), place + 100)
            place, inside = place + 2, width
        place += 1  # the pooling
    vgg["classifier.0.weight"] = torch.zeros(2, 2)
    channels = {
        f"lin{stage}.model.1.weight": made_up((1, widths[-1], 1, 1), stage + 200, positive=True)
        for stage, widths in enumerate(STAGES)
    }
    return vgg, channels


def waves() -> Tensor:
    """Two smooth pictures, 64 high and 48 wide."""
    y_HW, x_HW = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    rows = [
        [torch.sin(x_HW * (0.1 + 0.05 * n) + c + y_HW * 0.07 * (n + 1)) for c in range(3)]
        for n in range(2)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def test_the_distance_is_that_of_lpips(tmp_path: Path) -> None:
    convert = runpy.run_path(str(SCRIPT))["convert"]
    save_file(convert(*published()), tmp_path / "lpips.safetensors")
    net = Lpips.load(tmp_path / "lpips.safetensors")
    one_B3HW = waves()
    found_B = net(one_B3HW, one_B3HW.flip(2))
    torch.testing.assert_close(found_B, torch.tensor(REFERENCE), rtol=1e-4, atol=1e-5)
    assert net(one_B3HW, one_B3HW).tolist() == [0, 0]
    torch.testing.assert_close(net(one_B3HW.flip(2), one_B3HW), found_B)


def test_other_weights_are_one_line(tmp_path: Path) -> None:
    save_file({"weigh.0": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=r"make it with scripts/convert_lpips\.py"):
            Lpips.load(tmp_path / name)
