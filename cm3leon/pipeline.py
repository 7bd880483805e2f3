"""`CM3Leon`: a complete model with one method per task, with images and text as input and output.

The whole data path: prompts -> codec -> generate -> codec -> image tokenizer. The command line,
evaluation and users all go through this class.
"""

# Shapes: H, W = pixels per side, L = codes of one image, 3 = red, green, blue

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image

from cm3leon import checkpoint, grammar, prompts
from cm3leon import rerank as pool
from cm3leon.attention import best_attention
from cm3leon.checkpoint import TaskSampling
from cm3leon.engine.request import Streams
from cm3leon.fast.quantize import Precision, prepare
from cm3leon.generate import Progress, Watch, generate
from cm3leon.model import Decoder
from cm3leon.preview import Live, Watcher
from cm3leon.regions import Box, blend, cells_of, mask_of, mask_of_changed
from cm3leon.sampling import Sampling
from cm3leon.weight_format import Stored
from tokenizer.codec import Codec
from tokenizer.document import Document, Picture
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import fit, open_image, to_image, to_pixels

Source = Image.Image | Path | str  # an RGB image, or the path of an image file
Say = Callable[[str], None]

TEXT_LIMIT = 256  # maximum pieces of a caption or an answer, if the context has room for them


class CM3Leon:
    """Decoder with its tokenizers.

    Sample i of a request has the seed `seed + i`; the same request gives the same result, bit for
    bit, on one machine. All methods raise UserError for errors that the user can correct.
    `sampling` replaces the model's default for the task; `progress` is called with (tokens so far,
    maximum), `watch` now and then with (the image so far or a sheet of all images, the fraction
    generated).
    """

    def __init__(
        self,
        model: Decoder,
        codec: Codec,
        image_tokenizer: ImageTokenizer,
        sampling: TaskSampling | None = None,
        model_hash: str = "",
        precision: Precision = "fp32",
    ) -> None:
        self.model = model
        self.codec = codec
        self.image_tokenizer = image_tokenizer
        self.sampling = sampling or TaskSampling()
        self.hash = model_hash  # of the checkpoint folder; "" if not loaded from one
        self.precision: Precision = precision  # of the decoder's weights

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str = "default",
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        say: Say | None = None,
    ) -> Self:
        """Load a checkpoint: a folder, `default` (shipped with the package) or `hf:owner/name`.

        device: `cpu`, `cuda`, `cuda:1` ..., or `auto` for a GPU where there is one; precision: of
        the decoder's weights (`cm3leon.fast.quantize.prepare`).
        """
        place = pick_device(device)
        parts = checkpoint.load(checkpoint.find(source, say))
        aloud = None if place.type == "cpu" else say  # on a CPU there is nothing to choose
        parts.model.to(place).attend = best_attention(place, say=aloud)
        image_tokenizer = parts.image_tokenizer.to(place)
        chosen = prepare(parts.model, precision, aloud if precision == "auto" else say)
        return cls(parts.model, parts.codec, image_tokenizer, parts.sampling, parts.hash, chosen)

    def save_pretrained(self, folder: Path | str, *, stored: Stored = "fp32") -> None:
        """Write the checkpoint as a new folder, with the decoder's weights as `stored`."""
        if self.precision != "fp32":
            raise UserError(
                f"the decoder's weights are packed as {self.precision}, which is not stored; load "
                "the model with precision 'fp32' to save it"
            )
        parts = (self.model, self.codec, self.image_tokenizer)
        checkpoint.save(folder, *parts, sampling=self.sampling, stored=stored)

    def text_to_image(
        self,
        prompt: str,
        n: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        retrieved: Sequence[Document] = (),
        progress: Progress | None = None,
        watch: Watcher | None = None,
        streams: prompts.StreamForm = "trained",
        candidates: int = 1,
        mix: bool = False,
        score: pool.Score | None = None,
    ) -> list[Image.Image]:
        """Generate `n` images from a prompt; `retrieved` documents are in-context examples.

        Each image is the best by `score` of `candidates`, half of them drawn by CD-K with `mix`.
        All are generated in one batch, the candidates of an image with consecutive seeds.
        """
        documents = prompts.paint(prompt, examples=bool(retrieved), form=streams)
        chosen = sampling or self.sampling.text_to_image
        drawn = pool.samplings(chosen, candidates, mix) * n
        rows = self._paint(documents, retrieved, n * candidates, seed, drawn, progress, watch)
        return pool.pick(prompt, [self.to_image(row) for row in rows], candidates, score)

    def edit(
        self,
        image: Source,
        instruction: str,
        n: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        retrieved: Sequence[Document] = (),
        progress: Progress | None = None,
        watch: Watcher | None = None,
        streams: prompts.StreamForm = "trained",
    ) -> list[Image.Image]:
        """Edit an image according to an instruction. Where a code is unchanged, so are its
        pixels."""
        before = fit(_opened(image), self.image_tokenizer.size)
        source = self.to_picture(before)
        documents = prompts.change(instruction, source, form=streams)
        chosen = sampling or self.sampling.edit
        rows = self._paint(documents, retrieved, n, seed, chosen, progress, watch, source)
        masks = (mask_of_changed(source, row, before.width) for row in rows)
        return [blend(before, self.to_image(row), m) for row, m in zip(rows, masks, strict=True)]

    def infill(
        self,
        image: Source,
        region: Image.Image | Box,
        prompt: str | None = None,
        n: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        watch: Watcher | None = None,
    ) -> list[Image.Image]:
        """Regenerate a region of an image.

        The region is a box in the image's own pixels, or a mask of the same size that is white
        there. Outside the region, the pixels of the image are kept exactly.
        """
        whole = _opened(image)
        size = self.image_tokenizer.size
        before, mask_HW = fit(whole, size), mask_of(whole, region, size)
        wanted = cells_of(mask_HW, self.image_tokenizer.grid)
        asked = prompts.complete(self.to_picture(before), wanted, prompt)
        ids = self.codec.infill(asked.document)
        vocabulary, room = self.codec.vocabulary, self._room(ids)
        fillings = [grammar.code_filling(vocabulary, known) for known in asked.known]
        if prompt is None:
            coming = sum(len(known) + 2 for known in asked.known)
            fillings.insert(0, grammar.text_filling(vocabulary, min(TEXT_LIMIT, room - coming)))
        chosen = sampling or self.sampling.infill
        rule = grammar.infilling(vocabulary, fillings)
        live = self._live(watch, n, asked, lambda image: blend(before, image, mask_HW))
        rows = self._generate([ids], rule, n, seed, chosen, progress, live)
        found: list[Image.Image] = []
        for row in rows:
            parts = self.codec.fill(asked.document, grammar.split_fillings(vocabulary, row))
            assert isinstance(parts[-1], Picture)
            found.append(blend(before, self.to_image(parts[-1]), mask_HW))
        return found

    def caption(
        self,
        image: Source,
        n: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        retrieved: Sequence[Document] = (),
        progress: Progress | None = None,
    ) -> list[str]:
        """Caption an image `n` times (the same caption each time at temperature 0)."""
        document = prompts.describe(self.to_picture(image))
        chosen = sampling or self.sampling.caption
        return self._say(document, n, seed, chosen, progress, retrieved)

    def answer(
        self,
        image: Source,
        question: str,
        n: int = 1,
        seed: int = 0,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """Answer a question about an image."""
        document = prompts.ask(question, self.to_picture(image))
        return self._say(document, n, seed, sampling or self.sampling.answer, progress)

    def reconstruct(self, image: Source) -> Image.Image:
        """Encode and decode an image: the best quality that this model could generate."""
        return self.to_image(self.to_picture(image))

    def to_picture(self, image: Source) -> Picture:
        """Encode an image's central square to codes."""
        pixels_3HW = to_pixels(fit(_opened(image), self.image_tokenizer.size))
        codes_BL = self.image_tokenizer.encode(pixels_3HW.unsqueeze(0).to(self._pixel_device))
        return Picture(tuple(codes_BL[0].tolist()))

    def to_image(self, picture: Picture) -> Image.Image:
        """Decode codes to an image, one at a time, so that the batch never changes a bit."""
        codes_BL = torch.tensor([picture.codes], device=self._pixel_device)
        return to_image(self.image_tokenizer.decode(codes_BL)[0])

    @property
    def _pixel_device(self) -> torch.device:
        return next(self.image_tokenizer.net.parameters()).device

    def _room(self, ids: Sequence[int]) -> int:
        """Return the maximum length of a text after these ids (its stop is never fed back)."""
        return self.model.config.context - len(ids)

    def _generate(
        self,
        streams: Sequence[tuple[int, ...]],
        rule: grammar.Grammar,
        n: int,
        seed: int,
        sampling: Sampling | Sequence[Sampling],
        progress: Progress | None,
        watch: Watch | None = None,
        favoured: tuple[int, ...] = (),
    ) -> list[list[int]]:
        if n < 1:
            raise UserError(f"n is {n}; ask for at least 1")
        seeds = [seed + number for number in range(n)]
        prompt, row = Streams(tuple(streams)), self.image_tokenizer.grid
        return generate(self.model, prompt, rule, sampling, seeds, progress, watch, row, favoured)

    def _paint(
        self,
        documents: Sequence[Document],
        retrieved: Sequence[Document],
        n: int,
        seed: int,
        sampling: Sampling | Sequence[Sampling],
        progress: Progress | None,
        watch: Watcher | None,
        source: Picture | None = None,
    ) -> list[Picture]:
        streams = [self.codec.open(document, retrieved) for document in documents]
        rule = grammar.picture(self.codec.vocabulary, self.codec.picture_codes)
        live = self._live(watch, n)
        codes = () if source is None else self.codec.image_ids(source)
        rows = self._generate(streams, rule, n, seed, sampling, progress, live, codes)
        return [Picture(self.codec.decode_codes(row)) for row in rows]

    def _live(
        self,
        watch: Watcher | None,
        n: int,
        region: prompts.Region | None = None,
        finish: Callable[[Image.Image], Image.Image] | None = None,
    ) -> Live | None:
        if watch is None:
            return None
        size = self.image_tokenizer.size
        return Live(
            watch, self.codec, self.to_image, samples=n, size=size, region=region, finish=finish
        )

    def _say(
        self,
        document: Document,
        n: int,
        seed: int,
        sampling: Sampling,
        progress: Progress | None,
        retrieved: Sequence[Document] = (),
    ) -> list[str]:
        ids = self.codec.infill(document, retrieved)
        rule = grammar.text(self.codec.vocabulary, min(TEXT_LIMIT, self._room(ids)))
        rows = self._generate([ids], rule, n, seed, sampling, progress)
        return [self.codec.decode_text(row).strip() for row in rows]


def _opened(image: Source) -> Image.Image:
    if not isinstance(image, Image.Image):
        return open_image(image)
    if image.mode != "RGB":
        raise UserError(f"an image of mode {image.mode}; give RGB, or the name of its file")
    return image


def pick_device(name: str) -> torch.device:
    """Return the device of a name: `cpu`, `cuda`, `cuda:1` ..., or `auto`.

    Raises UserError if it is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; use cpu, cuda or auto") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no device {name!r} here; use cpu")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; use cpu, cuda or auto")
    return device
