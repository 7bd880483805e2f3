"""Training rows cached on the device, for a GPU that reads rows faster than the host makes them.

An alternative to making rows for every step (`train/data/rows.py`): the first `cached_rows` rows
are made once, by as many processes as the recipe's `workers`, and stay on the device as one table.
Each step takes the next of them, starting again after the last, and samples its noise on the
device. Captions and masks therefore repeat every `cached_rows` rows; noise does not.
"""

# Shapes: M = cached rows, B = rows of a micro-batch, L = ids per row, P = images, N = codes each

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tokenizer.distributed import DistributedContext
from tokenizer.vocabulary import PAD, Vocabulary
from train.config import PretrainRecipe
from train.data.batches import STEP, rows_of_steps
from train.data.noise import level
from train.data.rows import Mixture, Rows
from train.objective import targets_and_weights

CHUNK = 64  # rows that a worker process makes at a time


class CachedRows:
    """The first `recipe.cached_rows` rows of a run, on a device.

    Each process takes its share of the rows of each step, as without the cache; all is a function
    of the seed and the step.
    """

    def __init__(
        self,
        rows: Rows | Mixture,
        recipe: PretrainRecipe,
        vocabulary: Vocabulary,
        device: torch.device,
        dist: DistributedContext,
    ) -> None:
        self.recipe, self.vocabulary, self.device = recipe, vocabulary, device
        self.share = dist.share(recipe.batch)
        steps = range(-(-recipe.cached_rows // CHUNK))
        made = rows_of_steps(rows, CHUNK, range(CHUNK), steps, recipe.workers)
        kept = [row for some in made for row in some][: recipe.cached_rows]
        self.lengths_M = np.array([len(row) for row in kept])
        ids_ML = np.full((len(kept), int(self.lengths_M.max())), PAD, dtype=np.int32)
        for number, row in enumerate(kept):
            ids_ML[number, : len(row)] = row
        self.ids_ML = torch.from_numpy(ids_ML).to(device)
        # the loss weights are computed once too; the last id of a row is only a target
        _, weights_ML = targets_and_weights(ids_ML.astype(np.int64), vocabulary, recipe.mask)
        self.weights_ML = torch.from_numpy(weights_ML).to(device)
        self.codes_PN = torch.from_numpy(rows.codes_PN.astype(np.int32)).to(device)

    def micros(self, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield inputs, targets and weights of a step's micro-batches, all [B, L], on the device.

        Rows of similar length share a micro-batch.
        """
        numbers = (step * self.recipe.batch + np.array(self.share)) % len(self.lengths_M)
        numbers = numbers[np.argsort(self.lengths_M[numbers], kind="stable")]
        draw = torch.Generator(self.device)
        draw.manual_seed(hash((self.recipe.seed, step, self.share.start)) % 2**63)
        most = level(self.recipe.mask, step, self.recipe.steps)
        while len(numbers):
            width = -(-int(self.lengths_M[numbers[-1]] - 1) // STEP) * STEP
            count = max(1, self.recipe.micro_tokens // width)
            some, numbers = numbers[-count:], numbers[:-count]
            chosen_B = torch.from_numpy(some).to(self.device)
            ids_BL = self.ids_ML[chosen_B, : width + 1].long()
            weights_BL = self.weights_ML[chosen_B, :width]
            read_BL = noisy(ids_BL, self.vocabulary, most, self.codes_PN, draw) if most else ids_BL
            yield read_BL[:, : ids_BL.shape[1] - 1], ids_BL[:, 1:], weights_BL


def noisy(
    ids_BL: Tensor, vocabulary: Vocabulary, most: float, codes_PN: Tensor, draw: torch.Generator
) -> Tensor:
    """Apply `train.data.noise.read_with_noise` to a batch of rows, on their device."""
    image, device = vocabulary.image_ids, ids_BL.device
    (rows, length), (images, codes) = ids_BL.shape, codes_PN.shape
    at_L = torch.arange(length, device=device)
    wall_B1 = torch.where(ids_BL == vocabulary.break_id, at_L, -1).amax(1, keepdim=True)
    code_BL = (image.start <= ids_BL) & (ids_BL < image.stop) & (at_L > wall_B1)
    place_BL = (code_BL.cumsum(1) - 1).clamp(min=0) % codes
    level_B1 = most * torch.rand(rows, 1, generator=draw, device=device)
    hit_BL = code_BL & (torch.rand(rows, length, generator=draw, device=device) < level_B1)
    other_BL = torch.randint(images, (rows, length), generator=draw, device=device)
    return torch.where(hit_BL, codes_PN[other_BL, place_BL].long() + image.start, ids_BL)
