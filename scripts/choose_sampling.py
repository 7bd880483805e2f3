"""Choose how to draw by default: which settings paint pictures that are nearest to what was asked.

    PYTHONPATH=. python scripts/choose_sampling.py MODEL SHARDS mobilenet_v2.safetensors \\
        --skip docs/sheets/prompts.json

Emoji of token shards, evenly spaced (no flags, keycaps, tone variants; none of the sheet to skip),
are painted from their first caption at one seed. A painted picture is a hit where, among the real
pictures of its style as the codebook gives them back, the nearest one (cosine of pooled MobileNetV2
features) is of the family that was asked for. Prints hits at 1 and at 5 for each setting. With
`--memory MEMORY --retrieve K` documents stand in front, found by the caption alone.
"""

# Shapes: P = real pictures of a style, B = painted pictures, F = features

import argparse
import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cm3leon import grammar, prompts
from cm3leon.generate import generate_batch
from cm3leon.pipeline import CM3Leon
from cm3leon.request import Request, Streams
from cm3leon.sampling import Sampling
from eval.figures import evenly
from eval.retrieval import look_up
from eval.sheet import is_plain
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory
from tokenizer.document import Document
from tokenizer.features import FeatureNet
from tokenizer.shards import Shards

DEFAULT = Path(__file__).parent.parent / "retrieval" / "assets" / "default"
TOGETHER = 40  # pictures painted in one batch
TEMPERATURES, SCALES, SHARES = (0.0, 0.3, 0.5, 0.7, 1.0), (1.0, 2.0, 3.0, 5.0), (0.9,)


@dataclass(frozen=True)
class Asked:
    """One prompt, and what would be a hit."""

    prompt: str
    style: str
    family: str
    documents: tuple[Document, ...] = ()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Choose how to draw by default.")
    parser.add_argument("model")
    parser.add_argument("shards")
    parser.add_argument("features", type=Path)
    parser.add_argument("--skip", type=Path, required=True)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--retrieve", type=int, default=0)
    parser.add_argument("--limit", type=int, default=160)
    parser.add_argument("--temperatures", type=float, nargs="+", default=TEMPERATURES)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    given = parser.parse_args()
    leon = CM3Leon.from_pretrained(given.model)
    shards = Shards.open(given.shards, leon.image_tokenizer.hash, leon.codec.text.hash)
    net = FeatureNet.load(given.features)
    skipped = {one["id"] for one in json.loads(given.skip.read_text("utf-8"))["pictures"]}
    emoji = [
        (number, picture)
        for number, picture in enumerate(shards.every_picture())
        if "family" in picture and is_plain(picture)
    ]
    real = real_features(leon, shards, net, emoji)
    others = [picture for _, picture in emoji if picture["id"] not in skipped]
    chosen = [others[place] for place in evenly(range(len(others)), given.limit)]
    captions, ids = [one["captions"][0] for one in chosen], [one["id"] for one in chosen]
    documents = retrieved(leon, given.memory, captions, ids, given.retrieve)
    asked = [
        Asked(caption, one["style"], one["family"], some)
        for caption, one, some in zip(captions, chosen, documents, strict=True)
    ]
    print(f"model {leon.hash}, {len(asked)} prompts, {given.retrieve} documents in front")
    grid = itertools.product(given.temperatures, given.scales, given.shares)
    for temperature, scale, share in grid:
        sampling = Sampling(temperature=temperature, top_p=share, cfg_scale=scale)
        painted_BF = features(leon, net, paint(leon, asked, sampling))
        first, fifth = hits(painted_BF, asked, real)
        print(f"temperature {temperature} guidance {scale} top-p {share}: {first:.3f} {fifth:.3f}")


def retrieved(
    leon: CM3Leon, folder: Path | None, captions: list[str], ids: list[str], count: int
) -> list[tuple[Document, ...]]:
    """Up to `count` documents for each caption, never its own picture."""
    if folder is None or not count:
        return [()] * len(captions)
    embedder = SmallEmbedder.load(DEFAULT)
    memory = Memory.open(folder, embedder.id, leon.image_tokenizer.hash)
    found = look_up(memory, embedder, captions, ids, count)
    return [tuple(memory.document(one.id) for one in some) for some in found]


def real_features(
    leon: CM3Leon, shards: Shards, net: FeatureNet, emoji: list[tuple[int, dict[str, Any]]]
) -> dict[str, tuple[Tensor, list[str]]]:
    """For each style the features_PF of its pictures, and their families."""
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for number, picture in emoji:
        rows[picture["style"]].append((number, picture["family"]))
    return {
        style: (
            features(leon, net, [shards.picture(number)[1] for number, _ in row]),
            [family for _, family in row],
        )
        for style, row in rows.items()
    }


def features(leon: CM3Leon, net: FeatureNet, codes: list[tuple[int, ...]]) -> Tensor:
    """Pooled features of pictures' codes, each of length 1: [B, F]."""
    parts = [leon.image_tokenizer.decode(part) for part in torch.tensor(codes).split(64)]
    return torch.cat([F.normalize(net.pooled(pixels_B3HW), dim=-1) for pixels_B3HW in parts])


def paint(leon: CM3Leon, asked: list[Asked], sampling: Sampling) -> list[tuple[int, ...]]:
    """The codes of one picture a prompt, seed 0."""
    rule = grammar.picture(leon.codec.vocabulary, leon.codec.picture_codes)
    requests = [
        Request(
            streams=Streams(
                tuple(
                    leon.codec.open(stream, one.documents)
                    for stream in prompts.paint(one.prompt, examples=bool(one.documents))
                )
            ),
            grammar=rule,
            seeds=(0,),
            sampling=sampling,
        )
        for one in asked
    ]
    found: list[tuple[int, ...]] = []
    for start in range(0, len(requests), TOGETHER):
        rows = generate_batch(leon.model, requests[start : start + TOGETHER])
        found += [leon.codec.decode_codes(row) for (row,) in rows]
    return found


def hits(
    painted_BF: Tensor, asked: list[Asked], real: dict[str, tuple[Tensor, list[str]]]
) -> tuple[float, float]:
    """How often the asked family is that of the nearest picture, and of one of the nearest five."""
    first = fifth = 0
    for painted_F, one in zip(painted_BF, asked, strict=True):
        features_PF, families = real[one.style]
        nearest = (features_PF @ painted_F).topk(5).indices.tolist()
        first += families[nearest[0]] == one.family
        fifth += one.family in [families[place] for place in nearest]
    return first / len(asked), fifth / len(asked)


if __name__ == "__main__":
    main()
