"""The emoji corpus out of tiny packages: what is told of pictures, what a kill costs."""

import hashlib
import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tokenizer.data.tars import Sample, Tally, find_tars, read_ids, read_samples
from tokenizer.pixels import open_image
from train.data.corpus import read_edits, read_questions
from train.emoji import build as emoji
from train.emoji import draw as emoji_pictures
from train.emoji import fetch as emoji_packages
from train.emoji.fetch import DEBIAN, NPM, PACKAGES
from train.emoji.names import split_of
from train.emoji.styles import EMOJI, ICONS

TONES = {"1F3FB": "light", "1F3FF": "dark"}
# label, code points, group, subgroup, tags, skins?
EMOJIS: list[tuple[str, str, int, int, list[str]]] = [
    ("grinning face", "1F600", 0, 0, ["happy"]),
    ("winking face", "1F609", 0, 0, ["flirt", "wink"]),  # held out in Noto's style
    ("grinning cat", "1F63A", 0, 1, ["cat"]),
    ("red heart", "2764-FE0F", 0, 0, ["love"]),
    ("blue heart", "1F499", 0, 0, ["love"]),
    ("waving hand", "1F44B", 1, 2, ["hello", "wave"]),
    ("man", "1F468", 1, 2, ["adult"]),
    ("woman", "1F469", 1, 2, ["adult"]),
    ("one o'clock", "1F550", 2, 3, ["time"]),
    ("two o'clock", "1F551", 2, 3, ["time"]),
    ("flag: France", "1F1EB-1F1F7", 2, 3, ["FR"]),
]
TONED = {"waving hand", "man", "woman"}
CLIPART = """<svg width="20" height="10"><metadata>
<cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/><dc:title>{title}</dc:title>
<dc:creator><dc:title>Jane Doe</dc:title></dc:creator><dc:description>{description}</dc:description>
<rdf:li>animal</rdf:li><rdf:li>hash(1)</rdf:li></metadata>{body}</svg>"""


def tables() -> dict[str, Any]:
    """emojibase's two files of these emoji."""
    data: list[dict[str, Any]] = []
    for label, codepoint, group, subgroup, tags in EMOJIS:
        about = {"emoji": "?", "group": group, "subgroup": subgroup, "tags": tags}
        skins = [
            {"label": f"{label}: {tone} skin tone", "hexcode": f"{codepoint}-{number}"}
            for number, tone in TONES.items()
            if label in TONED
        ]
        data.append({"label": label, "hexcode": codepoint, **about, "skins": skins})
    kinds = [["smileys", "people", "objects"], ["face", "cat face", "hand", "time"]]
    groups, subgroups = (
        [{"order": number, "message": name} for number, name in enumerate(names)] for names in kinds
    )
    messages = {"groups": groups, "subgroups": subgroups}
    return {"en/data.json": data, "en/messages.json": messages}


def everyone() -> Iterator[tuple[str, str]]:
    """Code points and label of every emoji and tone."""
    for one in tables()["en/data.json"]:
        for emoji_or_skin in (one, *one["skins"]):
            yield emoji_or_skin["hexcode"], emoji_or_skin["label"]


