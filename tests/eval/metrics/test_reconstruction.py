"""PSNR of known errors."""

import math

import pytest
from PIL import Image

from eval.metrics.reconstruction import psnr


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (value,) * 3)


def test_psnr_of_known_errors() -> None:
    assert psnr(grey(0), grey(255)) == 0
    assert psnr(grey(100), grey(110)) == pytest.approx(20 * math.log10(255 / 10))
    assert psnr(grey(7), grey(7)) == pytest.approx(10 * math.log10(255**2 * 48))
