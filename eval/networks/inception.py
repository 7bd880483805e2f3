"""Inception network whose features define the Frechet Inception Distance.

Data path: a folder of images -> `folders.read_folder` -> this network -> [N, 2048] -> `distances`.
Not torchvision's Inception: these are the weights that TensorFlow published in 2015, in the form
and key layout of pytorch-fid (Seitzer 2020), with which published scores are computed. The weights
come from one safetensors file that scripts/convert_inception.py writes.
"""

# Shapes: B = batch, 3 = red, green, blue; H = height, W = width, C = channels, F = 2048 features

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.errors import UserError

SIDE = 299
FEATURES = 2048
NORM_EPS = 1e-3


class Norm(nn.Module):
    """Batch norm in its state after training, without a training mode."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, input_BCHW: Tensor) -> Tensor:
        return F.batch_norm(
            input_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=NORM_EPS
        )


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU.

    `kernel` is a side or (height, width); by default the feature map keeps its size.
    """

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        *,
        padded: bool = True,
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else 0
        self.conv = nn.Conv2d(inside, outside, sides, stride, padding, bias=False)
        self.bn = Norm(outside)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(input_BCHW)), inplace=True)


def _chain(hidden_BCHW: Tensor, *steps: nn.Module) -> Tensor:
    for step in steps:
        hidden_BCHW = step(hidden_BCHW)
    return hidden_BCHW


