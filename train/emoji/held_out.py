"""Emoji held out from training in one of their styles, to measure generalisation to an unseen
combination of object and style.

`build.py` writes the ids of all their variants to `heldout-pairs.txt`. There are 500 pairs of a
style and a family (see `names.family`), drawn once at random from the train split; each family is
in at least three other styles too. The default models were trained without exactly these pairs, so
the list is stored instead of drawn again.
"""

NO_FAMILY = "-"  # the empty family, of the skin tone swatches

HELD_OUT = {
    "noto": (
        "1f196 1f1f4 1f30b 1f331 1f33c 1f34f 1f3a2 1f3b7 1f3ca 1f3e3 1f3e6 1f3f0 1f405 1f40c "
        "1f417 1f453 1f454 1f486 1f489 1f4ac 1f4b2 1f4c7 1f4c9 1f4f5 1f519 1f554 1f5a8 1f609 "
        "1f629 1f644 1f64d 1f64e 1f689 1f697 1f69a 1f6a2 1f6bd 1f6c5 1f6f3 1f7e3 1f90f 1f926 "
        "1f927 1f94d 1f94e 1f973 1f9a8 1f9b8 1f9be 1f9d1-1f3ed 1f9d1-1f680 1f9d4 1f9d5 1f9d8 "
        "1fa75 1fa7c 1fa80 1fa94 1faac 1fac0 23eb 23ed 260e 262f 2639 26ab 274e 2935 38-20e3 "
        "39-20e3"
    ),
    "twemoji": (
        "- 1f199 1f1ec-1f1e7 1f1ef 1f1f3 1f22f 1f33a 1f34b-1f7e9 1f34c 1f355 1f35e 1f36e 1f37a "
        "1f3bf 1f3c5 1f420 1f422 1f429 1f42b 1f431 1f43d 1f44a 1f46a 1f49a 1f4b8 1f4ee 1f50e "
        "1f51d 1f523 1f52b 1f52d 1f564 1f570 1f5b2 1f5d2 1f60a 1f60f 1f62c 1f62d 1f62e-1f4a8 "
        "1f641 1f649 1f64b 1f6ba 1f6c0 1f6c3 1f6d0 1f6fa 1f90d 1f919 1f939 1f942 1f947 1f95b "
        "1f98f 1f994 1f99b 1f9a2 1f9af 1f9b7 1f9ba 1f9c3 1f9c6 1f9c9 1f9d1-1f393 1f9d1-1f692 "
        "1f9d1-1f9d1-1f9d2 1f9dd 1f9ef 1fa86 1faa5 1fad2 1fada 23cf 24c2 2618 2692 2714 271d "
        "2764-1f525 30-20e3 3299"
    ),
    "fluent-color": (
        "1f004 1f171 1f305 1f30a 1f32f 1f352 1f353 1f377 1f382 1f386 1f38b 1f3c4 1f3cd 1f3da "
        "1f3f3-26a7 1f40a 1f40e 1f415 1f416 1f426-1f525 1f43b-2744 1f44c 1f47a 1f47e 1f48b "
        "1f4a0 1f4a2 1f4be 1f4c6 1f4e7 1f4e9 1f4f6 1f50b 1f51a 1f520 1f532 1f537 1f538 1f53d "
        "1f557 1f578 1f5dd 1f619 1f636 1f63c 1f647 1f683 1f684 1f696 1f69c 1f6ae 1f6c2 1f6c4 "
        "1f6dc 1f6f0 1f6f4 1f7e5 1f922 1f92b 1f92c 1f93e 1f93f 1f949 1f980 1f990 1f9cf "
        "1f9d1-1f37c 1f9d1-1f3eb 1f9de 1f9f3 1f9f4 1f9f9 1fa76 1fa85 1faaa 1faf2 1faf7 2649 "
        "2b1b"
    ),
    "fluent-flat": (
        "1f170 1f193 1f310 1f348 1f349 1f35c 1f366 1f36d 1f385 1f38f 1f396 1f3bd 1f3f5 1f401 "
        "1f410 1f42a 1f438 1f455 1f456 1f46e 1f47c 1f482 1f4ae 1f4b1 1f4b6 1f4bd 1f4fc 1f512 "
        "1f559 1f55c 1f576 1f5b1 1f61e 1f632 1f634 1f640 1f642-2194 1f646 1f6a0 1f6a7 1f6b0 "
        "1f6b2 1f6d1 1f6dd 1f6e3 1f7e2 1f7eb 1f917 1f937 1f97d 1f97f 1f982 1f997 1f9bb 1f9c4 "
        "1f9cd 1f9ce 1f9d1-1f3a4 1f9d1-1f3a8 1f9d1-1f9af 1f9d9 1f9e1 1f9e5 1f9fd 1fa78 1fa95 "
        "1fac4 1fad9 1faf1 23ea 23f2 25fb 264f 26a0 26a7 26bd 26e9 26f8 2721 274c 33-20e3 "
        "35-20e3"
    ),
    "noto-v1": (
        "1f1ee 1f1f1 1f233 1f351 1f368 1f36b 1f388 1f38d 1f392 1f3c3 1f3cb 1f3d1 1f3e2 1f3e5 "
        "1f3ec 1f409 1f41e 1f42e 1f472 1f499 1f4ba 1f4bc 1f4dc 1f506 1f510 1f526 1f527 1f560 "
        "1f563 1f58c 1f5bc 1f606 1f608 1f61d 1f64c 1f686 1f69f 1f6b7 1f6b9 1f6e5 1f921 1f938 "
        "1f988 1f991 1f9d1 1f9d1-1f52c 23f1 263a 2697 26d3 2a-20e3"
    ),
    "emojione-v2": (
        "1f0cf 1f1eb-1f1f7 1f1fe 1f21a 1f234 1f300 1f318 1f325 1f32e 1f3c0 1f3d3 1f3dc 1f427 "
        "1f42f 1f430 1f45d 1f47d 1f48f 1f4d2 1f4ef 1f4f4 1f503 1f514 1f53c 1f587 1f5fc 1f69d "
        "1f935 1f94b 1f950 1f956 1f983 1f9d1-2764-1f9d1 23ee 25ab 2622 262e 2651 26fd 3297"
    ),
    "fxemoji": (
        "1f198 1f1fa 1f306 1f34e 1f35a 1f3a7 1f3a9 1f3b4 1f402 1f423 1f457 1f484 1f4a1 1f534 "
        "1f5c3 1f5d3 1f5e3 1f5fa 1f68e 1fa9f 2194 2614 26aa 2744"
    ),
    "fluent-3d": (
        "1f194 1f197 1f1f0-1f1f7 1f304 1f308 1f31f 1f354 1f370 1f371 1f37b 1f37e 1f389 1f391 "
        "1f39e 1f3a0 1f3a6 1f3d4 1f3db 1f3e0 1f412 1f433 1f46f 1f471 1f477 1f487 1f4c0 1f4d5 "
        "1f4eb 1f505 1f517 1f54d 1f558 1f561 1f56f 1f57a 1f5a4 1f604 1f623 1f625 1f695 1f6a1 "
        "1f6a3 1f6a6 1f6a8 1f6b3 1f6d6 1f91c 1f928 1f93c 1f955 1f95c 1f96a 1f96d 1f97b 1f9a4 "
        "1f9d1-1f9d1-1f9d2-1f9d2 1f9d1-1f9d2 1f9d1-2696 1f9dc 1fa9e 1fab2 1fab7 23fa 2603 267b "
        "26d1 26fa 2734 2b06 2b07 31-20e3 ae"
    ),
}


def is_held_out(style: str, family: str) -> bool:
    """Return whether a train emoji of this style and family is held out from training."""
    return (family or NO_FAMILY) in HELD_OUT.get(style, "").split()
