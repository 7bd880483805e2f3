"""LPIPS, a perceptual distance of two images, with the network and weights of Zhang et al. 2018.

arXiv:1801.03924, version 0.1, VGG16. Pixels of two images -> VGG16's feature maps after five of its
ReLUs, each of length 1 over channels -> their squared differences, weighted by channel and averaged
over positions, summed over the five. The weights come from one safetensors file that
scripts/convert_lpips.py writes.
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

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and standard deviation that normalise pixels in -1..1.
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-8  # under the root, for positions where all channels are 0
HOW = "make it with scripts/convert_lpips.py"


class Lpips(nn.Module):
    """VGG16's thirteen convolutions with ReLUs and pooling, and a weight for every channel."""

    mean_311: Tensor
    deviation_311: Tensor

    def __init__(self) -> None:
        super().__init__()
        inside = 3
        stages: list[nn.ModuleList] = []
        for widths in STAGES:
            stage: list[nn.Module] = []
            for width in widths:
                stage.append(nn.Conv2d(inside, width, 3, padding=1))
                inside = width
            stages.append(nn.ModuleList(stage))
        self.stages = nn.ModuleList(stages)
        self.weigh = nn.ParameterList([nn.Parameter(torch.zeros(one[-1])) for one in STAGES])
        for name, values in (("mean_311", MEAN), ("deviation_311", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load the network from the file of scripts/convert_lpips.py.

        Raises UserError for anything else.
        """
        net = cls()
        try:
            net.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: does not hold LPIPS's weights ({reason}); {HOW}") from error
        return net.requires_grad_(False)

    def forward(self, one_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Return the distances [B] of images in -1..1, of at least 16 pixels a side."""
        hidden_BCHW = (torch.cat([one_B3HW, other_B3HW]) - self.mean_311) / self.deviation_311
        apart_B = torch.zeros(len(one_B3HW), device=one_B3HW.device)
        for number, (stage, weight_C) in enumerate(zip(self.stages, self.weigh, strict=True)):
            assert isinstance(stage, nn.ModuleList)
            if number:
                hidden_BCHW = F.max_pool2d(hidden_BCHW, 2)
            for convolution in stage:
                hidden_BCHW = F.relu(convolution(hidden_BCHW))
            length_B1HW = (hidden_BCHW.square().sum(1, keepdim=True) + EPS).sqrt()
            unit_BCHW = hidden_BCHW / length_B1HW
            left_BCHW, right_BCHW = unit_BCHW.chunk(2)
            apart_BCHW = (left_BCHW - right_BCHW).square() * weight_C[:, None, None]
            apart_B = apart_B + apart_BCHW.sum(1).mean((1, 2))
        return apart_B
