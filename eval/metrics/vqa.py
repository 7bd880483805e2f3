"""VQA accuracy: the model's answers against people's, by the evaluation code of each set.

Three ways of counting:

- VQA v2 and OK-VQA: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py. OK-VQA's
  human answers are taken from their field `answer`, which its authors have stemmed; the model's
  answer is not stemmed, as in that file (OpenFlamingo stems it with rules of its own, and gets
  other scores).
- VizWiz: its authors' vqaEval.py, where the model's answer is normalised and human answers stay as
  they were published. "unanswerable" is an answer like any other.
- One answer per question, as in our corpus: correct if both are the same after normalisation.

All oddities of those files are kept, so that scores are comparable with published ones.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from eval.context import EvalContext
from eval.metrics.caption import plain_id
from eval.report import SHOWN, MetricResult, Value, mean
from eval.stats import by_kind, evenly
from tokenizer.pixels import sheet

_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'  # without the apostrophe and the colon
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official pattern intends a lookbehind before the point, but has `(?!<=\d)`, which always
# matches: a point is removed if no digit follows. Its flag, 32, is passed as the maximum count.
_POINT, _MOST_POINTS = re.compile(r"\.(?!\d)"), 32

# Each is also recognised with any one of its apostrophes left out. The official table also has
# capitalised forms of "I'm", "I've" and "I'd've"; they never match the lower-cased text.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _table() -> dict[str, str]:
    found = {"somebody'd": "somebodyd"}  # reversed in the official table
    for word in _CONTRACTED.split():
        for place, letter in enumerate(word):
            if letter == "'":
                found[word[:place] + word[place + 1 :]] = word
    return found


_CONTRACTIONS = _table()


def normal(text: str) -> str:
    """Normalise an answer as the official code: marks, number words, articles, contractions."""
    return _plain_words(_without_marks(_one_line(text)))


def vqa_v2(said: str, people: Sequence[str]) -> float:
    """Compute accuracy by VQA v2's code.

    Each human answer is left out in turn; the model's answer scores a third for every other human
    answer that is the same, at most 1; the result is the mean. Answers are normalised only if the
    human answers are not all the same.
    """
    said, people = _one_line(said), [_one_line(one) for one in people]
    if len(set(people)) > 1:
        said, people = normal(said), [normal(one) for one in people]
    return _agreement(said, people)


def vizwiz(said: str, people: Sequence[str]) -> float:
    """Compute accuracy by VizWiz's code.

    It is `vqa_v2` with the model's answer normalised and human answers as published.
    """
    return _agreement(normal(said), people)


def same(said: str, people: Sequence[str]) -> float:
    """Return 1 if the model's answer is one of the human answers, all normalised, else 0."""
    return float(normal(said) in {normal(one) for one in people})


COUNTINGS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "vqa": vqa_v2,
    "ok-vqa": vqa_v2,
    "vizwiz": vizwiz,
    "corpus": same,
}


def accuracies(said: Sequence[str], people: Sequence[Sequence[str]], counting: str) -> list[float]:
    """Return the accuracy of each answer, by one of `COUNTINGS`."""
    of = COUNTINGS[counting]
    return [of(text, answers) for text, answers in zip(said, people, strict=True)]


def answer_values(right: Sequence[float], kinds: Sequence[str]) -> dict[str, Value]:
    """Return the mean of `accuracies` for every kind of question, and for all."""
    places = by_kind(kinds)
    return {f"accuracy, {kind}": mean([right[i] for i in of]) for kind, of in places.items()}


def _agreement(said: str, people: Sequence[str]) -> float:
    alike = [one == said for one in people]
    shares = [min(1.0, (sum(alike) - own) / 3) for own in alike]
    return sum(shares) / len(shares)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    """Remove punctuation marks or replace them by spaces.

    A mark is removed if it occurs beside a space anywhere in the text, and all are if there is a
    comma between digits; otherwise a space replaces it.
    """
    number, found = _COMMA_IN_NUMBER.search(text) is not None, text
    for mark in _MARKS:
        bare = number or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if bare else " ")
    return _POINT.sub("", found, count=_MOST_POINTS)


def _plain_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa(context: EvalContext) -> MetricResult:
    """Score answers to questions by their publishers' code.

    Answers to the corpus's own questions are correct if they are equal after VQA's normalisation.
    """
    steps = context.steps("answers")
    said: list[str] = []
    for place, one in enumerate(context.questions):
        said += context.leon.answer(
            one.item.image, one.asking.question, seed=context.seed_of(place)
        )
        if steps is not None:
            steps(len(said), len(context.questions))
    asked = [one.asking for one in context.questions]
    right = accuracies(said, [one.answers for one in asked], context.source.counting)
    chosen = evenly(range(len(said)), SHOWN)
    labels = [f"{asked[i].question} {said[i]} | {asked[i].answers[0]}" for i in chosen]
    shown = sheet([context.questions[i].item.image for i in chosen], 6, labels)
    key = "image" if context.source.counting == "vizwiz" else "question_id"
    return MetricResult(
        values=answer_values(right, [one.kind for one in asked]),
        pictures={"question-said-and-wanted": shown},
        results=[
            {key: plain_id(one.id), "answer": text} for one, text in zip(asked, said, strict=True)
        ],
    )
