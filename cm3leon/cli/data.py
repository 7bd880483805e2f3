"""Commands that prepare data for training: data encode, views, inspect, emoji."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cm3leon.cli import options
from tokenizer.errors import UserError

if TYPE_CHECKING:
    from tokenizer.data.shards import Shards
    from tokenizer.document import Document

COLUMNS, TOGETHER = 8, 64  # images in a row of a sheet, and decoded in one batch
Layout = Literal["coco", "vqa", "instruct-pix2pix", "llava"]


def add_to(app: typer.Typer) -> None:
    """Add the group `data`."""
    group = typer.Typer(help="Prepare data for training.", rich_markup_mode=None)
    options.add(group, encode, views, inspect, emoji)
    app.add_typer(group, name="data")


def encode(
    sources: options.Sources,
    tokenizer: Annotated[Path, typer.Option(help="Image tokenizer's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of token shards to write.")],
    edits: Annotated[Path | None, typer.Option(help="JSON lines of edits.")] = None,
    questions: Annotated[Path | None, typer.Option(help="JSON lines of questions.")] = None,
    documents: Annotated[
        Path | None, typer.Option(help="JSON lines of documents of any task, named by 'task'.")
    ] = None,
    layout: Annotated[
        Layout | None,
        typer.Option("--as", help="SOURCES are files of a data set in this published layout."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for --as.")] = None,
    exclude: options.IdList = None,
    keep: options.IdList = None,
    text_tokenizer: Annotated[
        Path | None, typer.Option(help="A .model file; the shards are then bound to it.")
    ] = None,
    most_bad: Annotated[
        float, typer.Option(min=0, max=1, help="Stop where a larger share is damaged.")
    ] = 0.1,
    device: options.Device = "auto",
) -> None:
    """Encode images as token shards; a killed run resumes where it stopped.

    Data sets as they are published, with --as: coco (captions_train2017.json), vqa (the questions
    and the annotations of VQA v2, both as SOURCES), llava (a list or JSON lines of conversations),
    each with --images; instruct-pix2pix (folders of prompt.json and SEED_0.jpg, SEED_1.jpg).

    Many processes share the work: python -m torch.distributed.run --nproc-per-node N --module
    cm3leon data encode ...
    """
    from train.data.encode import main

    typer.echo(
        main(
            sources,
            tokenizer,
            out,
            edits=edits,
            questions=questions,
            documents=documents,
            layout=layout,
            images=images,
            exclude=exclude,
            keep=keep,
            text_tokenizer=text_tokenizer,
            most_bad=most_bad,
            device=device,
            say=options.say,
        )
    )


def views(
    sources: options.Sources,
    shards: Annotated[Path, typer.Option(help="Token shards, as `data encode` writes them.")],
    tokenizer: Annotated[Path, typer.Option(help="Image tokenizer's folder.")],
    out: Annotated[Path, typer.Option(help="Folder of views to write.")],
    count: Annotated[int, typer.Option(min=1, help="Number of views.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    device: options.Device = "auto",
) -> None:
    """Encode all images of token shards again through random views, for retrieval training."""
    from train.data.views import main

    typer.echo(
        main(
            sources, shards, tokenizer, out, count=count, seed=seed, device=device, say=options.say
        )
    )


def emoji(
    out: Annotated[Path, typer.Option(help="The folder of tars, edits and questions to write.")],
    packages: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="A folder of the packages: what is there is not fetched, what is fetched is kept "
            "there; OUT.packages if not given.",
        ),
    ] = None,
    npm: Annotated[
        str, typer.Option(envvar="NPM_CONFIG_REGISTRY", help="An npm registry.")
    ] = "https://registry.npmjs.org",
    debian: Annotated[
        str,
        typer.Option(help="A Debian mirror, or a snapshot of one once the package is gone there."),
    ] = "https://deb.debian.org/debian",
    jobs: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Processes; one a core if not given."),
    ] = None,
) -> None:
    """Remake the corpus of emoji, icons and clip art from packages of npm and Debian.

    Fetches about 203 MB, by fixed versions and hashes; a killed run goes on where it stopped. Needs
    the extra cm3leon[emoji].
    """
    from train.emoji.build import main

    typer.echo(main(out, packages, npm=npm, debian=debian, jobs=jobs, say=options.say))


def inspect(
    shards: Annotated[
        Path, typer.Argument(metavar="SHARDS", help="Token shards, as `data encode` writes them.")
    ],
    count: Annotated[int, typer.Option("-n", min=1, help="Number of documents.")] = 8,
    sheet: Annotated[Path | None, typer.Option(help="PNG of their images to write.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Image tokenizer's folder, for --sheet.")
    ] = None,
) -> None:
    """Show the counts of token shards, and evenly spaced documents as text."""
    from tokenizer.data.shards import Shards
    from tokenizer.manifest import check_writable

    if (sheet is None) != (tokenizer is None):
        raise UserError("--sheet and --tokenizer go together: it draws the images")
    if sheet is not None:
        check_writable(sheet)
    opened = Shards.open(shards)
    counts = ", ".join(
        f"{number:,} {'images' if name == 'pictures' else name}"
        for name, number in opened.counts.items()
    )
    typer.echo(counts)
    typer.echo(
        f"{opened.size} x {opened.size} pixels are {opened.grid} x {opened.grid} codes of "
        f"{opened.codes:,}, image tokenizer {opened.image_tokenizer[:12]}"
    )
    if not opened.documents and sheet is not None:
        raise UserError(f"{shards} has no documents whose images --sheet could show")
    count = min(count, opened.documents)
    shown: list[str] = []
    for number in (place * opened.documents // count for place in range(count)):
        table = opened.document(number)
        document, names = _document(opened, table)
        typer.echo(f"{number} {table['task']}: {_as_text(document, names)}")
        shown += names
    if sheet is not None and tokenizer is not None:
        _draw(opened, list(dict.fromkeys(shown)), tokenizer, sheet)
        typer.echo(sheet)


def _document(shards: "Shards", table: dict[str, Any]) -> tuple["Document", list[str]]:
    """A document as training words it, with its first caption or instruction, and the ids of its
    pictures."""
    from cm3leon import prompts
    from tokenizer.data.shards import TASKS
    from tokenizer.document import Picture
    from train.data.templates import FORMS, first

    task = table["task"]
    names: list[str] = [table[key] for key in TASKS[task][0]]
    rows = [shards.picture(shards.number_of(name)) for name in names]
    pictures = [Picture(codes) for _, codes in rows]
    if task in FORMS:
        return FORMS[task](table, pictures, first), names
    captions: list[str] = rows[0][0].get("captions") or []
    return prompts.pair(captions[0], pictures[0]) if captions else (pictures[0],), names


def _as_text(document: "Document", names: list[str]) -> str:
    """Its segments with `<break>` between, its images as their ids."""
    from tokenizer.document import Field, Picture, segments

    left = iter(names)
    texts: list[str] = []
    for segment in segments(document):
        if isinstance(segment[0], Picture):
            texts.append(f"[{next(left)}]")
        else:
            words = (part.text if isinstance(part, Field) else str(part) for part in segment)
            texts.append("".join(words).strip().replace("\n", "\\n"))  # one document, one line
    return " <break> ".join(texts)


def _draw(shards: "Shards", names: list[str], tokenizer: Path, out: Path) -> None:
    import torch

    from tokenizer.image import ImageTokenizer
    from tokenizer.manifest import write_file
    from tokenizer.pixels import encode_png, sheet, to_image

    decoder = ImageTokenizer.load(tokenizer)
    if decoder.hash != shards.image_tokenizer:
        raise UserError(
            f"{shards.folder} was made with image tokenizer {shards.image_tokenizer[:12]}, this "
            f"one is {decoder.hash[:12]}; name that one"
        )
    codes_BL = torch.tensor([shards.picture(shards.number_of(name))[1] for name in names])
    decoded = (decoder.decode(some_BL) for some_BL in codes_BL.split(TOGETHER))
    pictures = [to_image(pixels_3HW) for pixels_B3HW in decoded for pixels_3HW in pixels_B3HW]
    write_file(out, encode_png(sheet(pictures, COLUMNS, names)))
