"""The fixed sheet: prompts and edits drawn by lot once, before training, and what a model makes of
them, one sample each.

`choose` made `docs/sheets/prompts.json` (through scripts/choose_sheet.py) before any model was
trained; `draw` paints it with a model, `write` puts it into files. A judge names the pictures of
the numbered sheet without looking, and only then opens the key.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cm3leon.pipeline import CM3Leon
from tokenizer import settings
from tokenizer.errors import UserError
from tokenizer.manifest import check_writable, write_file
from tokenizer.pixels import encode_png, fit, sheet

FAMILIES = 6  # pictures of each style
EDITS = 3  # edits of each style
TONES = tuple(f"{tone:X}" for tone in range(0x1F3FB, 0x1F3FF + 1))  # code points of skin tones
CELL = 192  # side of a picture on a sheet, in pixels
COLUMNS = 8
FILES = ("sheet.png", "sheet-labelled.png", "edits.png", "key.txt")

Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A picture to paint; its number is its seed. `id`: the train picture whose caption it is."""

    number: int
    style: str
    id: str
    prompt: str


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A picture to edit; its number is its seed. `source` and `target` are ids of pictures."""

    number: int
    source: str
    target: str
    type: str
    instruction: str


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What stands on the sheet."""

    pictures: tuple[Prompt, ...]
    edits: tuple[Edit, ...]

    @classmethod
    def read(cls, path: Path) -> "Chosen":
        """Read a sheet's JSON file. Raises UserError where it is not one."""
        return settings.load(cls, path)


@dataclass(frozen=True)
class Drawn:
    """The pictures that a model painted, in the order of the sheet."""

    pictures: tuple[Image.Image, ...]
    edits: tuple[Image.Image, ...]


def choose(pictures: Iterable[Table], edits: Iterable[Table], exclude: Set[str]) -> Chosen:
    """Draw the sheet from a corpus's train pictures (their metadata) and train edits.

    Of each emoji style six families, of a family the picture with the shortest code point and its
    first caption; then three edits of each style of the source. Flags, keycaps and tone variants
    are not drawn (nor as the source of an edit), nor what touches a picture in `exclude`.
    """
    kept = {picture["id"]: picture for picture in pictures if picture["id"] not in exclude}
    plain = {name: picture for name, picture in kept.items() if is_plain(picture)}
    inside = [edit for edit in edits if edit["source"] in plain and edit["target"] in kept]
    return Chosen(pictures=_choose_pictures(plain), edits=_choose_edits(inside, plain))


def draw(
    model: CM3Leon,
    chosen: Chosen,
    sources: Mapping[str, Image.Image],
    progress: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Paint every prompt and edit once, with the model's own sampling and the number as the seed.

    `sources` holds the pictures to be edited by id; `progress` is told (done, of how many).
    """
    total = len(chosen.pictures) + len(chosen.edits)
    painted: list[Image.Image] = []

    def take(pictures: list[Image.Image]) -> None:
        painted.extend(pictures)
        if progress is not None:
            progress(len(painted), total)

    for one in chosen.pictures:
        take(model.text_to_image(one.prompt, seed=one.number))
    for one in chosen.edits:
        take(model.edit(sources[one.source], one.instruction, seed=one.number))
    return Drawn(tuple(painted[: len(chosen.pictures)]), tuple(painted[len(chosen.pictures) :]))


def check_out(out: Path) -> None:
    """Make the folder of the sheets, or refuse it, before dear work begins."""
    try:
        out.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(out)!r}: {error.strerror}") from error
    for name in FILES:
        check_writable(out / name)


def write(
    out: Path,
    chosen: Chosen,
    drawn: Drawn,
    sources: Mapping[str, Image.Image],
    notes: Mapping[str, str],
) -> list[Path]:
    """Write the sheets and the key into a folder, `notes` into the PNG files; return the paths."""
    pictures = [fit(picture, CELL) for picture in drawn.pictures]
    numbers = [str(one.number) for one in chosen.pictures]
    prompts = [f"{one.number}: {one.prompt}" for one in chosen.pictures]
    sheets = [sheet(pictures, COLUMNS, numbers), sheet(pictures, COLUMNS, prompts)]
    cells: list[Image.Image] = []
    labels: list[str] = []
    for one, after in zip(chosen.edits, drawn.edits, strict=True):
        cells += [fit(sources[one.source], CELL), fit(after, CELL)]
        labels += [f"{one.number}: {one.instruction}", "after"]
    sheets.append(sheet(cells, COLUMNS, labels))
    key = "".join(f"{prompt}\n" for prompt in prompts)
    contents = [*(encode_png(image, notes) for image in sheets), key.encode()]
    paths = [out / name for name in FILES]
    for path, data in zip(paths, contents, strict=True):
        write_file(path, data)
    return paths


def is_plain(picture: Table) -> bool:
    """Whether a picture is an emoji, but no flag, no keycap and no skin-tone variant."""
    if picture["kind"] != "emoji":
        return False
    toned = any(tone in picture["codepoint"] for tone in TONES)
    return not (toned or picture["group"] == "flags" or picture["label"].startswith("keycap"))


def _choose_pictures(plain: Mapping[str, Table]) -> tuple[Prompt, ...]:
    styles: dict[str, dict[str, list[Table]]] = defaultdict(lambda: defaultdict(list))
    for picture in plain.values():
        if "family" in picture:  # signs such as a bare skin tone have none
            styles[picture["style"]][picture["family"]].append(picture)
    rng = random.Random(0)
    chosen: list[Prompt] = []
    for style, families in sorted(styles.items()):
        for family in rng.sample(sorted(families), FAMILIES):
            one = min(families[family], key=lambda one: (len(one["codepoint"]), one["id"]))
            words = one["captions"][0]
            chosen.append(Prompt(number=len(chosen), style=style, id=one["id"], prompt=words))
    return tuple(chosen)


def _choose_edits(edits: Iterable[Table], plain: Mapping[str, Table]) -> tuple[Edit, ...]:
    styles: dict[str, list[Table]] = defaultdict(list)
    for edit in sorted(edits, key=lambda one: (one["source"], one["target"])):
        styles[plain[edit["source"]]["style"]].append(edit)
    rng = random.Random(0)
    drawn = [edit for _, row in sorted(styles.items()) for edit in rng.sample(row, EDITS)]
    return tuple(
        Edit(
            number=number,
            source=edit["source"],
            target=edit["target"],
            type=edit["type"],
            instruction=edit["instructions"][0],
        )
        for number, edit in enumerate(drawn)
    )
