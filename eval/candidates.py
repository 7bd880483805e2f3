"""What sample and rerank is worth: does the picked candidate show the thing that was asked for more
often than any candidate, and how often did one of them show it.

tars -> `choose` prompts -> candidates painted, drawn alike and (`mix`) half by CD-K -> the score
function picks -> the judge (`eval.families`), which is another network, says of each candidate
whether it is a hit -> `figures`.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from PIL import Image, ImageOps

from cm3leon import grammar, prompts
from cm3leon.candidates import Score, best, samplings
from cm3leon.generate import generate_batch
from cm3leon.pipeline import CM3Leon
from cm3leon.request import Request, Streams
from cm3leon.sampling import Sampling
from eval.families import Judge
from eval.figures import Figure, kind_of, ratio
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.pixels import fit, sheet

TOGETHER = 4  # prompts painted in one batch
SHOWN, CELL, FRAME = 12, 96, 4  # prompts on the sheet, and their pictures in pixels
PLAIN, MIXED = "alike", "mixed"

Progress = Callable[[int, int], None]
Drawn = list[tuple[int, Sampling]]  # of each candidate: its seed, and how it is drawn


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A prompt: a caption of the picture `id`, and the family that would be a hit."""

    id: str
    kind: str
    family: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates of one prompt: what the picker said of each, and whether the judge has a hit."""

    scores: tuple[float, ...]
    hits: tuple[bool, ...]

    def of(self, places: Sequence[int]) -> tuple[float, float, float]:
        """Whether the pick of the candidates at these places is a hit, the share of hits among
        them, and whether there is one."""
        hits = [self.hits[place] for place in places]
        picked = best([self.scores[place] for place in places])
        return float(hits[picked]), sum(hits) / len(hits), float(any(hits))


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A prompt with its pools by name, and the judge's word on the prompt's own picture."""

    asked: Asked
    own: bool
    pools: dict[str, Pool]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Shares of prompts, and differences of shares, with errors over prompts."""

    pick: Figure
    random: Figure
    any: Figure
    gain: Figure
    """Pick less random, prompt by prompt."""


def choose(
    listed: Iterable[Mapping[str, Any]], families: Set[str], count: int, seed: int
) -> list[Asked]:
    """`count` prompts of as many families, by lot: pictures in an order drawn from the seed, of
    each one of its captions drawn likewise. One prompt a family, or those with many variants (skin
    tones) would be most of the prompts; none of a family that is not in `families`.

    Raises UserError where there are fewer.
    """
    draw = random.Random(seed)
    fitting = [one for one in listed if one.get("family") in families and one.get("captions")]
    found: dict[str, Asked] = {}
    for one in draw.sample(fitting, len(fitting)):
        prompt, family = draw.choice(one["captions"]), one["family"]
        asked = Asked(id=one["id"], kind=kind_of(one), family=family, prompt=prompt)
        found.setdefault(family, asked)
    if len(found) < count:
        raise UserError(
            f"{count} prompts are asked for, but only {len(found)} families of theirs are among "
            "other real pictures too; ask for fewer, or give another split or ids"
        )
    return list(islice(found.values(), count))


def pools(sampling: Sampling, candidates: int, mix: bool, seed: int) -> dict[str, Drawn]:
    """How the candidates of a prompt are drawn, by the name of the pool. What stands in both is
    one candidate, so that the pools are paired."""
    seeds = range(seed, seed + candidates)
    found = {PLAIN: list(zip(seeds, samplings(sampling, candidates, False), strict=True))}
    if mix:
        found[MIXED] = list(zip(seeds, samplings(sampling, candidates, True), strict=True))
    return found


def measure(
    leon: CM3Leon,
    judge: Judge,
    score: Score,
    asked: Sequence[Asked],
    own: Mapping[str, Image.Image],
    *,
    candidates: int,
    mix: bool,
    seed: int,
    progress: Progress,
) -> tuple[list[Judged], list[list[Image.Image]]]:
    """Paint, score and judge; also the candidates of the first `SHOWN` prompts' last pool.

    The candidates of prompt k have the seeds from `seed + k * candidates` on.
    """
    judged: list[Judged] = []
    shown: list[list[Image.Image]] = []
    sampling = leon.sampling.text_to_image
    for start in range(0, len(asked), TOGETHER):
        group = asked[start : start + TOGETHER]
        seeds = [seed + (start + place) * candidates for place in range(len(group))]
        wanted = [pools(sampling, candidates, mix, first) for first in seeds]
        for one, drawn, painted in zip(group, wanted, _paint(leon, group, wanted), strict=True):
            families = dict(zip(painted, judge.of_painted(list(painted.values())), strict=True))
            scores = dict(zip(painted, score(one.prompt, list(painted.values())), strict=True))
            (named,) = judge.of_real([own[one.id]])
            found = {
                name: Pool(
                    scores=tuple(scores[way] for way in ways),
                    hits=tuple(families[way] == one.family for way in ways),
                )
                for name, ways in drawn.items()
            }
            judged.append(Judged(asked=one, own=named == one.family, pools=found))
            if len(shown) < SHOWN:
                shown.append([painted[way] for way in list(drawn.values())[-1]])
        progress(len(judged), len(asked))
    return judged, shown


def _paint(
    leon: CM3Leon, asked: Sequence[Asked], wanted: Sequence[dict[str, Drawn]]
) -> Iterator[dict[tuple[int, Sampling], Image.Image]]:
    """The different candidates of each prompt, all in one batch."""
    rule = grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes)
    requests: list[Request] = []
    ways: list[Drawn] = []
    for one, drawn in zip(asked, wanted, strict=True):
        ways.append(list(dict.fromkeys(way for pool in drawn.values() for way in pool)))
        streams = tuple(leon.codec.open(stream) for stream in prompts.paint(one.prompt))
        requests.append(
            Request(
                streams=Streams(streams),
                grammar=rule,
                seeds=tuple(seed for seed, _ in ways[-1]),
                sampling=[sampling for _, sampling in ways[-1]],
            )
        )
    for keys, rows in zip(ways, generate_batch(leon.model, requests), strict=True):
        codes = [Picture(leon.codec.decode_codes(row)) for row in rows]
        yield dict(zip(keys, map(leon.to_image, codes), strict=True))


def places(name: str, count: int, candidates: int) -> list[int]:
    """Which of a pool's candidates are its pool of `count`: the first, of each half of a mix."""
    if name != MIXED:
        return list(range(count))
    return [start + place for start in (0, candidates // 2) for place in range(count // 2)]


def figures(judged: Sequence[Judged], candidates: int) -> dict[str, Row]:
    """Rows `2 alike`, `2 mixed`, ... for the powers of two up to all candidates, and all of them;
    then what the mix of all has more than those drawn alike."""
    powers = (2**power for power in range(1, candidates.bit_length()))
    counts = sorted({candidates, *(power for power in powers if power < candidates)})
    table = {
        f"{count} {name}": [one.pools[name].of(places(name, count, candidates)) for one in judged]
        for count in counts
        for name in judged[0].pools
    }
    if MIXED in judged[0].pools:
        plain, mixed = table[f"{candidates} {PLAIN}"], table[f"{candidates} {MIXED}"]
        table["mixed - alike"] = [
            (c - a, d - b, f - e) for (a, b, e), (c, d, f) in zip(plain, mixed, strict=True)
        ]
    return {name: _row(values) for name, values in table.items()}


def _row(values: Sequence[tuple[float, float, float]]) -> Row:
    pick, chance, some = zip(*values, strict=True)
    gain = [a - b for a, b in zip(pick, chance, strict=True)]
    return Row(pick=ratio(pick), random=ratio(chance), any=ratio(some), gain=ratio(gain))


def picture(judged: Sequence[Judged], shown: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """The sheet: a row of candidates for each prompt, the pick in a red frame, hits said."""
    cells: list[Image.Image] = []
    labels: list[str] = []
    for one, images in zip(judged, shown, strict=False):
        pool = list(one.pools.values())[-1]
        picked = best(pool.scores)
        for place, image in enumerate(images):
            colour = "red" if place == picked else "white"
            cells.append(ImageOps.expand(fit(image, CELL), FRAME, colour))
            hit = " hit" if pool.hits[place] else ""
            labels.append(f"{pool.scores[place]:.3f}{hit}")
        labels[-len(images)] += f" {one.asked.prompt}"
    return sheet(cells, len(shown[0]), labels)
