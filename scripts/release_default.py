"""Put a trained model into the package as the default one, with its card and attribution.

    python scripts/release_default.py runs/emoji-64/model [runs/decoder/image_tokenizer]

The second folder is an image tokenizer with the same codes and another decoder. Replaces
cm3leon/assets/default. How it draws by default (TASKS) was chosen as docs/log.md says.
"""

import shutil
import sys
from pathlib import Path

import torch

from cm3leon import checkpoint
from cm3leon.checkpoint import TaskSampling
from cm3leon.sampling import Sampling
from tokenizer.image import ImageTokenizer

HERE = Path(__file__).parent
DEFAULT = HERE.parent / "cm3leon" / "assets" / "default"
TASKS = TaskSampling(
    text_to_image=Sampling(temperature=0.4, top_p=0.9, cfg_scale=1.5),
    edit=Sampling(temperature=0.6, top_p=0.9, image_scale=1.2, text_scale=1.5, keep=6.0),
    infill=Sampling(temperature=0.7, top_p=0.9),
    candidates=8,
    untrained=("edit", "infill", "caption", "answer"),
)


def check_same_codes(one: ImageTokenizer, other: ImageTokenizer) -> None:
    """Pictures must have the codes that the decoder was trained on."""
    for part in ("encoder", "quant_conv", "quantize"):
        known, new = (getattr(net.net, part).state_dict() for net in (one, other))
        assert all(torch.equal(known[name], new[name]) for name in known | new), part


def main() -> None:
    made = checkpoint.load(Path(sys.argv[1]))
    image_tokenizer = made.image_tokenizer
    if len(sys.argv) > 2:
        image_tokenizer = ImageTokenizer.load(Path(sys.argv[2]))
        check_same_codes(made.image_tokenizer, image_tokenizer)
    DEFAULT.parent.mkdir(exist_ok=True)
    card = (HERE / "default" / "README.md").read_text("utf-8")
    told = checkpoint.save(
        DEFAULT,
        made.model,
        made.codec,
        image_tokenizer,
        sampling=TASKS,
        stored="int8",
        card=card,
        replace=True,
    )
    shutil.copyfile(HERE / "default" / "NOTICE.md", DEFAULT / "NOTICE.md")
    print(f"{DEFAULT}: {told}")


if __name__ == "__main__":
    main()
