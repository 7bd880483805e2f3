"""The measures of what the model says: captions, and answers to questions.

A `Lab` in, what was `Found` out. Captions are greedy; answers have the model's own sampling, and
seeds that count from the run's.
"""

from collections.abc import Sequence

from eval.context import Lab
from eval.metrics.captions import Said, describe, words
from eval.metrics.coco_caption import caption_scores, caption_values, check_scorers
from eval.metrics.perplexity import GROUP
from eval.metrics.vqa import accuracies, answer_values
from eval.report import SHOWN, Found, Value, mean
from eval.stats import evenly
from tokenizer.errors import UserError
from tokenizer.pixels import sheet


def caption(lab: Lab) -> Found:
    """Greedy captions against the item's own: scores of the field where they can be computed, and
    how often label and style are named."""
    said: list[str] = []
    steps = lab.steps("captions")
    for start in range(0, len(lab.items), GROUP):
        group = lab.items[start : start + GROUP]
        fronts = lab.fronts_by_picture(group, lab.asked.retrieve)
        pictures = [item.picture for item in group]
        said += describe(lab.leon.model, lab.leon.codec, pictures, fronts)
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
    values: dict[str, Value] = {}
    if any(one.label for one in rows):
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
    further, notes = _scores(lab, said)
    results = [{"image_id": plain_id(one.id), "caption": one.caption} for one in rows]
    return Found(
        values=values | further,
        notes=notes,
        pictures={"said-and-wanted": shown},
        results=results,
    )


def _scores(lab: Lab, said: Sequence[str]) -> tuple[dict[str, Value], Sequence[str]]:
    """The field's scores against all captions of each picture, or why there are none."""
    try:
        check_scorers()
        found = caption_scores(
            {item.metadata["id"]: item.metadata["captions"] for item in lab.items},
            {item.metadata["id"]: text for item, text in zip(lab.items, said, strict=True)},
        )
    except UserError as error:
        return {}, [f"no scores of the field: {error}"]
    return caption_values(found), found.notes


def vqa(lab: Lab) -> Found:
    """Answers to questions, right as their publishers count it; to the corpus's own where they are
    the same once normalised as VQA's are."""
    steps = lab.steps("answers")
    said: list[str] = []
    for place, one in enumerate(lab.questions):
        said += lab.leon.answer(one.item.image, one.asking.question, seed=lab.seed_of(place))
        if steps is not None:
            steps(len(said), len(lab.questions))
    asked = [one.asking for one in lab.questions]
    right = accuracies(said, [one.answers for one in asked], lab.source.counting)
    chosen = evenly(range(len(said)), SHOWN)
    labels = [f"{asked[i].question} {said[i]} | {asked[i].answers[0]}" for i in chosen]
    shown = sheet([lab.questions[i].item.image for i in chosen], 6, labels)
    key = "image" if lab.source.counting == "vizwiz" else "question_id"
    return Found(
        values=answer_values(right, [one.kind for one in asked]),
        pictures={"question-said-and-wanted": shown},
        results=[
            {key: plain_id(one.id), "answer": text} for one, text in zip(asked, said, strict=True)
        ],
    )


def plain_id(name: str) -> str | int:
    """An id as its publisher wrote it: COCO's are numbers, which its own scorers insist on."""
    return int(name) if name.isdecimal() and str(int(name)) == name else name
