"""What a picture shows, by a judge that had no part in painting or picking it.

A family is what the corpus calls so: of an emoji its code point less skin tone, gender, hair and
direction, in whatever style; of an icon or a clip art its name; of a photo the kind of groceries.
It is the thing shown, never how it is drawn.

MobileNetV2 as ImageNet left it is another network than any encoder of retrieval, but akin to the
small one, whose picture tower started from it.
"""

# Shapes: P = real pictures, B = batch, F = features, 3HW = pixels

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eval.figures import evenly
from eval.sets import read_images
from tokenizer.features import FeatureNet
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import to_pixels
from tokenizer.tars import Tally

BATCH = 64  # real pictures looked at together


def choose_real(
    listed: Iterable[Mapping[str, Any]], excluded: Set[str], limit: int
) -> dict[str, str]:
    """The family by id of the pictures to compare with: at most `limit` of each family, evenly
    spaced, so that a family with many variants is not near to everything."""
    groups: dict[str, list[str]] = defaultdict(list)
    for one in listed:
        if one.get("family") and one["id"] not in excluded:
            groups[one["family"]].append(one["id"])
    return {
        ids[place]: family
        for family, ids in groups.items()
        for place in evenly(range(len(ids)), limit)
    }


class Judge:
    """Names a picture's family: that of the nearest real picture, by the cosine of MobileNetV2's
    pooled features. Real pictures are taken as the codebook gives them back, since all that is
    painted has come through it."""

    def __init__(self, tokenizer: ImageTokenizer, net: FeatureNet) -> None:
        self.device = next(tokenizer.net.parameters()).device
        self.tokenizer = tokenizer
        self.net = net.to(self.device)
        self.families: list[str] = []
        self.real_PF = torch.zeros(0)

    def learn(
        self,
        tars: Sequence[Path],
        families: Mapping[str, str],
        tally: Tally,
        progress: Callable[[int, int], None],
    ) -> None:
        """Look at the real pictures with these ids."""
        rows: list[Tensor] = []
        read = read_images(tars, families.keys(), tally, self.tokenizer.size)
        while batch := list(islice(read, BATCH)):
            rows.append(self._features(self._rebuilt([image for _, image in batch])))
            self.families += [families[one["id"]] for one, _ in batch]
            progress(len(self.families), len(families))
        self.real_PF = torch.cat(rows)

    def of_painted(self, images: Sequence[Image.Image]) -> list[str]:
        """The family of each painted picture."""
        return self._nearest(self._features(self._pixels(images)))

    def of_real(self, images: Sequence[Image.Image]) -> list[str]:
        """The family of each real picture, as the codebook gives it back."""
        return self._nearest(self._features(self._rebuilt(images)))

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([to_pixels(image) for image in images]).to(self.device)

    def _rebuilt(self, images: Sequence[Image.Image]) -> Tensor:
        return self.tokenizer.decode(self.tokenizer.encode(self._pixels(images)))

    @torch.inference_mode()
    def _features(self, pixels_B3HW: Tensor) -> Tensor:
        """Features of length 1, [B, F]."""
        return F.normalize(self.net.pooled(pixels_B3HW.clamp(-1, 1)), dim=-1)

    def _nearest(self, features_BF: Tensor) -> list[str]:
        return [self.families[place] for place in (features_BF @ self.real_PF.T).argmax(1).tolist()]
