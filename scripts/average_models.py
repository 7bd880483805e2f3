"""Average the weights of a model and of another that was tuned from it.

    PYTHONPATH=. python scripts/average_models.py MODEL OTHER OUT

OUT is a checkpoint folder of its own, in fp16. Both must be of one shape and know the same
tokenizers.
"""

import sys

import torch

from cm3leon.pipeline import CM3Leon


@torch.no_grad()
def main() -> None:
    one, other = (CM3Leon.from_pretrained(source) for source in sys.argv[1:3])
    assert one.codec.vocabulary == other.codec.vocabulary
    assert one.image_tokenizer.hash == other.image_tokenizer.hash
    theirs = other.model.state_dict()
    mean = {name: (weight + theirs[name]) / 2 for name, weight in one.model.state_dict().items()}
    one.model.load_state_dict(mean)
    one.save_pretrained(sys.argv[3], stored="fp16")
    print(sys.argv[3])


if __name__ == "__main__":
    main()
