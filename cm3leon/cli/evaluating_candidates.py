"""The command that measures sample and rerank: eval candidates."""

import dataclasses
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cm3leon.cli import options, tables
from cm3leon.cli.output import signature
from cm3leon.cli.retrieving import DEFAULT, EncoderName, open_embedder

if TYPE_CHECKING:
    from eval.candidates import Asked, Row

REAL = "train"  # the split that painted pictures are compared with
PER_FAMILY = 16


def add_to(group: typer.Typer) -> None:
    """Name this file's command in the group of all that measure."""
    group.command()(candidates)


def candidates(
    context: typer.Context,
    model: tables.Model,
    corpus: tables.Corpus,
    *,
    features: Annotated[Path, typer.Option(help="MobileNetV2's weights, in safetensors.")],
    candidates: Annotated[int, typer.Option(min=2, max=options.MOST, help="For a prompt.")] = 8,
    mix: Annotated[bool, typer.Option("--mix", help="Half by top-p, half by CD-K, too.")] = False,
    prompts: Annotated[int, typer.Option(min=2, help="How many, drawn from the seed.")] = 200,
    split: Annotated[str, typer.Option(help="The tars whose captions are the prompts.")] = "test",
    ids: Annotated[Path | None, typer.Option(help="Ids of pictures, one a line: no other.")] = None,
    real: Annotated[int, typer.Option(min=1, help="Train pictures of a family.")] = PER_FAMILY,
    encoder: EncoderName = DEFAULT,
    seed: options.Seed = 0,
    sheet: Annotated[Path | None, typer.Option(help="A PNG of some prompts to write.")] = None,
    out: tables.Lines = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """How often the best of several candidates, by the retriever's encoder, shows the thing that
    was asked for: beside a random one of them, and any of them."""
    from cm3leon.candidates import check
    from cm3leon.checkpoint import find, read_sampling
    from eval.candidates import Judge, choose, choose_real, figures, measure, picture
    from eval.sets import find_images, list_pictures
    from retrieval.embed import closeness
    from tokenizer.features import FeatureNet
    from tokenizer.manifest import check_writable, write_file
    from tokenizer.pixels import encode_png
    from tokenizer.tars import Tally, find_tars, read_ids

    folder = find(model, options.say)
    check(read_sampling(folder).text_to_image, candidates, mix)
    tars, real_tars = find_tars(corpus, f"{split}-"), find_tars(corpus, f"{REAL}-")
    tables.check_lines(out)
    if sheet is not None:
        check_writable(sheet)
    net = FeatureNet.load(features)
    only = None if ids is None else read_ids(ids)
    embedder = open_embedder(encoder, device)
    listed, there = list_pictures(tars), list_pictures(real_tars)
    pool = [one for one in listed if only is None or one["id"] in only]
    known = choose_real(there, only or frozenset(), real)
    asked = choose(pool, set(known.values()), prompts, seed)
    families = choose_real(there, {one.id for one in asked} | (only or set()), real)
    leon = options.open_model(folder, device, threads)
    judge, tally = Judge(leon, net.to(leon.model.embed.weight.device)), Tally()
    judge.learn(real_tars, families, tally, tables.steps("real pictures"))
    tally.tell(options.say)
    size = leon.image_tokenizer.size
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
        notes = signature("eval candidates", leon.hash)
        write_file(sheet, encode_png(picture(judged, shown), notes))
    rows = figures(judged, candidates)
    own = sum(one.own for one in judged) / len(judged)
    about = {
        "model": leon.hash,
        "picked by": embedder.id,
        "measured on": _told(asked, split, corpus.name),
        "judged by": f"{len(judge.families):,} {REAL} pictures of {len(set(judge.families)):,} "
        f"families; of the prompts' own pictures {own:.1%} are hits",
    }
    tables.tell_table(context, about, _shown(rows), tables.plain(rows), as_json)


def _told(asked: "list[Asked]", split: str, corpus: str) -> str:
    """`200 captions of test of CORPUS, 81 families: 150 emoji, 50 photo`."""
    kinds = Counter(one.kind for one in asked)
    named = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    families = len({one.family for one in asked})
    return f"{len(asked)} captions of {split} of {corpus}, {families} families: {named}"


def _shown(rows: "dict[str, Row]") -> dict[str, dict[str, str]]:
    """The table for people."""
    names = {"pick": "the pick", "random": "a random one", "any": "any of them"}
    names |= {"gain": "pick - random"}
    return {
        name: {told: tables.share_text(getattr(row, field)) for field, told in names.items()}
        for name, row in rows.items()
    }
