"""What a run shows while it trains: bits per held-out token, and sample pictures."""

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

HELD_OUT = 256  # most pictures of the validation shards that a run looks at


class Watch:
    """Held-out bits and sample pictures of a run. Raises UserError for prompts that do not fit."""

    def __init__(
        self, recipe: PretrainRecipe, codec: Codec, image_tokenizer: ImageTokenizer
    ) -> None:
        self.codec, self.image_tokenizer = codec, image_tokenizer
        self.prompts = recipe.sample_prompts
        for prompt in self.prompts:
            codec.open(prompts.paint(prompt)[0])
        self.pictures: list[tuple[int, ...]] = []  # codes
        self.before: list[tuple[int, ...]] = []  # ids that such a picture follows: its caption
        self.texts: list[list[int]] = []  # ids of that caption
        self.around: list[tuple[int, ...]] = []  # ids that it follows: the picture
        if recipe.validation is not None:
            self.hold_out(Shards.open(recipe.validation, image_tokenizer.hash, codec.text.hash))
            if not self.texts:
                raise UserError(
                    f"validation: {recipe.validation} has no picture with a caption that fits"
                )

    def hold_out(self, shards: Shards) -> None:
        """Take pictures evenly from all shards, each with its first caption, where both fit."""
        context = self.codec.context
        assert context is not None
        # without a context: what is too long is left out here, where others refuse it
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
        """Bits per image token given the caption, and per text token given the picture."""
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
        """One picture a sample prompt, side by side, at seed 0."""
        if not self.prompts:
            return
        painter = CM3Leon(model, self.codec, self.image_tokenizer)
        drawn = [
            painter.text_to_image(prompt, seed=0, sampling=Sampling())[0] for prompt in self.prompts
        ]
        sheet(drawn, min(8, len(drawn)), list(self.prompts)).save(path)
