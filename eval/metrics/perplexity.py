"""The measures that paint nothing: bits, what documents are worth in bits, what a codebook leaves.

A `Lab` in, what was `Found` out: figures with notes and pictures; `runs` writes them down. Beside
`spoken` and `painted`.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from cm3leon import likelihood
from eval.context import Item, Lab
from eval.metrics.bits import written_caption, written_picture
from eval.metrics.distribution import likeness, rebuilt_distance
from eval.metrics.reconstruction import psnr
from eval.metrics.retrieval import draw, fitting, lots
from eval.report import Found, Value, mean, sheet_of
from eval.stats import by_kind, kind_of
from tokenizer.document import Document
from tokenizer.errors import UserError
from tokenizer.pixels import to_pixels

GROUP = 32  # things that are scored together


def perplexity(lab: Lab) -> Found:
    """Bits of pictures given their first caption, as `cm3leon.likelihood` defines them, and given
    another's, which tells how much the caption counts; of captions given their picture; with
    documents in front too, where the run has a memory."""
    items, codec = lab.items, lab.leon.codec
    none: list[list[Document]] = [[] for _ in items]
    image_bits = picturebits_of(lab, none)
    other_bits = picturebits_of(lab, none, captions=captions_of_others(items))
    captions = [written_caption(codec, item.caption, item.picture) for item in items]
    caption_bits = bits_of(lab, captions, "captions")
    sizes = [float(len(item.caption.encode())) for item in items]
    values: dict[str, Value] = {}
    for kind, places in by_kind([kind_of(item.metadata) for item in items]).items():
        codes = [float(codec.picture_codes)] * len(places)
        values[f"bits an image token, {kind}"] = mean([image_bits[i] for i in places], codes)
        values[f"bits an image token behind another's caption, {kind}"] = mean(
            [other_bits[i] for i in places], codes
        )
        texts, lengths = [caption_bits[i] for i in places], [sizes[i] for i in places]
        values[f"bits a caption byte, {kind}"] = mean(texts, lengths)
    count = lab.asked.retrieve
    if count and lab.memory is not None:
        helped = picturebits_of(lab, lab.fronts(lab.items, count))
        codes = [float(codec.picture_codes)] * len(items)
        values[f"bits an image token, all, {count} retrieved"] = mean(helped, codes)
        less = [a - b for a, b in zip(helped, image_bits, strict=True)]
        values[f"the same less none retrieved, {count} retrieved"] = mean(less, codes)
    return Found(values=values)


def picturebits_of(
    lab: Lab, fronts: Sequence[Sequence[Document]], captions: Sequence[str] | None = None
) -> list[float]:
    """Bits of every item's codes given its first caption, or one of `captions` in its place, behind
    some documents."""
    captions = captions or [item.caption for item in lab.items]
    written = [
        written_picture(lab.leon.codec, caption, item.picture, front)
        for caption, item, front in zip(captions, lab.items, fronts, strict=True)
    ]
    return bits_of(lab, written, "pictures")


def captions_of_others(items: Sequence[Item]) -> list[str]:
    """For each item the first caption of the next one, round the end, that is of the same style and
    of another family, or of another caption where there is none."""

    def caption_for(place: int) -> str:
        item, rest = items[place], [*items[place + 1 :], *items[:place]]
        same = (one for one in rest if _style(one) == _style(item) and _thing(one) != _thing(item))
        other = (one for one in rest if one.caption != item.caption)
        return next(same, next(other, item)).caption

    return [caption_for(place) for place in range(len(items))]


def _style(item: Item) -> object:
    return item.metadata.get("style")


def _thing(item: Item) -> object:
    return item.metadata.get("family", item.caption)


def bits_of(lab: Lab, written: Sequence[likelihood.Written], what: str) -> list[float]:
    """Bits of each continuation, all its ids together."""
    found: list[float] = []
    steps = lab.steps(f"bits of {what}")
    for start in range(0, len(written), GROUP):
        some = likelihood.bits(lab.leon.model, list(written[start : start + GROUP]))
        found += [float(tokens_L.sum()) for tokens_L in some]
        if steps is not None:
            steps(len(found), len(written))
    return found


def reconstruction(lab: Lab) -> Found:
    """What the codebook leaves of a picture: PSNR, SSIM, the share of codes in use, and LPIPS and
    rFID where their networks are at hand."""
    after = lab.rebuilt
    ratios = [psnr(item.image, image) for item, image in zip(lab.items, after, strict=True)]
    structures = structure([item.image for item in lab.items], after)
    unlike, no_lpips = likeness(lab)
    values: dict[str, Value] = {}
    for kind, places in by_kind([kind_of(item.metadata) for item in lab.items]).items():
        used = {code for place in places for code in lab.items[place].picture.codes}
        values[f"PSNR in dB, {kind}"] = mean([ratios[place] for place in places])
        values[f"SSIM, {kind}"] = mean([structures[place] for place in places])
        if unlike:
            values[f"LPIPS, {kind}"] = mean([unlike[place] for place in places])
        share = len(used) / lab.leon.image_tokenizer.codes
        values[f"share of codes in use, {kind}"] = Value(value=share, count=len(places))
    further, no_rfid = rebuilt_distance(lab)
    rows = [(item.image, image) for item, image in zip(lab.items, after, strict=True)]
    return Found(
        values=values | further,
        notes=[lack for lack in (no_lpips, no_rfid) if lack],
        pictures={"before-after": sheet_of(rows)},
    )


def structure(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
    """SSIM of each pair, by torchmetrics. Raises UserError where that is not installed."""
    try:
        from torchmetrics.functional import image as metrics
    except ImportError as error:
        raise UserError(
            "SSIM needs torchmetrics, which is not installed; pip install 'cm3leon[eval]'"
        ) from error
    ssim = cast(Callable[..., Tensor], metrics.structural_similarity_index_measure)
    found: list[float] = []
    for start in range(0, len(before), GROUP):
        some = slice(start, start + GROUP)
        sides = [
            torch.stack([to_pixels(one) for one in images[some]]) for images in (before, after)
        ]
        found += ssim(*sides, data_range=2.0, reduction="none").flatten().tolist()
    return found


def retrieval(lab: Lab) -> Found:
    """What documents in front of a prompt are worth: bits of a picture behind those found by its
    caption, behind as many drawn by lot from the memory, and behind none."""
    count, memory = lab.asked.retrieve, lab.memory
    if not count or memory is None:
        raise UserError("there is no memory to retrieve from; name one with --memory")
    fronts = lab.fronts(lab.items, count)
    by_lot = lots(memory)
    others = [
        fitting(
            lab.leon.codec,
            item.caption,
            [
                memory.document(name)
                for name in draw(
                    by_lot.get(kind_of(item.metadata), []), item.metadata["id"], len(front)
                )
            ],
        )
        for item, front in zip(lab.items, fronts, strict=True)
    ]
    bits = {
        f"{count} retrieved": picturebits_of(lab, fronts),
        f"{count} random": picturebits_of(lab, others),
        "none": picturebits_of(lab, [[] for _ in lab.items]),
    }
    codes = [float(lab.leon.codec.picture_codes)] * len(lab.items)
    values = {f"bits an image token, {name}": mean(each, codes) for name, each in bits.items()}
    for one, other in combinations(bits, 2):
        less = [a - b for a, b in zip(bits[one], bits[other], strict=True)]
        values[f"{one} less {other}"] = mean(less, codes)
    short = sum(len(front) < count for front in fronts)
    return Found(values=values, notes=[f"{short:,} prompts had fewer than {count} documents"])
