"""Periodic evaluation during training: bits per held-out token, and sample images."""

from pathlib import Path

from cm3leon import prompts
from cm3leon.likelihood import bits_per_image_token, bits_per_text_token
from cm3leon.model import Decoder
from cm3leon.pipeline import CM3Leon
from cm3leon.sampling import Sampling
from tokenizer.codec import Codec
from tokenizer.data.shards import Shards
from tokenizer.document import Picture
from tokenizer.errors import UserError
from tokenizer.image import ImageTokenizer
from tokenizer.pixels import sheet
from train.config import PretrainRecipe

HELD_OUT = 256  # most images of the validation shards to evaluate


class Validator:
    """Evaluation of held-out images and sample prompts.

    Raises UserError for prompts that do not fit the context, and for validation shards without an
    image whose caption fits.
    """

    def __init__(
        self, recipe: PretrainRecipe, codec: Codec, image_tokenizer: ImageTokenizer
    ) -> None:
        self.codec, self.image_tokenizer = codec, image_tokenizer
        self.prompts = recipe.sample_prompts
        for prompt in self.prompts:
            codec.open(prompts.paint(prompt)[0])
        self.pictures: list[tuple[int, ...]] = []  # codes
        self.before: list[tuple[int, ...]] = []  # ids before the codes: the prompt with the caption
        self.texts: list[list[int]] = []  # ids of that caption
        self.around: list[tuple[int, ...]] = []  # ids before it: the prompt with the image
        if recipe.validation is not None:
            self.hold_out(Shards.open(recipe.validation, image_tokenizer.hash, codec.text.hash))
            if not self.texts:
                raise UserError(
                    f"validation: {recipe.validation} has no image with a caption that fits"
                )

    def hold_out(self, shards: Shards) -> None:
        """Select images at regular intervals over all shards, with their first captions, if both
        fit the context."""
        context = self.codec.context
        assert context is not None
        # no context limit in the codec, which would refuse long documents: they are skipped here
        codec = Codec(self.codec.vocabulary, self.codec.text, self.codec.picture_codes)
        for number in range(0, shards.pictures, -(-shards.pictures // HELD_OUT)):
            metadata, codes = shards.picture(number)
            if not metadata.get("captions"):
                continue
            caption, picture = metadata["captions"][0], Picture(codes)
            whole = codec.encode(prompts.pair(caption, picture))
            text = [whole.ids[place] for span in whole.fields for place in range(*span)]
            around = codec.infill(prompts.describe(picture, asked=False))
            if len(around) + len(text) <= context:
                self.pictures.append(codes)
                self.before.append(codec.open(prompts.paint(caption)[0]))
                self.texts.append(text)
                self.around.append(around)

    def validate(self, model: Decoder) -> dict[str, float]:
        """Return bits per image token given the caption, and per text token given the image."""
        if not self.texts:
            return {}
        vocabulary = self.codec.vocabulary
        return {
            "held_out_image_bits": bits_per_image_token(
                model, vocabulary, self.before, self.pictures
            ),
            "held_out_text_bits": bits_per_text_token(model, vocabulary, self.around, self.texts),
        }

    def draw(self, model: Decoder, path: Path) -> None:
        """Generate an image for each sample prompt at seed 0, and save them as one sheet."""
        if not self.prompts:
            return
        painter = CM3Leon(model, self.codec, self.image_tokenizer)
        drawn = [
            painter.text_to_image(prompt, seed=0, sampling=Sampling())[0] for prompt in self.prompts
        ]
        sheet(drawn, min(8, len(drawn)), list(self.prompts)).save(path)
