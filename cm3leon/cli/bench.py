"""Commands that measure speed: bench retrieval and bench train."""

import dataclasses
import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cm3leon.cli import bench_decode, bench_tokenizer, options
from cm3leon.cli.options import ModelOptions
from cm3leon.cli.output import print_table
from cm3leon.cli.retrieve import COUNT, RetrievalOptions, open_embedder, open_memory

if TYPE_CHECKING:
    from eval.bench.retrieval import SearchComparison, Share
    from tokenizer.timing import Timing
    from train.speed import Encoding, Loading, StepComparison

QUERIES = 1000
ADDED = 1000
FOUND = (10, 64)  # results of `index search`, and candidates of the rules of retrieval
TIMES = 5  # that an image is generated
PROMPT = "sunflower, Noto emoji style"


def add_to(app: typer.Typer) -> None:
    """Add the group `bench`."""
    group = typer.Typer(help="Measure speed.", rich_markup_mode=None)
    options.add(group, bench_decode.generate, bench_decode.batching, bench_tokenizer.tokenizer)
    options.add(group, retrieval, train)
    app.add_typer(group, name="bench")


def retrieval(
    context: typer.Context,
    vectors: Annotated[int, typer.Option(min=1000, help="Documents of the large memory.")] = 10**6,
    dimension: Annotated[int, typer.Option(min=8, help="Numbers of a vector.")] = 512,
    memory_budget: options.Budget = "600MB",
    out: Annotated[
        Path | None, typer.Option(help="Folder to work in; it is left as it was.")
    ] = None,
    *,
    wanted: RetrievalOptions,
    model: ModelOptions,
    as_json: options.Json = False,
) -> None:
    """Time and memory of retrieval: a large synthetic memory, our layer against bare FAISS and, of
    a memory that is named, one prompt's retrieval against generating its image."""
    from eval.bench import retrieval as speed
    from retrieval.index import EXACT_UP_TO, faiss, plan

    wanted.check()
    kind = plan(vectors, dimension, options.bytes_of(memory_budget))
    few = min(vectors, EXACT_UP_TO)
    faiss()
    with speed.workplace(out) as place:
        options.say(f"building {vectors:,} documents, {kind.name}")
        built = speed.apart(speed.build, place / "large", vectors, dimension, kind)
        options.say(f"built in {built.seconds:.0f} s; searching")
        used = speed.apart(speed.use, place / "large", QUERIES)
        layers = [speed.apart(speed.against_bare, place / "large", QUERIES // 2, n) for n in FOUND]
        added = speed.apart(speed.add, place / "large", min(ADDED, vectors))
        speed.apart(speed.build, place / "small", few, dimension, plan(few, dimension))
        layers += [speed.apart(speed.against_bare, place / "small", QUERIES // 2, n) for n in FOUND]
    share = _share(wanted, model)
    result: dict[str, Any] = {
        "machine": _machine(),
        "built": dataclasses.asdict(built),
        "used": dataclasses.asdict(used),
        "added": dataclasses.asdict(added),
        "layers": [{**dataclasses.asdict(one), "ratio": one.ratio} for one in layers],
        "share": share and {**dataclasses.asdict(share), "share": share.share},
    }
    lines = {
        f"building {built.documents:,} documents of {dimension} numbers": f"{built.seconds:.1f} s",
        "its index": f"{built.index}, {built.bytes_per_vector:.1f} bytes a vector",
        "most resident while building, mapped files left out": f"{built.peak_mb:,.0f} MB",
        "on disk": f"{built.disk_mb:,.0f} MB",
        "opening it, verified before": f"{used.open_seconds:.3f} s",
        f"searching it, p50 of {used.queries:,} single queries": f"{used.p50_ms:.2f} ms",
        "searching it, p99": f"{used.p99_ms:.2f} ms",
        "resident after that, its own": f"{used.anonymous_mb:,.0f} MB",
        "resident after that, of mapped files": f"{used.mapped_mb:,.0f} MB",
        f"adding {added.documents:,} documents to it": f"{added.seconds:.2f} s",
        **dict(map(_of_layer, layers)),
        **({} if share is None else _of_share(share)),
    }
    table = {name: {"figure": figure} for name, figure in lines.items()}
    print_table(context, {"machine": _machine()}, table, result, as_json)


def train(
    context: typer.Context,
    size: Annotated[str, typer.Option(help="A named size of decoder: tiny, 10m, 350m ...")] = "10m",
    length: Annotated[int, typer.Option(min=32, help="Ids of a row.")] = 512,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 4,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Of products.")
    ] = "fp32",
    times: Annotated[int, typer.Option(min=1, help="Steps of each that are timed.")] = 7,
    pictures: Annotated[int, typer.Option(min=1, help="Images to encode.")] = 128,
    shards: Annotated[
        Path | None, typer.Option(help="Token shards to make rows of; else made up ones.")
    ] = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Speed of training: our step against those of transformers' OPT and Llama of the same size,
    making rows beside it, and encoding images in batches against one by one."""
    import torch

    from cm3leon.checkpoint import IMAGE, find
    from cm3leon.pipeline import pick_device
    from tokenizer.data.shards import Shards
    from tokenizer.image import ImageTokenizer
    from train import speed
    from train.rivals import transformers
    from train.synthetic import rows_of, write_synthetic

    transformers()
    if threads is not None:
        torch.set_num_threads(threads)
    place = pick_device(device)
    setting = speed.StepSetting(
        size=size, context=length, rows=rows, precision=precision, times=times, device=place
    )
    with TemporaryDirectory(prefix="bench-") as folder:
        if shards is None:
            write_synthetic(Path(folder) / "shards")
        opened = Shards.open(shards or Path(folder) / "shards")
        packed, alone = rows_of(opened, length, 1.0), rows_of(opened, length, 0.0)
        pairs = [speed.against("opt", packed, setting), speed.against("llama", packed, setting)]
        options.say("training steps are timed; making rows")
        loads = [speed.loading(kind, pairs[0].ours.step, setting) for kind in (packed, alone)]
    options.say("rows are made; encoding images")
    tokenizer = ImageTokenizer.load(find("default") / IMAGE).to(place)
    encoded = speed.encoding(tokenizer, pictures, setting)
    result: dict[str, Any] = {
        "machine": _machine(),
        "against": [speed.as_json(one) for one in pairs],
        "loading": [speed.as_json(one) for one in loads],
        "encoding": speed.as_json(encoded),
    }
    lines = dict(line for pair in pairs for line in _of_pair(pair))
    lines |= dict(map(_of_loading, loads)) | _of_encoding(encoded)
    table = {name: {"figure": figure} for name, figure in lines.items()}
    print_table(context, {"machine": _machine()}, table, result, as_json)


def _of_pair(pair: "StepComparison") -> list[tuple[str, str]]:
    """Tokens a second of both sides, and what that comes to."""
    name = {"opt": "OPT", "llama": "Llama"}[pair.family]
    sides = (("ours", pair.ours), ("transformers", pair.theirs))
    lines = [
        (
            f"{whose} ({name} of {side.parameters:,} parameters), tokens a second",
            f"{_rate(pair.tokens, side.step)}; {side.products:.1%} in products",
        )
        for whose, side in sides
    ]
    if pair.by_products:
        lines.append(
            (f"ours ({name}) with attention by products", _rate(pair.tokens, pair.by_products))
        )
    ratio = (
        f"{pair.ratio:.2f}; by the quickest step of each {pair.best:.2f}, by the processor's time "
        f"{pair.processor:.2f}"
    )
    return [*lines, (f"ratio ({name}), ours over transformers", ratio)]


def _of_loading(found: "Loading") -> tuple[str, str]:
    times = f"{1000 * found.row_seconds:.1f} ms / {found.step_seconds:.2f} s"
    return (
        f"making {found.tokens:,} ids of {found.rows}, beside a step",
        f"{times}, {found.share:.2%}",
    )


def _of_encoding(found: "Encoding") -> dict[str, str]:
    return {
        f"encoding, images a second, {found.batch} at a time": _rate(found.pictures, found.batched),
        "encoding, images a second, one by one": _rate(found.pictures, found.one_by_one),
        "ratio, batched over one by one": f"{found.ratio:.2f}",
    }


def _rate(things: int, seconds: "Timing") -> str:
    """`1,234 (1,200-1,300)`: the median, and the slowest and quickest."""
    rates = (seconds.median, seconds.most, seconds.least)
    middle, least, most = (f"{things / one:,.0f}" for one in rates)
    return f"{middle} ({least}-{most})"


def _share(wanted: RetrievalOptions, model: ModelOptions) -> "Share | None":
    """Time retrieval beside generation, where a memory was named."""
    from cm3leon.checkpoint import find
    from eval.bench.retrieval import share_of_generation

    if wanted.memory is None:
        return None
    folder = find(model.model, options.say)
    embedder = open_embedder(wanted.encoder, model.device)
    memory = open_memory(wanted.memory, embedder, folder)
    leon = model.open(folder)
    return share_of_generation(leon, memory, embedder, PROMPT, wanted.count or COUNT, TIMES)


def _of_layer(layer: "SearchComparison") -> tuple[str, str]:
    name = f"search for {layer.found} of {layer.documents:,}, {layer.index}, ours against FAISS"
    return name, f"{layer.ours_ms:.2f} ms / {layer.bare_ms:.2f} ms = {layer.ratio:.3f}"


def _of_share(share: "Share") -> dict[str, str]:
    times = f"{share.retrieval_ms:.1f} ms / {share.generation_ms:,.0f} ms = {share.share:.2%}"
    return {f"retrieving {share.documents} documents against generating with them": times}


def _machine() -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "as many as cores")
    return f"{platform.machine()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}"
