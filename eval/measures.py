"""The measures that need nothing beyond the model, the retriever's encoder and the corpus.

A `Lab` in, figures with notes and pictures out; `runs` writes them down. What a measure paints or
says has the model's own sampling, and seeds that count from the run's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from cm3leon import likelihood
from eval.bits import written_caption, written_picture
from eval.captions import Said, describe, words
from eval.figures import by_kind, evenly, kind_of
from eval.lab import Item, Lab
from eval.reconstruction import psnr
from eval.report import Value, mean
from eval.retrieval import draw, fitting, lots
from retrieval.embed import unit
from tokenizer.document import Document
from tokenizer.errors import UserError
from tokenizer.pixels import sheet, to_pixels

GROUP = 32  # things that are scored together
SHOWN = 24  # pictures on a sheet
PART = (
    4  # the hole of an infilling begins after a PART-th of the side, and ends as far from the end
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a measure found."""

    values: Mapping[str, Value]
    notes: Sequence[str] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict[str, Image.Image])


def perplexity(lab: Lab) -> Found:
    """Bits of pictures given their first caption, as `cm3leon.likelihood` defines them, and of
    captions given their picture; with documents in front too, where the run has a memory."""
    items, codec = lab.items, lab.leon.codec
    image_bits = picture_bits(lab, [[] for _ in items])
    captions = [written_caption(codec, item.caption, item.picture) for item in items]
    caption_bits = _bits(lab, captions, "captions")
    sizes = [float(len(item.caption.encode())) for item in items]
    values: dict[str, Value] = {}
    for kind, places in by_kind([kind_of(item.metadata) for item in items]).items():
        codes = [float(codec.picture_codes)] * len(places)
        values[f"bits an image token, {kind}"] = mean([image_bits[i] for i in places], codes)
        texts, lengths = [caption_bits[i] for i in places], [sizes[i] for i in places]
        values[f"bits a caption byte, {kind}"] = mean(texts, lengths)
    count = lab.asked.retrieve
    if count and lab.memory is not None:
        helped = picture_bits(lab, lab.fronts(lab.items, count))
        codes = [float(codec.picture_codes)] * len(items)
        values[f"bits an image token, all, {count} retrieved"] = mean(helped, codes)
        less = [a - b for a, b in zip(helped, image_bits, strict=True)]
        values[f"the same less none retrieved, {count} retrieved"] = mean(less, codes)
    return Found(values=values)


def picture_bits(lab: Lab, fronts: Sequence[Sequence[Document]]) -> list[float]:
    """Bits of every item's codes given its first caption behind some documents."""
    written = [
        written_picture(lab.leon.codec, item.caption, item.picture, front)
        for item, front in zip(lab.items, fronts, strict=True)
    ]
    return _bits(lab, written, "pictures")


def _bits(lab: Lab, written: Sequence[likelihood.Written], what: str) -> list[float]:
    found: list[float] = []
    steps = lab.steps(f"bits of {what}")
    for start in range(0, len(written), GROUP):
        some = likelihood.bits(lab.leon.model, list(written[start : start + GROUP]))
        found += [float(tokens_L.sum()) for tokens_L in some]
        if steps is not None:
            steps(len(found), len(written))
    return found


def reconstruction(lab: Lab) -> Found:
    """What the codebook leaves of a picture: PSNR, SSIM, and the share of codes in use."""
    after = [lab.leon.to_image(item.picture) for item in lab.items]
    ratios = [psnr(item.image, image) for item, image in zip(lab.items, after, strict=True)]
    likeness = structure([item.image for item in lab.items], after)
    values: dict[str, Value] = {}
    for kind, places in by_kind([kind_of(item.metadata) for item in lab.items]).items():
        used = {code for place in places for code in lab.items[place].picture.codes}
        values[f"PSNR in dB, {kind}"] = mean([ratios[place] for place in places])
        values[f"SSIM, {kind}"] = mean([likeness[place] for place in places])
        share = len(used) / lab.leon.image_tokenizer.codes
        values[f"share of codes in use, {kind}"] = Value(value=share, count=len(places))
    rows = [(item.image, image) for item, image in zip(lab.items, after, strict=True)]
    return Found(values=values, pictures={"before-after": _sheet(rows)})


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