def _average(input_BCHW: Tensor) -> Tensor:
    """Return 3 x 3 averages without the padding, as TensorFlow's do and torchvision's do not."""
    return F.avg_pool2d(input_BCHW, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    """Block of four branches at 35 x 35."""

    def __init__(self, inside: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inside, 64, 1)
        self.branch5x5_1 = Convolution(inside, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(inside, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(inside, pooled, 1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        branches = (
            self.branch1x1(input_BCHW),
            _chain(input_BCHW, self.branch5x5_1, self.branch5x5_2),
            _chain(input_BCHW, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            self.branch_pool(_average(input_BCHW)),
        )
        return torch.cat(branches, 1)


class InceptionB(nn.Module):
    """Block from 35 x 35 to 17 x 17."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inside, 384, 3, 2, padded=False)
        self.branch3x3dbl_1 = Convolution(inside, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, 2, padded=False)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        branches = (
            self.branch3x3(input_BCHW),
            _chain(input_BCHW, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            F.max_pool2d(input_BCHW, 3, stride=2),
        )
        return torch.cat(branches, 1)


class InceptionC(nn.Module):
    """Block of four branches at 17 x 17, with kernels of one row or one column."""

    def __init__(self, inside: int, narrow: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Convolution(inside, 192, 1)
        self.branch7x7_1 = Convolution(inside, narrow, 1)
        self.branch7x7_2 = Convolution(narrow, narrow, row)
        self.branch7x7_3 = Convolution(narrow, 192, column)
        self.branch7x7dbl_1 = Convolution(inside, narrow, 1)
        self.branch7x7dbl_2 = Convolution(narrow, narrow, column)
        self.branch7x7dbl_3 = Convolution(narrow, narrow, row)
        self.branch7x7dbl_4 = Convolution(narrow, narrow, column)
        self.branch7x7dbl_5 = Convolution(narrow, 192, row)
        self.branch_pool = Convolution(inside, 192, 1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        double = (
            self.branch7x7dbl_1,
            self.branch7x7dbl_2,
            self.branch7x7dbl_3,
            self.branch7x7dbl_4,
            self.branch7x7dbl_5,
        )
        branches = (
            self.branch1x1(input_BCHW),
            _chain(input_BCHW, self.branch7x7_1, self.branch7x7_2, self.branch7x7_3),
            _chain(input_BCHW, *double),
            self.branch_pool(_average(input_BCHW)),
        )
        return torch.cat(branches, 1)


class InceptionD(nn.Module):
    """Block from 17 x 17 to 8 x 8."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(inside, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, 2, padded=False)
        self.branch7x7x3_1 = Convolution(inside, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, 2, padded=False)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        seven = (self.branch7x7x3_1, self.branch7x7x3_2, self.branch7x7x3_3, self.branch7x7x3_4)
        branches = (
            _chain(input_BCHW, self.branch3x3_1, self.branch3x3_2),
            _chain(input_BCHW, *seven),
            F.max_pool2d(input_BCHW, 3, stride=2),
        )
        return torch.cat(branches, 1)


class InceptionE(nn.Module):
    """Block at 8 x 8, with branches that end in a row kernel beside a column kernel.

    The last of the two such blocks has max pooling: an error in the network of 2015 that is now
    part of the metric.
    """

    def __init__(self, inside: int, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Convolution(inside, 320, 1)
        self.branch3x3_1 = Convolution(inside, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, row)
        self.branch3x3_2b = Convolution(384, 384, column)
        self.branch3x3dbl_1 = Convolution(inside, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, row)
        self.branch3x3dbl_3b = Convolution(384, 384, column)
        self.branch_pool = Convolution(inside, 192, 1)

    def forward(self, input_BCHW: Tensor) -> Tensor:
        three_BCHW = self.branch3x3_1(input_BCHW)
        double_BCHW = _chain(input_BCHW, self.branch3x3dbl_1, self.branch3x3dbl_2)
        if self.largest:
            pooled_BCHW = F.max_pool2d(input_BCHW, 3, stride=1, padding=1)
        else:
            pooled_BCHW = _average(input_BCHW)
        branches = (
            self.branch1x1(input_BCHW),
            self.branch3x3_2a(three_BCHW),
            self.branch3x3_2b(three_BCHW),
            self.branch3x3dbl_3a(double_BCHW),
            self.branch3x3dbl_3b(double_BCHW),
            self.branch_pool(pooled_BCHW),
        )
        return torch.cat(branches, 1)


class FidInception(nn.Module):
    """Inception of FID: images in [-1, 1] of any one size -> [B, 2048].

    The features are the mean of the last feature map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, padded=False)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, largest=False)
        self.Mixed_7c = InceptionE(2048, largest=True)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Load the frozen float32 network from a file of scripts/convert_inception.py.

        Raises:
            UserError: no such file, not safetensors, or not exactly this network's weights.
        """
        how = (
            "Make it there from pytorch-fid's pt_inception-2015-12-05-6726825d.pth "
            "with scripts/convert_inception.py"
        )
        if not Path(path).is_file():
            raise UserError(f"{path}: no weights of FID's Inception there. {how}")
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: is not a whole safetensors file ({error}). {how}") from error
        with torch.device("meta"):
            net = cls()
        wanted = {name: _kind(tensor) for name, tensor in net.state_dict().items()}
        found = {name: _kind(tensor) for name, tensor in weights.items()}
        for name in sorted(wanted | found):
            if wanted.get(name) != found.get(name):
                got = f"'{name}' is {found.get(name, _NONE)}, wanted {wanted.get(name, _NONE)}"
                raise UserError(f"{path}: does not hold FID's Inception: {got}. {how}")
        net.load_state_dict(weights, assign=True)
        return net.eval().requires_grad_(False)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        hidden_BCHW = F.interpolate(
            pixels_B3HW, size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        hidden_BCHW = _chain(hidden_BCHW, *self._until_first_pool())
        hidden_BCHW = F.max_pool2d(hidden_BCHW, 3, stride=2)
        hidden_BCHW = _chain(hidden_BCHW, self.Conv2d_3b_1x1, self.Conv2d_4a_3x3)
        hidden_BCHW = F.max_pool2d(hidden_BCHW, 3, stride=2)
        return _chain(hidden_BCHW, *self._mixed()).mean((2, 3))

    def _until_first_pool(self) -> Sequence[nn.Module]:
        return (self.Conv2d_1a_3x3, self.Conv2d_2a_3x3, self.Conv2d_2b_3x3)

    def _mixed(self) -> Sequence[nn.Module]:
        return [block for name, block in self.named_children() if name.startswith("Mixed_")]


_NONE = "not there"


def _kind(tensor: Tensor) -> str:
    sides = " x ".join(map(str, tensor.shape))
    return f"{str(tensor.dtype).removeprefix('torch.')} {sides}"
