"""Put a trained model into the package as the default one, with its card and attribution.

    python scripts/release_default.py runs/emoji-64/model

Replaces cm3leon/assets/default. How it draws by default (TASKS) was chosen with choose_sampling.py;
docs/ledger.md says how.
"""

import shutil
import sys
from pathlib import Path

from cm3leon import checkpoint
from cm3leon.checkpoint import TaskSampling
from cm3leon.sampling import Sampling

HERE = Path(__file__).parent
DEFAULT = HERE.parent / "cm3leon" / "assets" / "default"
TASKS = TaskSampling(
    text_to_image=Sampling(temperature=0.6, top_p=0.9, cfg_scale=1.5),
    edit=Sampling(temperature=0.6, top_p=0.9, image_scale=1.2, text_scale=1.5),
    infill=Sampling(temperature=0.7, top_p=0.9),
)


def main() -> None:
    made = checkpoint.load(Path(sys.argv[1]))
    DEFAULT.parent.mkdir(exist_ok=True)
    card = (HERE / "default" / "README.md").read_text("utf-8")
    told = checkpoint.save(
        DEFAULT,
        made.model,
        made.codec,
        made.image_tokenizer,
        sampling=TASKS,
        stored="int8",
        card=card,
        replace=True,
    )
    shutil.copyfile(HERE / "default" / "NOTICE.md", DEFAULT / "NOTICE.md")
    print(f"{DEFAULT}: {told}")


if __name__ == "__main__":
    main()
