"""The discriminator is taming's, its loss and its weight what the papers write."""

import pytest
import torch

from tokenizer.distributed import DistributedContext
from train.tokenizers.discriminator import (
    SMALLEST,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
)


@torch.no_grad()
def test_taming_judges_the_same_live() -> None:
    pytest.importorskip("taming")
    from taming.modules.discriminator.model import NLayerDiscriminator

    torch.manual_seed(0)
    theirs, ours = NLayerDiscriminator(input_nc=3, ndf=64, n_layers=3), PatchDiscriminator()
    ours.load_state_dict(theirs.state_dict())
    pixels_B3HW = torch.rand(2, 3, 40, 40) * 2 - 1
    torch.testing.assert_close(ours(pixels_B3HW), theirs(pixels_B3HW))


@torch.no_grad()
def test_it_judges_patches_down_to_its_smallest_picture() -> None:
    judge = PatchDiscriminator(width=8)
    assert judge(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    assert judge(torch.zeros(2, 3, SMALLEST, SMALLEST)).shape == (2, 1, 1, 1)
    with pytest.raises(RuntimeError):
        judge(torch.zeros(2, 3, SMALLEST - 1, SMALLEST - 1))


def test_the_loss_is_a_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    # real: 0 and 0.5 are missing to 1; fake: 0 and 2 are too much over -1
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))


def test_the_weight_makes_both_gradients_as_long() -> None:
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    seen, fooled = 6 * last.sum(), 0.5 * last.sum()
    weight = adaptive_weight(seen, fooled, last, DistributedContext())
    assert not weight.requires_grad
    assert weight.item() == pytest.approx(12, rel=1e-3)
    assert adaptive_weight(
        seen, 1e-12 * last.sum(), last, DistributedContext()
    ).item() == pytest.approx(1e4)
