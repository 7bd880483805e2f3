"""Published datasets -> slices of entries, each a source of token shards.

Data path: `data encode --as LAYOUT` -> `find_slices` -> one part per slice
(`train/data/encode.py`). Annotation files are read by `annotations.py`; InstructPix2Pix has a
folder for each prompt instead, which is read here, and only when its slice is requested.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from tokenizer.data.annotations import read_coco, read_llava, read_vqa
from tokenizer.data.entries import Entry, Listed, Slice, inside, load, size_of, words
from tokenizer.data.tars import MAX_TEXT_BYTES
from tokenizer.errors import UserError

SLICE = 1000  # entries: a few seconds of GPU work
EDITS = "instruct-pix2pix"
# layout -> reader of its annotation files
READERS: Mapping[str, Callable[[Sequence[Path]], list[Entry]]] = {
    "coco": read_coco,
    "vqa": read_vqa,
    "llava": read_llava,
}
LAYOUTS = ("coco", "vqa", EDITS, "llava")

Folder = tuple[str, tuple[str, ...] | None]
"""Folder of a prompt, and the seeds of the requested pairs; None requests all pairs in it."""


def find_slices(
    layout: str, names: Sequence[str], images: Path | None, size: int = SLICE
) -> list[Slice]:
    """Return the slices, of at most `size` entries, of a dataset in one of LAYOUTS.

    names: annotation files, which are combined, with `images` the folder of their images; for
    instruct-pix2pix the folders that contain the prompts' folders, without `images`.
    Raises UserError for a missing file or folder, or for another layout.
    """
    assert layout in LAYOUTS
    if layout == EDITS:
        if images is not None:
            raise UserError(f"{EDITS}: its images lie beside its prompts; leave out --images")
        roots = [Path(name) for name in dict.fromkeys(names)]
        return [one for root in roots for one in _edit_slices(root, size)]
    if images is None:
        raise UserError(f"{layout} does not tell where its images lie; give --images FOLDER")
    if not images.is_dir():
        raise UserError(f"{images}: no such folder of images; name another as --images")
    paths = [Path(name) for name in dict.fromkeys(names)]
    entries = READERS[layout](paths)
    if not any(entry.pictures for entry in entries):
        raise UserError(f"{', '.join(names)}: no image is told of; name other files")
    shown = paths[0].name if len(paths) == 1 else f"{paths[0].name} and {len(paths) - 1} more"
    return [
        _told_slice(f"{shown}, images from {start + 1:,}", images, entries[start : start + size])
        for start in range(0, len(entries), size)
    ]


def _told_slice(name: str, images: Path, entries: Sequence[Entry]) -> Slice:
    def stamp() -> object:
        pictures = [(one.id, one.captions, one.files) for e in entries for one in e.pictures]
        sizes = [size_of(images, file) for _, _, files in pictures for file in files]
        others = [(entry.documents, entry.bad, entry.ignored) for entry in entries]
        return [str(images), pictures, sizes, others]

    return Slice(name=name, images=images, entries=lambda: entries, stamp=stamp)


def _edit_slices(root: Path, size: int) -> list[Slice]:
    folders = _folders(root)
    return [
        _edit_slice(f"{root}, prompts from {start + 1:,}", root, folders[start : start + size])
        for start in range(0, len(folders), size)
    ]


def _edit_slice(name: str, root: Path, folders: Sequence[Folder]) -> Slice:
    def stamp() -> object:
        return [[one, seeds, _files(root / one)] for one, seeds in folders]

    def entries() -> list[Entry]:
        return [_edit_entry(root, *folder) for folder in folders]

    return Slice(name=name, images=root, entries=entries, stamp=stamp)


def _folders(root: Path) -> list[Folder]:
    """Return the folders that `seeds.json` lists, or else every folder with a `prompt.json`."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the one that holds the prompts' folders")
    listed = root / "seeds.json"
    if listed.is_file():
        found: dict[str, tuple[str, ...] | None] = {}
        for row in _rows_of_seeds(listed):
            match row:
                case [str(name), [*seeds]] if seeds and inside(name):
                    found[name] = tuple(dict.fromkeys(map(str, cast("list[object]", seeds))))
                case _:
                    raise UserError(
                        f"{listed}: {json.dumps(row)[:80]} is not [folder, [seeds]]; make it again "
                        "or take it away: all folders are read then"
                    )
        return list(found.items())
    names: list[str] = []
    for place, folders, files in os.walk(root):
        folders.sort()
        if "prompt.json" in files:
            names.append(Path(place).relative_to(root).as_posix())
    if not names:
        raise UserError(
            f"no prompt.json is found in {root}; name the folder that holds the prompts' folders"
        )
    return [(name, None) for name in names]


def _rows_of_seeds(path: Path) -> list[object]:
    table = load(path)
    if not isinstance(table, list) or not table:
        raise UserError(f"{path}: not a list of [folder, [seeds]]; make it again or take it away")
    return cast("list[object]", table)


def _edit_entry(root: Path, name: str, seeds: Sequence[str] | None) -> Entry:
    """Return the pairs of a prompt's folder: SEED_0.jpg is edited into SEED_1.jpg.

    `input` and `output` of its prompt.json are their captions, `edit` is the instruction.
    """
    folder = root / name
    try:
        prompt = folder / "prompt.json"
        if size_of(folder, "prompt.json") > MAX_TEXT_BYTES:
            raise UserError("its prompt.json is too long")
        table = load(prompt)
        if not isinstance(table, dict):
            raise UserError("its prompt.json is not an object with 'edit'")
        told = cast("dict[str, object]", table)
        if "edit" not in told:
            raise UserError("its prompt.json has no 'edit'")
        instruction = words(told["edit"], "edit")
        before, after = (
            (words(told[key], key),) if told.get(key) else () for key in ("input", "output")
        )
    except UserError as error:
        return Entry(bad=((name, str(error)),))
    files = {file for file, _ in _files(folder)}
    if seeds is None:
        seeds = [file.removesuffix("_0.jpg") for file in sorted(files) if file.endswith("_0.jpg")]
        if not seeds:
            return Entry(bad=((name, "it holds no SEED_0.jpg"),))
    pictures: list[Listed] = []
    documents: list[dict[str, object]] = []
    bad: list[tuple[str, str]] = []
    for seed in seeds:
        missing = [file for file in (f"{seed}_0.jpg", f"{seed}_1.jpg") if file not in files]
        if missing:
            bad.append((f"{name}/{seed}", f"its {missing[0]} is missing"))
            continue
        ids = [f"{name}/{seed}_{side}" for side in (0, 1)]
        for one, captions in zip(ids, (before, after), strict=True):
            pictures.append(Listed(id=one, files=(f"{one}.jpg",), captions=captions))
        document = {"task": "edit", "source": ids[0], "target": ids[1]}
        documents.append({**document, "instructions": [instruction], "type": ""})
    return Entry(pictures=tuple(pictures), documents=tuple(documents), bad=tuple(bad))


def _files(folder: Path) -> list[tuple[str, int]]:
    """Return names and sizes of the files in a folder, sorted; empty if it does not exist."""
    try:
        with os.scandir(folder) as found:
            return sorted((one.name, one.stat().st_size) for one in found if one.is_file())
    except OSError:
        return []
