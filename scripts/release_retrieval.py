"""Put a trained encoder and a memory of its documents into the package as the default ones.

    python scripts/release_retrieval.py runs/encoder/encoder runs/memory

Replaces retrieval/assets/default and retrieval/assets/memory. The memory that ships holds COUNT of
the other's documents, vectors in float16: kinds in the shares below, and of a kind those without a
skin tone first, one document of every family, then a second of each, and so on, in an order that
their ids alone decide.
"""

import hashlib
import re
import shutil
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.build import calibrate
from retrieval.encoder import SmallEmbedder
from retrieval.memory import Memory

HERE = Path(__file__).parent
ASSETS = HERE.parent / "retrieval" / "assets"
COUNT = 17_500
SHARES = {"emoji": 0.9, "clipart": 0.03, "icon": 0.06, "photo": 0.01}
KEPT = ("id", "captions", "kind", "licence", "credit")
TONE = re.compile("-1F3F[B-F]")  # a skin tone in a code point


def choose(known: dict[str, dict[str, Any]]) -> list[str]:
    """The ids of the documents that ship, in rising order."""
    chosen: list[str] = []
    for kind, share in SHARES.items():
        families: dict[tuple[bool, str], list[str]] = defaultdict(list)
        for name in sorted(known, key=lambda name: hashlib.sha256(name.encode()).digest()):
            metadata = known[name]
            if metadata.get("kind") == kind:
                toned = TONE.search(metadata.get("codepoint", "")) is not None
                families[toned, metadata.get("family", name)].append(name)
        ranked = [
            (toned, rank, name)
            for (toned, _), some in families.items()
            for rank, name in enumerate(some)
        ]
        ranked.sort(key=lambda one: one[:2])
        chosen += [name for *_, name in ranked[: round(share * COUNT)]]
    return sorted(chosen)


def main() -> None:
    embedder, bank = SmallEmbedder.load(sys.argv[1]), Memory.open(sys.argv[2], say=print)
    card = (HERE / "default" / "encoder.md").read_text("utf-8")
    ASSETS.mkdir(exist_ok=True)
    embedder.save(ASSETS / "default", card=card, replace=True)
    assert SmallEmbedder.load(ASSETS / "default").id == bank.contents.encoder

    places = {bank.segments[p.segment].document(p.row)[0]["id"]: p for p in bank.places()}
    chosen = choose({name: bank.row(name)[0] for name in places})
    rows = [bank.row(name) for name in chosen]
    told = [{key: metadata[key] for key in KEPT if key in metadata} for metadata, _ in rows]
    short = [{**one, "captions": one["captions"][:1]} for one in told]
    vectors = [bank.segments[places[n].segment].vector(places[n].row) for n in chosen]
    halves = np.stack(vectors).astype(np.float16)
    folder = ASSETS / "memory"
    shutil.rmtree(folder, ignore_errors=True)
    memory = Memory.create(folder, replace(bank.contents, segments=()))
    memory = memory.add(zip(short, [codes for _, codes in rows], strict=True), halves)
    memory = calibrate(memory)
    for place in ("default", "memory"):
        shutil.copyfile(HERE / "default" / "NOTICE.md", ASSETS / place / "NOTICE.md")
    for name in ("verified.json", ".lock"):
        (folder / name).unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {memory.count:,} documents, {size:,} bytes, near {memory.contents.near:.4f}")


if __name__ == "__main__":
    main()
