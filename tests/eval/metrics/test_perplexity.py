"""Whose caption stands in for an item's own, when it is asked how much the caption counts."""

from typing import Any

from PIL import Image

from eval.context import Item
from eval.metrics.perplexity import captions_of_others
from tokenizer.document import Picture


def item(caption: str, **metadata: Any) -> Item:
    table = {"captions": [caption], **metadata}
    return Item(metadata=table, image=Image.new("RGB", (1, 1)), picture=Picture((0,)))


def test_the_next_of_the_style_and_another_family_gives_its_caption() -> None:
    items = [
        item("fox, flat", style="flat", family="fox"),
        item("red fox, flat", style="flat", family="fox"),
        item("owl, 3D", style="3d", family="owl"),
        item("cat, flat", style="flat", family="cat"),
    ]
    assert captions_of_others(items) == ["cat, flat", "cat, flat", "cat, flat", "fox, flat"]


def test_without_families_another_caption_will_do() -> None:
    assert captions_of_others([item("a"), item("a"), item("b")]) == ["b", "b", "a"]
    assert captions_of_others([item("a")]) == ["a"]