def caption(lab: Lab) -> Found:
    """Greedy captions against the item's own: scores of the field where they can be computed, and
    how often label and style are named."""
    said: list[str] = []
    steps = lab.steps("captions")
    for start in range(0, len(lab.items), GROUP):
        group = [item.picture for item in lab.items[start : start + GROUP]]
        said += describe(lab.leon.model, lab.leon.codec, group)
        if steps is not None:
            steps(len(said), len(lab.items))
    rows = [
        Said(
            id=item.metadata["id"],
            label=str(item.metadata.get("label", "")),
            wanted=item.caption,
            caption=text,
        )
        for item, text in zip(lab.items, said, strict=True)
    ]
    values = {
        "label named": mean([float(one.names_label) for one in rows]),
        "style named": mean([float(one.names_style) for one in rows]),
        "any word of the label named": mean(
            [float(bool(words(one.label) & words(one.caption))) for one in rows]
        ),
    }
    labels = [f"{one.caption} | {one.wanted}" for one in rows]
    chosen = evenly(range(len(rows)), SHOWN)
    images = [lab.items[place].image for place in chosen]
    shown = sheet(images, 6, [labels[place] for place in chosen])
    return Found(values=values, pictures={"said-and-wanted": shown})


def edit(lab: Lab) -> Found:
    """How near an edit comes to its real target, beside doing nothing and beside the target through
    the codebook; by PSNR and by the cosine of the retriever's encoder."""
    steps = lab.steps("edits")
    made: list[Image.Image] = []
    for place, change in enumerate(lab.changes):
        seed = lab.seed_of(place)
        made += lab.leon.edit(change.source.image, change.instruction, seed=seed)
        if steps is not None:
            steps(len(made), len(lab.changes))
    sides = {
        "the edit": made,
        "doing nothing": [lab.leon.to_image(one.source.picture) for one in lab.changes],
        "the target's reconstruction": [
            lab.leon.to_image(one.target.picture) for one in lab.changes
        ],
    }
    targets = [one.target for one in lab.changes]
    values = _nearness(lab, targets, sides, gain=("the edit", "doing nothing"))
    rows = [
        (change.source.image, image, change.target.image)
        for change, image in zip(lab.changes, made, strict=True)
    ]
    return Found(values=values, pictures={"source-edit-target": _sheet(rows)})


