"""Patch discriminator for training the image tokenizer, after taming's (2012.09841, 3.1)."""

# Shapes: B = batch, H, W = pixels

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.distributed import DistributedContext

SMALLEST = 24  # side in pixels: smaller images are too small for the last convolution


class PatchDiscriminator(nn.Module):
    """Discriminator with a logit per patch: [B, 3, H, W] -> [B, 1, h, w]; positive is real."""

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
    """Return the hinge loss of the discriminator's logits for real and generated images."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(seen: Tensor, fooled: Tensor, last: Tensor, dist: DistributedContext) -> Tensor:
    """Return the weight of the adversarial loss (taming, equation 7).

    It scales the gradient norm at the last layer to that of the reconstruction loss, by at most
    1e4. Gradients are averaged over all processes.
    """
    (g_seen,) = torch.autograd.grad(seen, last, retain_graph=True)
    (g_fooled,) = torch.autograd.grad(fooled, last, retain_graph=True)
    dist.mean_((g_seen, g_fooled))
    return (g_seen.norm() / (g_fooled.norm() + 1e-4)).clamp(0, 1e4).detach()
