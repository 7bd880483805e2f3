"""The patch discriminator of the image tokenizer's training, after taming's (2012.09841, 3.1)."""

# Shapes: B = batch, H, W = pixels

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.distributed import DistributedContext

SMALLEST = 24  # pixels a side: below it nothing is left for the last convolution


class PatchDiscriminator(nn.Module):
    """Says of every patch how real it looks: [B, 3, H, W] -> [B, 1, h, w], positive is real."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for number, (a, b) in enumerate(pairwise(widths)):
            stride = 1 if number == layers - 1 else 2
            blocks += [nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.BatchNorm2d(b)]
            blocks.append(nn.LeakyReLU(0.2))
        blocks.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        return self.main(pixels_B3HW)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator's two answers."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(seen: Tensor, fooled: Tensor, last: Tensor, dist: DistributedContext) -> Tensor:
    """How much the adversarial loss may weigh: its gradient at the last layer made as long as the
    reconstruction's, at most 1e4 times (taming, equation 7); of the batch of all processes."""
    (g_seen,) = torch.autograd.grad(seen, last, retain_graph=True)
    (g_fooled,) = torch.autograd.grad(fooled, last, retain_graph=True)
    dist.mean_((g_seen, g_fooled))
    return (g_seen.norm() / (g_fooled.norm() + 1e-4)).clamp(0, 1e4).detach()
