"""`data encode` of tars that were damaged in every way: what is lost is told, and nothing else ends
a run than one line for the user."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tokenizer.data.shards import Shards
from tokenizer.data.sources import read_source
from tokenizer.data.tars import Tally
from tokenizer.errors import UserError
from train.data.encode import Work, coded, encode

TIMES = 200
COUNT = 6
BLOCK = 512
Draw = np.random.Generator


class Mean:
    """An image tokenizer whose one code is the mean colour."""

    hash, size, grid, codes = "mean", 4, 1, 256

    def encode(self, pixels_B3HW: torch.Tensor) -> torch.Tensor:
        return ((pixels_B3HW.mean(dim=(1, 2, 3)) + 1) * 127.5).round().long().unsqueeze(1)


def whole_tar() -> tuple[bytes, list[int]]:
    """A tar of COUNT samples, and where its members begin."""
    file = io.BytesIO()
    starts = list[int]()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(COUNT):
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (40 * number,) * 3).save(picture, "PNG")
            table = {"id": f"p{number}", "caption": f"grey {number}"}
            parts = {"png": picture.getvalue(), "json": json.dumps(table).encode()}
            if number % 3 == 2:
                parts["json"] = parts["json"] + b" " * 600
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"in/{number}.{ending}")
                member.size = len(data)
                starts.append(archive.offset)
                archive.addfile(member, io.BytesIO(data))
    return file.getvalue(), starts


WHOLE, STARTS = whole_tar()


def seal(data: bytearray, start: int) -> None:
    """Give a member's header the checksum that it should have."""
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])


def broken(draw: Draw) -> tuple[bytes, bool]:
    """A damaged tar, and whether all its members still stand where they stood."""
    data, start = bytearray(WHOLE), STARTS[int(draw.integers(len(STARTS)))]
    place = int(draw.integers(len(data)))
    match int(draw.integers(9)):
        case 0:  # a byte of a header, its checksum right
            data[start + int(draw.integers(BLOCK))] = int(draw.integers(256))
            seal(data, start)
        case 1:  # another size
            sizes = (
                b"%011o\0" % int(draw.integers(5000)),
                b"\x80" + draw.bytes(11),
                b"-0000000001\0",
            )
            data[start + 124 : start + 136] = sizes[int(draw.integers(3))]
            seal(data, start)
        case 2:  # another kind: links, folders, long names, pax headers, sparse files
            data[start + 156] = int(draw.choice(list(b"12345gxLKSDV\0Z")))
            seal(data, start)
        case 3:  # another name
            name = draw.choice(
                ["../../up.png", "/abs.json", "in/1.png", "x", "\udcff.png", "a\nb.txt"]
            )
            data[start : start + 100] = (
                str(name).encode("utf-8", "surrogateescape").ljust(100, b"\0")
            )
            seal(data, start)
        case 4:
            return bytes(data[:place]), False
        case 5:
            return bytes(
                data[:place] + draw.bytes(int(draw.integers(1, 2000))) + data[place:]
            ), False
        case 6:
            return bytes(data[:place] + data[place + BLOCK :]), False
        case 7:  # a byte of what a member holds
            data[start + BLOCK + int(draw.integers(60))] ^= 1 << int(draw.integers(8))
            return bytes(data), True
        case _:
            data[place : place + 100] = draw.bytes(100)
            return bytes(data[: len(WHOLE)]), False
    return bytes(data), False


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_what_a_broken_tar_loses_is_told(tmp_path: Path) -> None:
    outcomes = Counter[str]()
    for number in range(TIMES):
        tar, tally, ids = tmp_path / "t-0.tar", Tally(), set[str]()
        data, in_place = broken(np.random.default_rng(number))
        tar.write_bytes(data)
        try:
            made = list(
                coded(read_source(str(tar), tally), Work(image_tokenizer=Mean()), tally, ids)
            )
        except UserError as error:
            outcomes["refused" if "\n" not in str(error) else "in several lines"] += 1
            continue
        except BaseException as error:
            raise AssertionError(f"tar {number}: {error!r}") from error
        assert len(made) == len(ids) == tally.pictures, number
        lost = COUNT - len(made)
        if in_place:
            assert lost <= len(tally.skipped), number
        assert lost <= 0 or tally.skipped or tally.ignored, number
        outcomes["less" if lost > 0 else "whole"] += 1
    assert set(outcomes) == {"refused", "whole", "less"}
    assert min(outcomes.values()) >= 2, outcomes


def test_what_is_skipped_stands_in_the_shards(tmp_path: Path) -> None:
    tar, told = tmp_path / "t-0.tar", list[str]()
    data = bytearray(WHOLE)
    data[STARTS[2] + BLOCK] ^= 1  # no PNG any more
    tar.write_bytes(data)
    out = tmp_path / "out"
    encode([str(tar)], None, None, Work(image_tokenizer=Mean()), out, say=told.append)
    assert [picture["id"] for picture in Shards.open(out).every_picture()] == [
        f"p{number}" for number in range(COUNT) if number != 1
    ]
    lines = (out / "skipped.jsonl").read_text("utf-8").splitlines()
    assert "5 images read, 0 left out by id, 1 damaged things skipped" in told
    assert [json.loads(line)["what"] for line in lines] == ["t-0/in/1"]
