"""The causally masked (CM3) objective, applied to the rows of `train/data` before the model.

Left-to-right prediction trains continuation only. To train infilling with context on both sides,
spans are cut out of the row and moved to its end. Example of 12 ids and two spans:

>>> vocabulary = Vocabulary(image_codes=4, text_pieces=8, sentinels=4)
>>> def show(ids: Ids) -> str:
...     return " ".join(vocabulary.name(int(number)) for number in ids)
>>> words = [vocabulary.text_id(piece) for piece in range(5)]
>>> codes = [vocabulary.image_id(code) for code in range(4)]
>>> row = np.array([EOS, *words, vocabulary.break_id, *codes, EOS])
>>> show(row)
'</s> T0 T1 T2 T3 T4 <break> I0 I1 I2 I3 </s>'
>>> masked = move(row, [(2, 4), (8, 9)], vocabulary)
>>> show(masked[:11])
'</s> T0 <sentinel:0> T3 T4 <break> I0 <sentinel:1> I2 I3 </s>'
>>> show(masked[11:])
'<sentinel:0> T1 T2 <eoss> <sentinel:1> I1 <eoss>'
>>> show(unmask(masked, vocabulary)) == show(row)
True

The first `<sentinel:i>` replaces span i, the second precedes the moved span, `<eoss>` ends it: 3
more ids per span. If the row may not grow, its tail is truncated, and the spans with it:

>>> show(move(row, [(2, 4)], vocabulary, room=12))
'</s> T0 <sentinel:0> T3 T4 <break> I0 I1 <sentinel:0> T1 T2 <eoss>'

Source: CM3 (arXiv 2201.07520) section 2 for the objective; CM3Leon (arXiv 2309.02591) section 2.2,
and Meta's published code, for a Poisson(1) number of spans, possibly zero, that do not cross
`<break>`. Ours: spans do not cross `</s>` either; and the masks of a field and of an image box.
"""

# Shapes: B = rows, L = ids per row, T = target tokens, V = vocabulary, K = kinds of token
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cm3leon.prompts import MOST_RUNS
from tokenizer.errors import UserError
from tokenizer.vocabulary import EOS, PAD, Vocabulary

Ids = npt.NDArray[np.int64]
Span = tuple[int, int]  # [start, end) in a row

