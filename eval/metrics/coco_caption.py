"""How near captions are to people's: BLEU, METEOR, ROUGE-L, CIDEr, and SPICE where it is at hand.

Captions by picture -> pycocoevalcap's tokenizer (Java) -> its scorers, of which METEOR and SPICE
are Java too -> a score of all and one a picture; `measures` makes figures of them. Nothing of it
prints, nothing is fetched, and no process is left behind.
"""

# Shapes: N = pictures, C = counts of one

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

LONGEST = 4  # n-grams of BLEU
# Of METEOR 1.5 for English: what its jar counts with, to the last bit (Denkowski and Lavie 2014)
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS_M = np.array((1.0, 0.6, 0.8, 0.6))  # the same word, stem, synonym, paraphrase
BLEU = tuple(f"BLEU-{longest}" for longest in range(1, LONGEST + 1))
MEANS = ("ROUGE-L", "CIDEr", "SPICE")  # these of all pictures are the means of each picture's
# What pycocoevalcap would fetch when it first computes SPICE.
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Tokens = dict[int, list[str]]
"""The captions of each picture, by its place: tokens with a space between."""
Scored = tuple[Any, Any]
"""A score of all pictures, and those of each, as pycocoevalcap gives them."""


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores by their names, as pycocoevalcap has them: shares, but CIDEr's goes up to 10."""

    ids: tuple[str, ...]
    corpus: Mapping[str, float]
    """Of all pictures. BLEU and METEOR count over all captions and are not the means of `each`."""
    each: Mapping[str, tuple[float, ...]]
    """Of each picture, in the order of `ids`."""
    sums: Mapping[str, Sequence[tuple[float, ...]]]
    """What BLEU and METEOR add up, of each picture; `bleu` and `meteor` score the sums."""
    notes: tuple[str, ...] = ()


def check_scorers() -> None:
    """Raises UserError where captions cannot be scored here; to be asked before there are any."""
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
    """Score one caption a picture against people's, both by the picture's id, in the order of
    `references`.

    White space of any kind, line breaks too, counts as one space. CIDEr weighs words by how many of
    these pictures' references have them: other pictures, or fewer, have another scale.

    Raises:
        UserError: Java or pycocoevalcap is missing, Java fails, a picture lacks a side.
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
        notes.append("CIDEr is 0 for a single picture: no word tells it from others")
    return CaptionScores(
        ids=ids,
        corpus={name: float(whole) for name, (whole, _) in found.items()},
        each={name: tuple(map(float, parts)) for name, (_, parts) in found.items()},
        sums=sums,
        notes=tuple(notes),
    )


def caption_values(scores: CaptionScores) -> dict[str, Value]:
    """Figures of the scores, with an interval over pictures. CIDEr's words keep their weights
    whatever pictures are drawn."""
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
        raise UserError("there is no caption to score; give one for each picture")
    bare = [name for name in candidates if not references.get(name)]
    mute = [name for name in references if name not in candidates]
    for names, lack in ((bare, "references"), (mute, "caption to score")):
        if names:
            raise UserError(
                f"{len(names):,} pictures, {names[0]!r} for one, have no {lack}; "
                "give both for the same pictures"
            )


def _plain(text: str) -> str:
    """On one line, whatever white space and half characters it holds."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _tokens(captions: Sequence[Sequence[str]]) -> Tokens:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {
        place: [{"caption": _plain(text)} for text in some] for place, some in enumerate(captions)
    }
    rows[-1] = [{"caption": "last"}]  # comes back where Java came to the end, every line in place
    with _quiet():
        try:
            found: Tokens = PTBTokenizer().tokenize(rows)
        except OSError as error:  # it writes into its own folder
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
    """All scores but SPICE, and what those add up that are no means."""
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
    """Of a caption as BleuScorer keeps it."""
    said: int = one["testlen"]
    sizes: list[int] = one["reflen"]
    _, nearest = min((abs(size - said), size) for size in sizes)
    return (said, nearest, *one["guess"], *one["correct"])


@contextmanager
def _meteor() -> Generator[Any]:
    """METEOR's scorer, and the end of its Java process whatever happens."""
    from pycocoevalcap.meteor.meteor import Meteor

    class Listening(Meteor):
        """Keeps what Java tells of each caption."""

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
        if scorer.lock.locked():  # after a mistake; its __del__ would wait for it for ever
            scorer.lock.release()
        java.kill()
        java.wait()
        for pipe in (java.stdin, java.stdout, java.stderr):
            with suppress(OSError):
                pipe.close()


def _spice(wanted: Tokens, said: Tokens) -> Scored:
    """Raises UserError where its jars do not lie in pycocoevalcap's folder, or it fails."""
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
    return whole, [one["All"]["f"] for one in parts]  # in the order of places


@contextmanager
def _quiet() -> Generator[None]:
    """Nothing is printed meanwhile, by child processes neither."""
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
    """BLEU of n-grams up to `longest`. Of captions: their tokens, the tokens of the nearest
    references; of each length up to LONGEST the n-grams, then those of them that are right.

    The small numbers are pycocoevalcap's.
    """
    said, wanted = sums_C[:2]
    grams, right = np.split(sums_C[2:], 2)
    shares = (right + 1e-15) / (grams + 1e-9)
    short = (said + 1e-15) / (wanted + 1e-9)
    whole = shares[:longest].prod() ** (1 / longest)
    return float(whole * np.exp(min(0.0, 1 - 1 / short)))


def meteor_counts(line: str) -> tuple[float, ...]:
    """What METEOR tells of one caption, ready to be added up. One that is its reference word for
    word counts as no chunk, as in METEOR's own sums."""
    *counts, chunks, said, wanted = map(float, line.split())
    whole = chunks == 1 and [said, wanted] == counts[:2]
    return (*counts, 0.0 if whole else chunks, said, wanted)


def meteor(sums_C: Counts) -> float:
    """METEOR. Of captions and of the references nearest to them: their tokens, the function words
    among these; of each way to match, the other words that match of each side, then the function
    words; the chunks of words in the same order, and the words of each side that match.
    """
    lengths, matched, (chunks, *words) = np.split(sums_C, (4, 20))
    weights = np.array((DELTA, 1 - DELTA))  # of a word, of a function word
    found = WEIGHTS_M @ (weights @ matched.reshape(4, 2, 2))
    if not found.all():
        return 0.0
    precision, recall = found / (weights @ (lengths[:2] - lengths[2:], lengths[2:]))
    agreed = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    broken = 2 * chunks / sum(words)
    return float(agreed * (1 - GAMMA * broken**BETA))
