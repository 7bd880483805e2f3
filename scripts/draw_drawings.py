"""Draw tests/assets/drawings: small pictures of our own, to measure on where no corpus is at hand.

    PYTHONPATH=. python scripts/draw_drawings.py tests/assets/drawings

Six shapes in four colours, 64 x 64, with a caption each; edits that change the colour, and
questions about shape and colour. The figures of docs/ledger.md are of the files that are committed:
another Pillow may draw an edge otherwise.
"""

import argparse
import gzip
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tokenizer.manifest import write_file

SIZE, SCALE = 64, 4  # drawn larger and made small, for smooth edges
COLOURS = {"red": "#d93025", "blue": "#1a5fd0", "green": "#1e8e3e", "yellow": "#fbbc04"}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")


def drawing(shape: str, colour: str) -> Image.Image:
    """A shape in the middle of a white picture."""
    side = SIZE * SCALE
    image = Image.new("RGB", (side, side), "white")
    draw, fill, low, high = ImageDraw.Draw(image), COLOURS[colour], side // 8, side * 7 // 8
    middle, radius = side / 2, side * 3 / 8
    match shape:
        case "circle":
            draw.ellipse((low, low, high, high), fill=fill)
        case "ring":
            draw.ellipse((low, low, high, high), outline=fill, width=side // 8)
        case "square":
            draw.rectangle((low, low, high, high), fill=fill)
        case "triangle":
            draw.polygon([(middle, low), (high, high), (low, high)], fill=fill)
        case "star":
            turns = [math.pi * (k / 5 - 0.5) for k in range(10)]
            far = [radius * (1 if k % 2 == 0 else 0.4) for k in range(10)]
            points = [
                (middle + r * math.cos(t), middle + r * math.sin(t))
                for r, t in zip(far, turns, strict=True)
            ]
            draw.polygon(points, fill=fill)
        case _:
            draw.polygon([heart(math.tau * k / 200, middle, radius) for k in range(200)], fill=fill)
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def heart(turn: float, middle: float, radius: float) -> tuple[float, float]:
    """A point of the heart curve."""
    waves = zip((13, -5, -2, -1), range(1, 5), strict=True)
    height = sum(part * math.cos(k * turn) for part, k in waves)
    return middle + radius / 17 * 16 * math.sin(turn) ** 3, middle - radius / 17 * height


def write_tar(path: Path) -> None:
    """All pictures with their captions."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for shape in SHAPES:
            for colour in COLOURS:
                name, file = f"{colour}-{shape}", io.BytesIO()
                drawing(shape, colour).save(file, "PNG", optimize=True)
                about = {"id": name, "kind": "drawing", "label": shape, "style": colour}
                about |= {"captions": [f"a {colour} {shape}"]}
                for ending, data in (
                    ("png", file.getvalue()),
                    ("json", json.dumps(about).encode()),
                ):
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    write_file(path, whole.getvalue())


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line, packed."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    write_file(path, gzip.compress(text.encode(), mtime=0))


def main(folder: Path) -> None:
    """Write the folder's three files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tar(folder / "test-0.tar")
    others = [colour for colour in COLOURS if colour != "red"]
    edits = [
        {"source": f"red-{shape}", "target": f"{colour}-{shape}", "type": "recolour",
         "instructions": [f"make it {colour}"]}
        for shape in SHAPES for colour in others
    ]  # fmt: skip
    asked = {"colour": "What colour is it?", "shape": "What is it?"}
    questions = [
        {"id": f"{colour}-{shape}", "question": text, "type": kind,
         "answer": colour if kind == "colour" else shape}
        for shape in SHAPES for colour in COLOURS for kind, text in asked.items()
    ]  # fmt: skip
    write_lines(folder / "edits.jsonl.gz", edits)
    write_lines(folder / "questions.jsonl.gz", questions)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
