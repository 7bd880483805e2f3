"""MobileNetV2 features for a perceptual loss and for distances between sets of images.

Training of the image tokenizer uses `perceptual_distance` between original and reconstructed
images; evaluation compares the `pooled` features of sets of images; training of the retriever
starts from these weights. They are those of torchvision's ImageNet classifier (Sandler et al. 2018,
arXiv:1801.04381), converted to one safetensors file by scripts/convert_mobilenet.py.
"""

# Shapes: B = batch, 3 = red, green, blue; H = height, W = width, C = channels

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.errors import UserError

# Table 2 of the paper: expansion, output channels, blocks, stride of the first block.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280

# The last block of each resolution, which is 2, 4, 8, 16, 32 times smaller than the image.
STAGES = (1, 3, 6, 13, 17)

# Mean and deviation of ImageNet's classifiers, converted from [0, 1] to our [-1, 1].
_MEAN = (2 * 0.485 - 1, 2 * 0.456 - 1, 2 * 0.406 - 1)
_DEVIATION = (2 * 0.229, 2 * 0.224, 2 * 0.225)


def _convolution(
    inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups)


class InvertedResidual(nn.ModuleList):
    """Convolutions with relu6 between them; an inverted residual has no activation at the end."""

    def __init__(self, *convolutions: nn.Conv2d, ends_linear: bool, residual: bool) -> None:
        super().__init__(convolutions)
        self.ends_linear = ends_linear
        self.residual = residual

    def forward(self, input_BCHW: Tensor) -> Tensor:
        hidden_BCHW = input_BCHW
        for number, convolution in enumerate(self, start=1):
            hidden_BCHW = convolution(hidden_BCHW)
            if number < len(self) or not self.ends_linear:
                hidden_BCHW = F.relu6(hidden_BCHW, inplace=True)
        return input_BCHW + hidden_BCHW if self.residual else hidden_BCHW


def _inverted_residual(inside: int, outside: int, expansion: int, stride: int) -> InvertedResidual:
    """Build an inverted residual: expand, filter each channel separately, project (section 3.3 of
    the paper)."""
    wide = inside * expansion
    widen = [_convolution(inside, wide, 1)] if expansion > 1 else []
    filter_ = _convolution(wide, wide, 3, stride, groups=wide)
    narrow = _convolution(wide, outside, 1)
    residual = stride == 1 and inside == outside
    return InvertedResidual(*widen, filter_, narrow, ends_linear=True, residual=residual)


class FeatureNet(nn.Module):
    """MobileNetV2 without its classifier, with batch norms folded into the convolutions.

    Because they are folded, there is no training mode to switch off, and the features of an image
    never depend on its batch. Images may have any size; at 64 x 64 the last map is 2 x 2.
    """

    mean_311: Tensor
    deviation_311: Tensor

    def __init__(self) -> None:
        super().__init__()
        blocks = [InvertedResidual(_convolution(3, _STEM, 3, 2), ends_linear=False, residual=False)]
        width = _STEM
        for expansion, channels, count, stride in _GROUPS:
            for number in range(count):
                first_stride = 1 if number else stride
                blocks.append(_inverted_residual(width, channels, expansion, first_stride))
                width = channels
        blocks.append(
            InvertedResidual(_convolution(width, _LAST, 1), ends_linear=False, residual=False)
        )
        self.blocks = nn.ModuleList(blocks)
        for name, values in (("mean_311", _MEAN), ("deviation_311", _DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Load a frozen float32 network from a file of scripts/convert_mobilenet.py.

        Raises:
            UserError: no such file, not safetensors, or not exactly this network's weights.
        """
        how = "Make it with scripts/convert_mobilenet.py"
        if not Path(path).is_file():
            raise UserError(f"{path}: no MobileNetV2 weights there. {how}")
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: is not a whole safetensors file ({error}). {how}") from error
        net = cls()
        wanted = {name: tensor.shape for name, tensor in net.state_dict().items()}
        found = {name: tensor.shape for name, tensor in weights.items()}
        for name in sorted(wanted | found):
            if wanted.get(name) != found.get(name):
                got = f"'{name}' is {_shape(found.get(name))}, wanted {_shape(wanted.get(name))}"
                raise UserError(f"{path}: does not hold this MobileNetV2: {got}. {how}")
        net.load_state_dict(weights)
        return net.eval().requires_grad_(False)

    def forward(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Return maps [B, C, H/s, W/s] of images in [-1, 1] for the strides s = 2, 4, 8, 16, 32."""
        maps_BCHW: list[Tensor] = []
        hidden_BCHW = self._whiten(pixels_B3HW)
        for number, block in enumerate(self.blocks[:-1]):
            hidden_BCHW = block(hidden_BCHW)
            if number in STAGES:
                maps_BCHW.append(hidden_BCHW)
        return maps_BCHW

    def pooled(self, pixels_B3HW: Tensor) -> Tensor:
        """Return features [B, 1280] of images in [-1, 1], the input of ImageNet's classifier."""
        hidden_BCHW = self._whiten(pixels_B3HW)
        for block in self.blocks:
            hidden_BCHW = block(hidden_BCHW)
        return hidden_BCHW.mean((2, 3))

    def _whiten(self, pixels_B3HW: Tensor) -> Tensor:
        white_B3HW = (pixels_B3HW - self.mean_311) / self.deviation_311
        # Channels last: all later layers keep this format, and run a third faster on CPUs.
        return white_B3HW.contiguous(memory_format=torch.channels_last)


def perceptual_distance(net: FeatureNet, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
    """Return the perceptual distance between two batches of images in [-1, 1]: [B], 0 for equal
    images, at most 4.

    Similar to LPIPS (Zhang et al. 2018, arXiv:1801.03924): at each position of each map the
    channels are normalised to a vector of length 1, and squared distances are averaged over
    positions, then over maps. LPIPS also weights the channels by human judgements of similarity;
    this function does not, so its values are not LPIPS.
    """
    distances_B = [
        (_directions(x_BCHW) - _directions(y_BCHW)).square().sum(1).mean((1, 2))
        for x_BCHW, y_BCHW in zip(net(x_B3HW), net(y_B3HW), strict=True)
    ]
    return torch.stack(distances_B).mean(0)


def _shape(shape: torch.Size | None) -> str:
    return "not there" if shape is None else " x ".join(map(str, shape))


def _directions(map_BCHW: Tensor) -> Tensor:
    # The epsilon inside the root also keeps the gradient finite where all channels are 0.
    return map_BCHW * (map_BCHW.square().sum(1, keepdim=True) + 1e-8).rsqrt()
