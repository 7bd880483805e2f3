"""Options shared by the commands that measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from eval.corpus import DataLocation

Weights = Annotated[
    Path | None, typer.Option(help="Folder of the judges' weights (docs/evaluation.md).")
]
Out = Annotated[Path, typer.Option(help="Folder to write reports to.")]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data to measure on: a split of a corpus, or a published data set."""

    data: Annotated[
        Path, typer.Option(help="A corpus (folder of WebDataset tars), or a data set's JSON.")
    ]
    split: Annotated[
        str | None, typer.Option(help="Tars of a corpus whose names begin so (default: test).")
    ] = None
    layout: Annotated[
        Literal["coco", "vqa", "ok-vqa", "vizwiz"] | None,
        typer.Option("--as", help="Layout of a published data set; NoCaps has coco's."),
    ] = None
    images: Annotated[
        Path | None, typer.Option(help="Folder of a data set's images, for --as.")
    ] = None
    annotations: Annotated[
        Path | None, typer.Option(help="File of the answers, for --as vqa and ok-vqa.")
    ] = None
    ids: Annotated[
        Path | None, typer.Option(help="File of image ids, one a line, to measure on.")
    ] = None
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items at most, evenly spaced (default: all).")
    ] = None

    def place(self) -> "DataLocation":
        """Return where to look."""
        from eval.corpus import DataLocation

        return DataLocation(
            data=self.data,
            split=self.split,
            layout=self.layout,
            images=self.images,
            annotations=self.annotations,
        )


def check_out(out: Path) -> None:
    """Raise UserError for a file in the place of the folder of reports."""
    from tokenizer.errors import UserError

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the reports")
