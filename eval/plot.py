"""A plain line plot with intervals, drawn with what reads pictures anyway."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from eval.report import Value

SIZE = (640, 400)
LEFT, TOP, RIGHT, BOTTOM = 60, 20, 20, 90
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#b8860b", "#444444")
TICKS = 5  # of the upright axis, about


@dataclass(frozen=True, kw_only=True)
class Line:
    """Figures over x."""

    name: str
    x: Sequence[float]
    values: Sequence[Value]


def plot(lines: Sequence[Line], across: str, up: str) -> Image.Image:
    """The lines with their 95% intervals as bars, from 0 up; `across` and `up` name the axes."""
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    first, last = min(min(one.x) for one in lines), max(max(one.x) for one in lines)
    most = max(value.high or value.value for one in lines for value in one.values) or 1.0
    step = round_step(most / TICKS)
    top = step * -(-most // step)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return LEFT + width * share, TOP + height * (1 - y / top)

    for tick in range(round(top / step) + 1):
        y = step * tick
        draw.line([at(first, y), at(last, y)], "#dddddd")
        draw.text((8, at(first, y)[1] - 6), f"{y:.3g}", "black", font)
    for x in sorted({x for one in lines for x in one.x}):
        draw.text((at(x, 0)[0] - 6, TOP + height + 6), f"{x:g}", "black", font)
    draw.text((LEFT + width // 2, TOP + height + 22), across, "black", font)
    draw.text((8, 4), up, "black", font)
    for number, one in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = [at(x, value.value) for x, value in zip(one.x, one.values, strict=True)]
        draw.line(points, colour, 2)
        for x, value, (left, middle) in zip(one.x, one.values, points, strict=True):
            draw.ellipse((left - 3, middle - 3, left + 3, middle + 3), colour)
            if value.low is not None and value.high is not None:
                draw.line([at(x, value.low), at(x, value.high)], colour)
        row, column = divmod(number, 2)
        place = (LEFT + column * width // 2, TOP + height + 40 + 14 * row)
        draw.text(place, one.name, colour, font)
    return image


def round_step(least: float) -> float:
    """The least of 1, 2 or 5 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))