SPAN_COST = 3  # additional ids per span: two sentinels and <eoss>
KINDS = ("text", "image", "sentinel", "mark")  # mark: </s>, <break>, <eoss>, <unk>


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Settings of the masking and of the loss weights. The CM3 paper's own variant is `spans_min=1,
    spans_max=16, whole_segment=0, field=0, sentinel_weight=0`.

    One uniform draw selects the mask of a row. In [0, field): one field, if the row has any. In
    [field, field + box): a box of one image, if the row has any. Otherwise Poisson spans. The share
    of unmasked rows is thus about (1 - field - box) * exp(-spans_mean) if every row has fields and
    images.
    """

    spans_mean: float = 1.0  # of the Poisson number of spans, which is clamped ...
    spans_min: int = 0  # ... from below
    spans_max: int | None = None  # ... and from above; always below the number of sentinels
    whole_segment: float = 0.15  # probability that the sampled spans grow to their whole segments
    field: float = 0.1  # probability that exactly one field (caption, answer, edit text) is masked
    box: float = 0.0  # probability that a box of one image's codes is masked
    sentinel_weight: float = 1.0  # loss weight of sentinels as targets
    predict: Literal["all", "image"] = "all"  # `image`: loss and softmax over image ids only
    noise: float = 0.0  # largest share of an image's input codes replaced (`train/data/noise.py`)
    noise_end: float | None = None  # the share at the last step, if it changes linearly

    def __post_init__(self) -> None:
        for name in ("spans_mean", "spans_min", "sentinel_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be 0 or more")
        for name in ("whole_segment", "field", "box", "noise", "noise_end"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; a probability lies in 0..1")
        if self.field + self.box > 1:
            raise UserError(f"field {self.field} and box {self.box} add up to more than 1")
        if self.spans_max is not None and self.spans_max < self.spans_min:
            raise UserError(f"spans_max {self.spans_max} is below spans_min {self.spans_min}")


def segments_of(ids: Ids, vocabulary: Vocabulary) -> list[Span]:
    """Return the non-empty runs of ids between `<break>` or `</s>`: one text or image each."""
    (walls,) = np.nonzero((ids == vocabulary.break_id) | (ids == EOS))
    starts, ends = [0, *(walls + 1).tolist()], [*walls.tolist(), len(ids)]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]


def pictures_of(ids: Ids, vocabulary: Vocabulary, grid: int) -> list[Span]:
    """Return the segments that are whole images: exactly grid * grid image ids."""
    image = vocabulary.image_ids
    return [
        (start, end)
        for start, end in segments_of(ids, vocabulary)
        if end - start == grid * grid
        and bool(np.all((image.start <= ids[start:end]) & (ids[start:end] < image.stop)))
    ]


def draw_count(config: MaskConfig, most: int, rng: np.random.Generator) -> int:
    """Sample the number of spans to mask: Poisson, clamped, at most `most`."""
    count = max(int(rng.poisson(config.spans_mean)), config.spans_min)
    return min(count, most if config.spans_max is None else min(most, config.spans_max))


def draw_spans(count: int, length: int, rng: np.random.Generator) -> list[Span]:
    """Sample up to `count` disjoint spans, sorted. Ends are uniform, so spans are few and long.

    count ** 2 candidates are tried, as in Meta's code, so there may be fewer than `count` spans.
    """
    kept: list[Span] = []
    for low, high in np.sort(rng.random((count**2, 2)), axis=1) * length:
        start, end = int(low), int(high + 0.5)
        free = all(end <= other_start or other_end <= start for other_start, other_end in kept)
        if start < end and free and len(kept) < count:
            kept.append((start, end))
    return sorted(kept)


def homes_of(spans: Sequence[Span], segments: Sequence[Span]) -> list[tuple[Span, Span]]:
    """Return each span, clipped to the segment that it overlaps most, with that segment.

    Spans without overlap (only `<break>` and `</s>`) are dropped.
    """
    homes: list[tuple[Span, Span]] = []
    for start, end in spans:
        cuts = [((max(start, first), min(end, last)), (first, last)) for first, last in segments]
        best = max(cuts, key=lambda cut: cut[0][1] - cut[0][0], default=((0, 0), (0, 0)))
        if best[0][0] < best[0][1]:
            homes.append(best)
    return homes


def poisson_spans(
    ids: Ids, vocabulary: Vocabulary, config: MaskConfig, most: int, rng: np.random.Generator
) -> list[Span]:
    """Sample the spans of CM3Leon's masking, each within one segment; with probability
    `whole_segment` they become their whole segments."""
    drawn = draw_spans(draw_count(config, most, rng), len(ids), rng)
    homes = homes_of(drawn, segments_of(ids, vocabulary))
    if rng.random() < config.whole_segment:
        return sorted({segment for _, segment in homes})
    return [span for span, _ in homes]


def box_spans(picture: Span, grid: int, most: int, rng: np.random.Generator) -> list[Span]:
    """Sample a random box of an image and return its runs of codes in raster order as spans.

    A box of the full width is one run. More runs than MOST_RUNS or `most` are replaced by one span
    from the first code of the box to its last, which also covers codes outside the box.
    """
    height, width = (int(side) for side in rng.integers(1, grid + 1, size=2))
    top, left = int(rng.integers(grid - height + 1)), int(rng.integers(grid - width + 1))
    first = picture[0] + top * grid + left
    runs = [(first + row * grid, first + row * grid + width) for row in range(height)]
    if width == grid or height > min(MOST_RUNS, most):
        return [(runs[0][0], runs[-1][1])]
    return runs


def keep_within(spans: Sequence[Span], length: int, room: int) -> tuple[int, list[Span]]:
    """Return how many of `length` source ids fit in `room` after moving the spans, and these spans.

    The tail of the source is dropped. A span that reaches into the tail is truncated; a span within
    the tail is dropped (which frees its 3 ids), so that every sentinel has a span.
    """
    kept = list(spans)
    while kept and kept[-1][0] >= room - SPAN_COST * len(kept):
        kept.pop()
    end_of_source = min(length, room - SPAN_COST * len(kept))
    return end_of_source, [(start, min(end, end_of_source)) for start, end in kept]


def move(ids: Ids, spans: Sequence[Span], vocabulary: Vocabulary, room: int | None = None) -> Ids:
    """Move `spans` (sorted, disjoint) to the end of `ids`, with 3 more ids per span; return the
    result.

    With `room`, the result has at most that many ids: see `keep_within`.
    """
    end_of_source = len(ids)
    if room is not None:
        end_of_source, spans = keep_within(spans, len(ids), room)
    source: list[Ids | list[int]] = []
    moved: list[Ids | list[int]] = []
    done = 0
    for number, (start, end) in enumerate(spans):
        assert done <= start < end, "spans must be in order and share no id"
        sentinel = vocabulary.sentinel_id(number)
        source += [ids[done:start], [sentinel]]
        moved += [[sentinel], ids[start:end], [vocabulary.eoss_id]]
        done = end
    return np.concatenate([*source, ids[done:end_of_source], *moved]).astype(np.int64)


def unmask(ids: Sequence[int] | Ids, vocabulary: Vocabulary) -> Ids:
    """Return the row before `move`: every span in place of its sentinel, without padding."""
    row = [int(number) for number in ids if number != PAD]
    sentinels = range(vocabulary.sentinel_ids.start, vocabulary.sentinel_ids.stop)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(row):
        if number in sentinels:
            places.setdefault(number, []).append(place)
    assert all(len(pair) == 2 for pair in places.values()), "a hole without its filling"
    end_of_source = min((announced for _, announced in places.values()), default=len(row))
    original: list[int] = []
    for number in row[:end_of_source]:
        if number in places:
            start = places[number][1] + 1
            original += row[start : row.index(vocabulary.eoss_id, start)]
        else:
            original.append(number)
    return np.array(original, dtype=np.int64)


def draw_mask(
    row: Ids,
    fields: Sequence[Span],
    vocabulary: Vocabulary,
    config: MaskConfig,
    most: int,
    rng: np.random.Generator,
    *,
    packed: bool,
    grid: int,
) -> list[Span]:
    """Select the mask of a row (a field, a box or Poisson spans), and sample its spans."""
    if most < 1:
        return []
    choice = rng.random()
    if choice < config.field:
        # a packed block loses its last 3 ids: a field there would be masked only in part
        last = len(row) - SPAN_COST if packed else len(row)
        whole = [(start, end) for start, end in fields if start < end <= last]
        if whole:
            return [whole[int(rng.integers(len(whole)))]]
    elif choice < config.field + config.box:
        pictures = pictures_of(row, vocabulary, grid)
        if pictures:
            return box_spans(pictures[int(rng.integers(len(pictures)))], grid, most, rng)
    return poisson_spans(row, vocabulary, config, most, rng)


def mask_row(
    ids: Sequence[int] | Ids,
    fields: Sequence[Span],
    vocabulary: Vocabulary,
    config: MaskConfig,
    rng: np.random.Generator,
    *,
    room: int | None,
    grid: int,
) -> Ids:
    """Return a masked training row; called by the data loader before padding.

    ids: the unmasked row: one document, several, or a packed block.
    fields: the [start, end) spans of `ids` that a task may generate; `Encoded.fields` of the codec.
    room: for a row of whole documents, the maximum length of the result (the context): the number
        of spans is limited to fit, nothing is truncated, and the moved spans follow the closing
        `</s>`. None for a packed block, which keeps its length by losing its tail.
    grid: codes per side of an image; a segment of exactly grid * grid image ids is an image.

    All randomness comes from `rng`. See MaskConfig for the shares of the three kinds of mask.
    """
    row = np.asarray(ids, dtype=np.int64)
    taken = vocabulary.sentinel_ids
    marked = (
        (row == PAD) | (row == vocabulary.eoss_id) | ((taken.start <= row) & (row < taken.stop))
    )
    assert not np.any(marked), "the row is masked or padded already"
    assert room is None or len(row) <= room, f"a row of {len(row)} ids in a room of {room}"

    most = vocabulary.sentinels - 1
    if room is not None:
        most = min(most, (room - len(row)) // SPAN_COST)
    spans = draw_mask(row, fields, vocabulary, config, most, rng, packed=room is None, grid=grid)
    return move(row, spans, vocabulary, len(row) if room is None else room)


def targets_and_weights(
    ids_BL: Ids, vocabulary: Vocabulary, config: MaskConfig
) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Return the targets of the inputs `ids_BL[:, :-1]`, and their loss weights; both [B, L - 1].

    The weight of padding is 0, of sentinels `config.sentinel_weight`, of all else 1; with `predict`
    image, it is 0 for all but image ids.
    """
    targets_BL = ids_BL[:, 1:]
    sentinels = vocabulary.sentinel_ids
    is_sentinel_BL = (sentinels.start <= targets_BL) & (targets_BL < sentinels.stop)
    weights_BL = np.where(is_sentinel_BL, config.sentinel_weight, 1.0) * (targets_BL != PAD)
    if config.predict == "image":
        image = vocabulary.image_ids
        weights_BL *= (image.start <= targets_BL) & (targets_BL < image.stop)
    return targets_BL, weights_BL.astype(np.float32)


class Loss(NamedTuple):
    """Sums, not means, so that micro-batches and ranks can be added before a single division."""

    total: Tensor  # weighted sum of cross-entropy (nats) and z-loss; the differentiable loss
    weight: Tensor  # sum of the weights
    kinds_K2: Tensor  # weighted nats (without z-loss) and weight of each of KINDS; detached


def masked_cross_entropy(
    logits_TV: Tensor,
    targets_T: Tensor,
    weights_T: Tensor,
    vocabulary: Vocabulary,
    z_loss: float = 0.0,
) -> Loss:
    """Compute next-token cross-entropy in float32, plus z_loss * (log Z) ** 2 for each token.

    The reference implementation; training uses `train/loss.py`, with the same result but without
    all logits at once. z-loss: Chameleon (arXiv 2405.09818) section 2.3.
    """
    logits_TV = logits_TV.float()
    nats_T = F.cross_entropy(logits_TV, targets_T, reduction="none")
    cost_T = nats_T
    if z_loss:
        cost_T = nats_T + z_loss * logits_TV.logsumexp(dim=-1).square()

    kinds_K2 = kinds_of(nats_T.detach(), targets_T, weights_T, vocabulary)
    return Loss((cost_T * weights_T).sum(), weights_T.sum(), kinds_K2)


def kinds_of(
    nats_T: Tensor, targets_T: Tensor, weights_T: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """Return kinds_K2: weighted nats and weight of each of KINDS."""
    kind_T = torch.full_like(targets_T, KINDS.index("mark"))
    ranges = (vocabulary.text_ids, vocabulary.image_ids, vocabulary.sentinel_ids)
    for kind, ids in enumerate(ranges):
        kind_T = kind_T.where((targets_T < ids.start) | (targets_T >= ids.stop), kind)
    sums_T2 = torch.stack([nats_T * weights_T, weights_T], dim=1)
    return sums_T2.new_zeros(len(KINDS), 2).index_add_(0, kind_T, sums_T2)