def tar_of(members: dict[str, bytes], mode: str, *links: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def tgz(texts: dict[str, Any]) -> bytes:
    members = {f"package/{name}": json.dumps(text).encode() for name, text in texts.items()}
    return tar_of(members, "w:gz", "package/icons.json.link")


def deb(members: dict[str, bytes]) -> bytes:
    parts = {"debian-binary": b"2.0", "data.tar.xz": tar_of(members, "w:xz", "./link.svg")}
    out = b"!<arch>\n"
    for name, data in parts.items():
        out += f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def icons(names: list[str], style: str, **more: dict[str, Any]) -> dict[str, Any]:
    bodies = {name: {"body": f"<!-- {style} {name} -->", **more.get(name, {})} for name in names}
    return {"width": 16, "height": 16, "icons": bodies}


def contents() -> dict[str, bytes]:
    """Every package, tiny."""
    slugs = {points: label.replace(": ", "-").replace("'", "") for points, label in everyone()}
    slugs = {points: name.replace(" ", "-") for points, name in slugs.items()}
    found: dict[str, bytes] = {"emojibase-data": tgz(tables())}
    for style in EMOJI:
        names = [*slugs.values(), "no-such-thing"]
        characters = {points.lower(): name for points, name in slugs.items()}
        texts = {"icons.json": icons(names, style.name), "chars.json": characters}
        found[style.package] = tgz(texts)
    for style in ICONS:
        named = {"circle-flags": ["fr", "en-us"], "meteocons": ["sun-day-fill", "sun-night-fill"]}
        named["fluent-color-icon"] = ["cloud-16", "cloud-48", "cloud-24"]
        names = named.get(style.name, ["red-heart", "twitter", "house-2", "box"])
        texts = icons(names, style.name, box={"hidden": True})
        found[style.package] = tgz({"icons.json": texts})
    found["fluent-emoji-3d"] = tar_of(
        {
            f"package/assets/{points.lower()}.webp": picture(points, "WEBP", (40, 20))
            for points, _ in everyone()
        },
        "w:gz",
    )
    arts = {
        "animals/red_fox_jane_doe_01": CLIPART.format(title="Red Fox", description="", body="a"),
        "animals/red_fox_again": CLIPART.format(title="Red Fox", description="", body="a"),
        "signs_and_symbols/flags/x": CLIPART.format(
            title="Sealand", description="A small place at sea", body="b"
        ),
        "logos/firm": CLIPART.format(title="A Firm", description="", body="c"),
        "owned": CLIPART.format(title="Owned", description="", body="d").replace("Public", "By"),
    }
    root = "./usr/share/openclipart"
    found["openclipart-svg"] = deb({f"{root}/svg/{k}.svg": v.encode() for k, v in arts.items()})
    found["openclipart-png"] = deb({f"{root}/png/{k}.png": picture(k) for k in arts})
    return found


def picture(text: str, kind: str = "PNG", size: tuple[int, int] = (16, 16)) -> bytes:
    """A box whose colour a text draws, on nothing."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    colour = hashlib.sha256(text.encode()).digest()[:3]
    ImageDraw.Draw(image).rectangle((4, 4, size[0] - 5, size[1] - 5), (*colour, 255))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@dataclass
class World:
    """A registry of tiny packages, and what was asked of it."""

    packages: dict[str, bytes]
    asked: list[str]
    drawn: list[str]
    said: list[str]

    def download(self, url: str, size: int) -> bytes:
        self.asked.append(url)
        (data,) = (
            self.packages[name]
            for name, package in PACKAGES.items()
            if package.url(NPM, DEBIAN) == url
        )
        return data[: size + 1]

    def rasterise(self, svg: str, side: int, wide: bool) -> bytes:
        self.drawn.append(svg)
        return picture(svg.partition("</metadata>")[2] or svg)

    def make(self, out: Path, packages: Path | None = None) -> Path:
        return emoji.main(out, packages, jobs=1, say=self.said.append)


@pytest.fixture(scope="module")
def tiny_packages() -> dict[str, bytes]:
    return contents()


@pytest.fixture
def world(tiny_packages: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> World:
    one = World(dict(tiny_packages), [], [], [])
    for name, data in tiny_packages.items():
        digest = hashlib.sha256(data).hexdigest()
        package = replace(PACKAGES[name], size=len(data), sha256=digest)
        monkeypatch.setitem(PACKAGES, name, package)
    assert one.packages.keys() == PACKAGES.keys()
    monkeypatch.setattr(emoji_packages, "download", one.download)
    monkeypatch.setattr(emoji_pictures, "rasterise", one.rasterise)
    monkeypatch.setattr(emoji, "check_rasteriser", lambda: "none")
    return one


def read(out: Path, split: str = "") -> dict[str, Sample]:
    tally = Tally()
    found = {one.metadata["id"]: one for one in read_samples(find_tars(out, split), tally)}
    assert not tally.skipped
    return found


def test_every_style_comes_with_captions_and_one_split_a_family(
    world: World, tmp_path: Path
) -> None:
    out = world.make(tmp_path / "out")
    found = read(out)
    styles = Counter(one.metadata["style"] for one in found.values())
    assert [styles[style.name] for style in EMOJI] == [len(list(everyone()))] * 8
    assert styles["fluent-color-icon"] == styles["circle-flags"] == 1
    assert styles["flat-color-icons"] == styles["meteocons"] == styles["openclipart"] == 2
    for split in ("train", "val", "test"):
        if any(out.glob(f"{split}-*.tar")):
            for one in read(out, f"{split}-").values():
                kin = one.metadata["family"]
                if one.metadata["kind"] == "emoji":
                    assert split_of(kin) == split
    hand = found["noto_1f44b-1f3fb"].metadata
    assert hand["captions"] == [
        "waving hand, light skin tone, Noto emoji style",
        "waving hand, light skin tone",
        "an emoji of waving hand, light skin tone in flat Google emoji",
        "waving hand, light skin tone (hello, wave), Google Noto style",
        "icon showing hello, wave: waving hand, light skin tone",
        "a picture of waving hand, light skin tone, people, Noto emoji style",
    ]
    assert hand["family"] == "1f44b"
    assert hand["codepoint"] == "1F44B-1F3FB"
    assert hand["licence"] == "Apache-2.0"
    assert hand["source"] == PACKAGES["noto"].source
    assert found["circle-flags_fr"].metadata["label"] == "flag of France"
    assert "fluent-color-icon_cloud-48" in found
    assert "icon-park_twitter" not in found
    for one in found.values():
        image = open_image(one.picture)
        assert image.size == (128, 128)
        assert min(int(value) for value in np.asarray(image)[0, 0]) > 250


def test_clip_art_is_named_by_its_own_words(world: World, tmp_path: Path) -> None:
    found = read(world.make(tmp_path / "out")).values()
    fox, flag = sorted(
        (one.metadata for one in found if one.metadata["style"] == "openclipart"),
        key=lambda about: about["group"],
    )
    assert (fox["label"], fox["tags"]) == ("red Fox", ["animal", "animals"])
    assert fox["credit"] == "Open Clip Art Library: Jane Doe"
    assert flag["captions"][1] == "flag of sealand"
    assert flag["captions"][-1] == "A small place at sea"


def test_edits_and_questions_are_read_whole(world: World, tmp_path: Path) -> None:
    out = world.make(tmp_path / "out")
    ids, tally = set(read(out)), Tally()
    edits = list(read_edits(out / "edits.jsonl.gz", ids, tally))
    questions = list(read_questions(out / "questions.jsonl.gz", ids, tally))
    assert not tally.skipped
    assert not tally.outside
    by_ends = {(one["source"], one["target"]): one for one in edits}
    assert len(by_ends) == len(edits)
    kinds = Counter(one["type"] for one in edits)
    assert {"style", "skin tone", "gender", "day/night"} <= kinds.keys()
    assert by_ends["noto_1f44b", "noto_1f44b-1f3ff"]["instructions"][0] == (
        "change the skin tone to dark"
    )
    assert by_ends["noto_1f468", "noto_1f469"]["instructions"] == [
        "make it a woman",
        "change the man to a woman",
    ]
    asked = {(one["picture"], one["question"]): one["answer"] for one in questions}
    assert asked["noto_1f44b-1f3ff", "What is the skin tone?"] == "dark"
    assert asked["twemoji_1f550", "What time does the clock show?"] == "one o'clock"
    assert asked["twemoji_1f44b", "Which emoji style is this drawn in?"] == "Twemoji"
    assert asked["circle-flags_fr", "Whose flag is this?"] == "France"
    assert Counter(one["answer"] for one in questions if one["type"] == "yesno").keys() == {
        "yes",
        "no",
    }


def test_the_pairs_held_out_are_listed_and_stay_in_train(world: World, tmp_path: Path) -> None:
    out = world.make(tmp_path / "out")
    train = read(out, "train-")
    held_out = read_ids(out / "heldout-pairs.txt")
    assert "noto_1f609" in held_out
    assert "twemoji_1f609" not in held_out
    assert held_out <= train.keys()


def test_the_notice_names_every_package_and_licence(world: World, tmp_path: Path) -> None:
    text = (world.make(tmp_path / "out") / "NOTICE.md").read_text()
    for package in PACKAGES.values():
        row = next(line for line in text.splitlines() if f"| {package.source} |" in line)
        assert package.authors in row
        assert package.licence in row
        assert package.sha256 in row


def test_what_lies_there_is_not_fetched_and_the_corpus_is_the_same(
    world: World, tmp_path: Path
) -> None:
    first = world.make(tmp_path / "one", tmp_path / "packages")
    assert len(world.asked) == len(PACKAGES)
    assert sum(line.startswith("fetching https://") for line in world.said) == len(PACKAGES)
    world.asked.clear()
    second = world.make(tmp_path / "two", tmp_path / "packages")
    assert not world.asked
    names = sorted(path.name for path in first.iterdir())
    assert [(second / name).read_bytes() for name in names] == [
        (first / name).read_bytes() for name in names
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "packages", "two"]


def test_a_killed_run_goes_on_where_it_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = world.make(tmp_path / "whole")
    count, calls = len(world.drawn), itertools.count()

    def dying(*given: Any) -> bytes:
        if next(calls) == count // 2:
            raise KeyboardInterrupt
        return world.rasterise(*given)

    monkeypatch.setattr(emoji_pictures, "rasterise", dying)
    with pytest.raises(KeyboardInterrupt):
        world.make(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    world.drawn.clear()
    out = world.make(tmp_path / "out")
    assert 0 < len(world.drawn) < count
    assert (out / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    assert not (tmp_path / "out.parts").exists()
