"""The measures of what the model says: captions, and answers to questions.

A `Lab` in, what was `Found` out. Captions are greedy; answers have the model's own sampling, and
seeds that count from the run's.
"""

from eval.captions import Said, describe, words
from eval.figures import by_kind, evenly
from eval.lab import Lab
from eval.measures import GROUP
from eval.report import SHOWN, Found, mean
from tokenizer.pixels import sheet


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


def normal(text: str) -> str:
    """An answer as it is compared."""
    return " ".join(text.casefold().split()).strip(" .")
