"""The command that measures sample and rerank: eval candidates."""

import dataclasses
from collections import Counter
from collections.abc import Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.output import signature
from cm3leon.cli.retrieving import DEFAULT, EncoderName, open_embedder

if TYPE_CHECKING:
    from PIL import Image

    from cm3leon.pipeline import CM3Leon
    from eval.candidates import Asked, Judged, Row
    from eval.families import Judge
    from tokenizer.features import FeatureNet

REAL = "train"  # the split that painted pictures are compared with
PER_FAMILY = 16

Features = Annotated[Path, typer.Option(help="MobileNetV2's weights, which judge.")]


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(candidates)


def candidates(
    context: typer.Context,
    model: tables.Model,
    corpus: tables.Corpus,
    *,
    features: Features,
    candidates: Annotated[int, typer.Option(min=2, max=options.MOST, help="For a prompt.")] = 8,
    mix: Annotated[bool, typer.Option("--mix", help="Half by top-p, half by CD-K, too.")] = False,
    prompts: Annotated[int, typer.Option(min=2, help="How many, drawn from the seed.")] = 200,
    split: Annotated[str, typer.Option(help="The tars whose captions are the prompts.")] = "test",
    ids: Annotated[Path | None, typer.Option(help="Ids of pictures, one a line: no other.")] = None,
    encoder: EncoderName = DEFAULT,
    seed: options.Seed = 0,
    sheet: Annotated[Path | None, typer.Option(help="A PNG of some prompts to write.")] = None,
    out: tables.Lines = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """How often the best of several candidates, by the retriever's encoder, shows the thing that
    was asked for: beside a random one of them, and any of them."""
    from cm3leon.candidates import check
    from cm3leon.checkpoint import find, read_sampling
    from eval.candidates import figures, measure
    from eval.sets import find_images
    from retrieval.embed import closeness
    from tokenizer.features import FeatureNet
    from tokenizer.tars import find_tars, read_ids

    folder = find(model, options.say)
    check(read_sampling(folder).text_to_image, candidates, mix)
    tables.check_lines(out)
    tables.check_lines(sheet)
    asked, families = _choose(corpus, split, None if ids is None else read_ids(ids), prompts, seed)
    net = FeatureNet.load(features)
    embedder = open_embedder(encoder, device)
    leon = options.open_model(folder, device, threads, precision)
    judge = _open_judge(leon, net, corpus, families)
    tars, size = find_tars(corpus, f"{split}-"), leon.image_tokenizer.size
    judged, shown = measure(
        leon,
        judge,
        partial(closeness, embedder),
        asked,
        find_images(tars, size, {one.id for one in asked}),
        candidates=candidates,
        mix=mix,
        seed=seed,
        progress=tables.steps("prompts"),
    )
    tables.write_lines(out, map(dataclasses.asdict, judged))
    if sheet is not None:
        _draw(sheet, judged, shown, leon.hash)
    rows = figures(judged, candidates)
    about = {"model": leon.hash, "precision": leon.precision, "picked by": embedder.id}
    about |= {"measured on": _told(asked, split, corpus.name)}
    about |= {"judged by": _judging(judge, sum(one.own for one in judged) / len(judged))}
    tables.tell_table(context, about, _shown(rows), tables.plain(rows), as_json)


def _choose(
    corpus: Path, split: str, only: Set[str] | None, count: int, seed: int
) -> tuple[list["Asked"], dict[str, str]]:
    """The prompts, and the real pictures to compare with: none that a prompt could have come from,
    none of the ids."""
    from eval.candidates import choose
    from eval.families import choose_real
    from eval.sets import list_pictures
    from tokenizer.tars import find_tars

    listed = list_pictures(find_tars(corpus, f"{split}-"))
    pool = [one for one in listed if only is None or one["id"] in only]
    excluded = {one["id"] for one in pool} | (only or set())
    real = choose_real(list_pictures(find_tars(corpus, f"{REAL}-")), excluded, PER_FAMILY)
    return choose(pool, set(real.values()), count, seed), real


def _open_judge(
    leon: "CM3Leon", net: "FeatureNet", corpus: Path, families: dict[str, str]
) -> "Judge":
    """A judge that has seen all real pictures."""
    from eval.families import Judge
    from tokenizer.tars import Tally, find_tars

    judge, tally = Judge(leon.image_tokenizer, net), Tally()
    judge.learn(find_tars(corpus, f"{REAL}-"), families, tally, tables.steps("real pictures"))
    tally.tell(options.say)
    return judge


def _draw(path: Path, judged: "list[Judged]", shown: "list[list[Image.Image]]", model: str) -> None:
    from eval.candidates import picture
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png

    write_file(path, encode_png(picture(judged, shown), signature("eval candidates", model)))


def _told(asked: "list[Asked]", split: str, corpus: str) -> str:
    """`200 captions of test of CORPUS, one a family: 150 emoji, 50 photo`."""
    kinds = Counter(one.kind for one in asked)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{len(asked)} captions of {split} of {corpus}, one a family: {named}"


def _judging(judge: "Judge", own: float) -> str:
    """How good the judge can be: what it says of real pictures."""
    counts = f"{len(judge.families):,} {REAL} pictures of {len(set(judge.families)):,} families"
    return f"MobileNetV2 against {counts}; of the prompts' own pictures {own:.1%} are hits"


def _shown(rows: "dict[str, Row]") -> dict[str, dict[str, str]]:
    """The table for people."""
    names = {"pick": "the pick", "random": "a random one", "any": "any of them"}
    names |= {"gain": "pick - random"}
    return {
        name: {told: tables.share_text(getattr(row, field)) for field, told in names.items()}
        for name, row in rows.items()
    }
