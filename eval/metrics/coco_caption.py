"""Caption scores against references: BLEU, METEOR, ROUGE-L, CIDEr, and SPICE if available.

Data path: captions by image -> pycocoevalcap's tokenizer (Java) -> its scorers, of which METEOR and
SPICE are Java too -> a score of the corpus and one per image, from which `caption_values` computes
confidence intervals. It prints nothing, downloads nothing, and leaves no process running.
"""

# Shapes: N = images, C = counts per image

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.report import Value, mean, resampled
from tokenizer.errors import UserError

Counts = NDArray[np.float64]

LONGEST = 4  # longest n-grams of BLEU
# METEOR 1.5 for English: the parameters in its jar, to the last bit (Denkowski and Lavie 2014)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS_M = np.array((1.0, 0.6, 0.8, 0.6))  # matches of words, stems, synonyms, paraphrases
BLEU = tuple(f"BLEU-{longest}" for longest in range(1, LONGEST + 1))
MEANS = ("ROUGE-L", "CIDEr", "SPICE")  # the corpus score is the mean over images
# Files that pycocoevalcap would download when it first computes SPICE.
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Tokens = dict[int, list[str]]
"""Captions of each image, by its index: tokens joined by spaces."""
Scored = tuple[Any, Any]
"""Score of the corpus, and scores of each image, as pycocoevalcap returns them."""


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores by pycocoevalcap's names: between 0 and 1, except CIDEr, which goes up to 10."""

    ids: tuple[str, ...]
    corpus: Mapping[str, float]
    """Of all images. BLEU and METEOR count over all captions and are not the means of `each`."""
    each: Mapping[str, tuple[float, ...]]
    """Of each image, in the order of `ids`."""
    sums: Mapping[str, Sequence[tuple[float, ...]]]
    """Counts of each image that BLEU and METEOR add up; `bleu` and `meteor` score their sums."""
    notes: tuple[str, ...] = ()


def check_scorers() -> None:
    """Raise UserError if captions cannot be scored here; to be called before generating any."""
    if find_spec("pycocoevalcap") is None:
        raise UserError(
            "caption scores need pycocoevalcap, which is not installed; pip install 'cm3leon[eval]'"
        )
    if shutil.which("java") is None:
        raise UserError(
            "caption scores need Java (the tokenizer and METEOR run in it), and the PATH has no "
            "'java'; install a Java runtime, such as Debian's default-jre-headless"
        )


def caption_scores(
    references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]
) -> CaptionScores:
    """Score one caption per image against people's, both by the image's id.

    The result is in the order of `references`. White space of any kind, including line breaks,
    counts as one space. CIDEr weights words by the number of these images whose references contain
    them, so scores of other images, or of fewer, are on another scale.

    Raises:
        UserError: Java or pycocoevalcap is missing, Java fails, or an image lacks references or a
            caption.
    """
    check_scorers()
    _check_sides(references, candidates)
    ids = tuple(references)
    wanted = _tokens([references[name] for name in ids])
    said = _tokens([[candidates[name]] for name in ids])
    found, sums = _counted(wanted, said)
    notes: list[str] = []
    try:
        found["SPICE"] = _spice(wanted, said)
    except UserError as error:
        notes.append(f"SPICE is left out: {error}")
    if len(ids) == 1:
        notes.append("CIDEr is 0 for a single image: no word tells it from others")
    return CaptionScores(
        ids=ids,
        corpus={name: float(whole) for name, (whole, _) in found.items()},
        each={name: tuple(map(float, parts)) for name, (_, parts) in found.items()},
        sums=sums,
        notes=tuple(notes),
    )


def caption_values(scores: CaptionScores) -> dict[str, Value]:
    """Return the scores with confidence intervals over images.

    CIDEr's word weights stay the same for all resampled sets of images.
    """
    count = len(scores.ids)
    bleu_NC, meteor_NC = (np.asarray(scores.sums[name]) for name in ("BLEU", "METEOR"))
    values = {
        name: resampled(lambda some, longest=place: bleu(bleu_NC[some].sum(0), longest), count)
        for place, name in enumerate(BLEU, start=1)
    }
    values["METEOR"] = resampled(lambda some: meteor(meteor_NC[some].sum(0)), count)
    values.update({name: mean(scores.each[name]) for name in MEANS if name in scores.each})
    return values


def _check_sides(references: Mapping[str, Sequence[str]], candidates: Mapping[str, str]) -> None:
    if not candidates:
        raise UserError("there is no caption to score; give one for each image")
    bare = [name for name in candidates if not references.get(name)]
    mute = [name for name in references if name not in candidates]
    for names, lack in ((bare, "references"), (mute, "caption to score")):
        if names:
            raise UserError(
                f"{len(names):,} images, {names[0]!r} for one, have no {lack}; "
                "give both for the same images"
            )


