"""Perplexity: bits of images given captions, and of captions given images.

Data path: evaluation context -> prompts -> codec -> `cm3leon.likelihood`, under the grammars of the
tasks.
"""

from collections.abc import Sequence

from cm3leon import grammar, likelihood, prompts
from cm3leon.likelihood import Written
from eval.context import EvalContext, Item
from eval.report import MetricResult, Value, mean
from eval.stats import by_kind, kind_of
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture

GROUP = 32  # items that are scored together


def perplexity(context: EvalContext) -> MetricResult:
    """Compute bits of images given captions and of captions given images (`cm3leon.likelihood`).

    Images are scored given their first caption, and given that of another image, which shows how
    much the caption matters; also after retrieved documents, if the run has a memory.
    """
    items, codec = context.items, context.leon.codec
    none: list[list[Document]] = [[] for _ in items]
    image_bits = picturebits_of(context, none)
    other_bits = picturebits_of(context, none, captions=captions_of_others(items))
    captions = [written_caption(codec, item.caption, item.picture) for item in items]
    caption_bits = bits_of(context, captions, "captions")
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
    count = context.asked.retrieve
    if count and context.memory is not None:
        helped = picturebits_of(context, context.fronts(context.items, count))
        codes = [float(codec.picture_codes)] * len(items)
        values[f"bits an image token, all, {count} retrieved"] = mean(helped, codes)
        less = [a - b for a, b in zip(helped, image_bits, strict=True)]
        values[f"the same less none retrieved, {count} retrieved"] = mean(less, codes)
    return MetricResult(values=values)


def picturebits_of(
    context: EvalContext,
    fronts: Sequence[Sequence[Document]],
    captions: Sequence[str] | None = None,
) -> list[float]:
    """Return bits of every item's codes given its first caption, after some documents.

    `captions` replaces the items' own captions.
    """
    captions = captions or [item.caption for item in context.items]
    written = [
        written_picture(context.leon.codec, caption, item.picture, front)
        for caption, item, front in zip(captions, context.items, fronts, strict=True)
    ]
    return bits_of(context, written, "pictures")


def captions_of_others(items: Sequence[Item]) -> list[str]:
    """Return for each item the first caption of another item of the same style and another family.

    It is the next such item in cyclic order; if there is none, the next with another caption.
    """

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


def bits_of(context: EvalContext, written: Sequence[likelihood.Written], what: str) -> list[float]:
    """Return the bits of each continuation, summed over its ids."""
    found: list[float] = []
    steps = context.steps(f"bits of {what}")
    for start in range(0, len(written), GROUP):
        some = likelihood.bits(context.leon.model, list(written[start : start + GROUP]))
        found += [float(tokens_L.sum()) for tokens_L in some]
        if steps is not None:
            steps(len(found), len(written))
    return found


def written_picture(
    codec: Codec, caption: str, picture: Picture, retrieved: Sequence[Document] = ()
) -> Written:
    """Return an image as a continuation of text-to-image, with `retrieved` before the prompt."""
    return _painted(codec, codec.open(prompts.paint(caption)[0], retrieved), picture)


def written_edit(codec: Codec, instruction: str, source: Picture, target: Picture) -> Written:
    """Return the target image as a continuation of an edit."""
    return _painted(codec, codec.open(prompts.change(instruction, source)[0]), target)


def _painted(codec: Codec, prompt: tuple[int, ...], picture: Picture) -> Written:
    codes = [code for code in picture.codes if isinstance(code, int)]
    ids = tuple(codec.vocabulary.image_id(code) for code in codes)
    return Written(prompt, ids, grammar.picture(codec.vocabulary, len(ids)))


def written_caption(codec: Codec, caption: str, picture: Picture) -> Written:
    """Return a caption and the stop id after it as a continuation of captioning."""
    row = codec.encode(prompts.described(caption, picture))
    ((start, end),) = row.fields
    ids = (*row.ids[start:end], codec.vocabulary.eoss_id)
    rule = grammar.text(codec.vocabulary, len(ids))  # the text's ids and the stop id
    return Written(codec.infill(prompts.describe(picture)), ids, rule)