def infill(lab: Lab) -> Found:
    """How near a picture whose middle was painted anew comes to the real one, beside leaving the
    middle grey and beside the real one through the codebook."""
    steps, size = lab.steps("infillings"), lab.leon.image_tokenizer.size
    box = (size // PART, size // PART, size - size // PART, size - size // PART)
    made, grey, rebuilt = list[Image.Image](), list[Image.Image](), list[Image.Image]()
    for place, item in enumerate(lab.items):
        seed = lab.seed_of(place)
        made += lab.leon.infill(item.image, box, item.caption, seed=seed)
        for images, patch in ((grey, None), (rebuilt, lab.leon.to_image(item.picture))):
            image = item.image.copy()
            image.paste((128, 128, 128) if patch is None else patch.crop(box), box)
            images.append(image)
        if steps is not None:
            steps(len(made), len(lab.items))
    sides = {"the infilling": made, "grey": grey, "the real middle's reconstruction": rebuilt}
    values = _nearness(lab, lab.items, sides, gain=("the infilling", "grey"))
    rows = [
        (blank, image, item.image) for blank, image, item in zip(grey, made, lab.items, strict=True)
    ]
    return Found(values=values, pictures={"hole-infilling-real": _sheet(rows)})


def score(lab: Lab) -> Found:
    """The cosine of a caption with what was painted of it, beside the real picture's, also through
    the codebook, and that of a picture painted of another caption."""
    texts_DE = lab.embedder.texts([item.caption for item in lab.items])
    other = [*lab.painted[1:], lab.painted[0]]
    sides = {
        "painted": lab.painted,
        "real": [item.image for item in lab.items],
        "real, through the codebook": [lab.leon.to_image(item.picture) for item in lab.items],
        "painted of another caption": other,
    }
    values = {
        name: mean((texts_DE * lab.embedder.pictures(images)).sum(1).tolist())
        for name, images in sides.items()
    }
    rows = list(zip(lab.painted, sides["real"], strict=True))
    return Found(values=values, pictures={"painted-real": _sheet(rows)})


def vqa(lab: Lab) -> Found:
    """Answers to the corpus's questions, right where they are the same words."""
    steps = lab.steps("answers")
    said: list[str] = []
    for place, one in enumerate(lab.questions):
        said += lab.leon.answer(one.item.image, one.question, seed=lab.seed_of(place))
        if steps is not None:
            steps(len(said), len(lab.questions))
    pairs = zip(said, lab.questions, strict=True)
    right = [float(normal(text) == normal(one.answer)) for text, one in pairs]
    kinds = by_kind([one.kind for one in lab.questions])
    values = {f"right, {kind}": mean([right[i] for i in places]) for kind, places in kinds.items()}
    chosen = evenly(range(len(said)), SHOWN)
    labels = [f"{lab.questions[i].question} {said[i]} | {lab.questions[i].answer}" for i in chosen]
    shown = sheet([lab.questions[i].item.image for i in chosen], 6, labels)
    return Found(values=values, pictures={"question-said-and-wanted": shown})


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
        f"{count} retrieved": picture_bits(lab, fronts),
        f"{count} random": picture_bits(lab, others),
        "none": picture_bits(lab, [[] for _ in lab.items]),
    }
    codes = [float(lab.leon.codec.picture_codes)] * len(lab.items)
    values = {f"bits an image token, {name}": mean(each, codes) for name, each in bits.items()}
    for one, other in combinations(bits, 2):
        less = [a - b for a, b in zip(bits[one], bits[other], strict=True)]
        values[f"{one} less {other}"] = mean(less, codes)
    short = sum(len(front) < count for front in fronts)
    return Found(values=values, notes=[f"{short:,} prompts had fewer than {count} documents"])


def normal(text: str) -> str:
    """An answer as it is compared."""
    return " ".join(text.casefold().split()).strip(" .")


def _nearness(
    lab: Lab,
    targets: Sequence[Item],
    sides: Mapping[str, Sequence[Image.Image]],
    gain: tuple[str, str],
) -> dict[str, Value]:
    """PSNR and cosine of each side with the targets; of two sides also what one gains on the
    other."""
    real = [target.image for target in targets]
    real_DE = unit(lab.embedder.pictures(real))
    found: dict[tuple[str, str], list[float]] = {}
    for name, images in sides.items():
        pairs = zip(images, real, strict=True)
        found["PSNR in dB", name] = [psnr(image, target) for image, target in pairs]
        vectors_DE = unit(lab.embedder.pictures(images))
        found["cosine", name] = (vectors_DE * real_DE).sum(1).tolist()
    values = {f"{name}: {measure}": mean(each) for (measure, name), each in found.items()}
    for measure in ("PSNR in dB", "cosine"):
        pairs = zip(*(found[measure, name] for name in gain), strict=True)
        values[f"{gain[0]} less {gain[1]}: {measure}"] = mean([a - b for a, b in pairs])
    return values


def _sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Some rows of pictures that belong together, evenly chosen."""
    chosen = [rows[place] for place in evenly(range(len(rows)), SHOWN)]
    across = len(chosen[0])
    return sheet([image for row in chosen for image in row], across * max(1, 8 // across))