def _plain(text: str) -> str:
    """Return a text on one line: all white space as spaces, lone surrogates replaced."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _tokens(captions: Sequence[Sequence[str]]) -> Tokens:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {
        place: [{"caption": _plain(text)} for text in some] for place, some in enumerate(captions)
    }
    rows[-1] = [{"caption": "last"}]  # returned only if Java reached the last line
    with _quiet():
        try:
            found: Tokens = PTBTokenizer().tokenize(rows)
        except OSError as error:  # it writes into its package folder
            raise UserError(f"pycocoevalcap's tokenizer cannot run ({error})") from error
    if found.pop(-1, None) != ["last"]:
        raise UserError(
            f"Java gave {sum(map(len, found.values())):,} of {sum(map(len, captions)):,} captions "
            "back in tokens; see whether 'java -version' works"
        )
    return found


def _counted(
    wanted: Tokens, said: Tokens
) -> tuple[dict[str, Scored], dict[str, list[tuple[float, ...]]]]:
    """Return all scores but SPICE, and the counts of the scores that are not means."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = BleuScorer(n=LONGEST)
    for place, (text,) in said.items():
        scorer += (text, wanted[place])
    scored = zip(*scorer.compute_score(option="closest", verbose=0), strict=True)
    found: dict[str, Scored] = dict(zip(BLEU, scored, strict=True))
    sums = {"BLEU": [_bleu_counts(one) for one in scorer.ctest]}
    with _meteor() as java:
        found["METEOR"] = java.compute_score(wanted, said)
        sums["METEOR"] = [meteor_counts(line) for line in java.lines]
    found["ROUGE-L"] = Rouge().compute_score(wanted, said)
    found["CIDEr"] = Cider().compute_score(wanted, said)
    return found, sums


def _bleu_counts(one: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the counts of a caption from BleuScorer's record of it."""
    said: int = one["testlen"]
    sizes: list[int] = one["reflen"]
    _, nearest = min((abs(size - said), size) for size in sizes)
    return (said, nearest, *one["guess"], *one["correct"])


@contextmanager
def _meteor() -> Generator[Any]:
    """Yield METEOR's scorer, and end its Java process in any case."""
    from pycocoevalcap.meteor.meteor import Meteor

    class Listening(Meteor):
        """METEOR scorer that keeps Java's statistics of each caption."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def _stat(self, hypothesis_str: str, reference_list: Sequence[str]) -> str:
            self.lines.append(super()._stat(hypothesis_str, reference_list))
            return self.lines[-1]

    scorer: Any = Listening()
    java = scorer.meteor_p
    try:
        yield scorer
    except (OSError, ValueError) as error:
        java.kill()
        told = java.stderr.read().decode(errors="replace").strip().partition("\n")[0]
        raise UserError(f"METEOR's Java process gave no score ({told or error})") from error
    finally:
        if scorer.lock.locked():  # after an error; its __del__ would wait for ever
            scorer.lock.release()
        java.kill()
        java.wait()
        for pipe in (java.stdin, java.stdout, java.stderr):
            with suppress(OSError):
                pipe.close()


def _spice(wanted: Tokens, said: Tokens) -> Scored:
    """Compute SPICE.

    Raises UserError if its jars are not in pycocoevalcap's folder, or if it fails.
    """
    from pycocoevalcap.spice import spice

    lib = Path(str(spice.__file__)).parent / "lib"
    missing = [jar for jar in SPICE_JARS if not (lib / jar).is_file()]
    if missing:
        raise UserError(f"{missing[0]} is not in pycocoevalcap's spice/lib")
    with _quiet():
        try:
            whole, parts = spice.Spice().compute_score(wanted, said)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise UserError(f"its Java process failed ({error})") from error
    return whole, [one["All"]["f"] for one in parts]  # in order of index


@contextmanager
def _quiet() -> Generator[None]:
    """Suppress all output to stdout and stderr, also of child processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with open(os.devnull, "wb") as nothing:
            for number, _ in kept:
                os.dup2(nothing.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in kept:
            os.dup2(copy, number)
            os.close(copy)


def bleu(sums_C: Counts, longest: int) -> float:
    """Compute BLEU of n-grams up to `longest` from summed counts.

    The counts of captions are: their tokens, the tokens of the nearest references; for each length
    up to LONGEST the n-grams, then the matching n-grams. The small constants are pycocoevalcap's.
    """
    said, wanted = sums_C[:2]
    grams, right = np.split(sums_C[2:], 2)
    shares = (right + 1e-15) / (grams + 1e-9)
    short = (said + 1e-15) / (wanted + 1e-9)
    whole = shares[:longest].prod() ** (1 / longest)
    return float(whole * np.exp(min(0.0, 1 - 1 / short)))


def meteor_counts(line: str) -> tuple[float, ...]:
    """Parse METEOR's statistics of a caption into counts that can be summed.

    A caption that equals its reference word for word counts as no chunk, as in METEOR's own sums.
    """
    *counts, chunks, said, wanted = map(float, line.split())
    whole = chunks == 1 and [said, wanted] == counts[:2]
    return (*counts, 0.0 if whole else chunks, said, wanted)


def meteor(sums_C: Counts) -> float:
    """Compute METEOR from summed counts of captions and of their nearest references.

    The counts are: the tokens of each side, the function words among these; for each type of match,
    the matched content words of each side, then the function words; the chunks of matched words in
    the same order, and the matched words of each side.
    """
    lengths, matched, (chunks, *words) = np.split(sums_C, (4, 20))
    weights = np.array((DELTA, 1 - DELTA))  # of content words, of function words
    found = WEIGHTS_M @ (weights @ matched.reshape(4, 2, 2))
    if not found.all():
        return 0.0
    precision, recall = found / (weights @ (lengths[:2] - lengths[2:], lengths[2:]))
    agreed = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    broken = 2 * chunks / sum(words)
    return float(agreed * (1 - GAMMA * broken**BETA))
