#!/usr/bin/env bash
# Train the image tokenizer of emoji-128 from a pack: RUNS/image/image_tokenizer.
#
#   PACK=pack.tar.xz FEATURES=mobilenet_v2.safetensors scripts/gpu/image-tokenizer.sh [NAME=VALUE]...
#
# Without FEATURES (made by scripts/convert_mobilenet.py) there is no perceptual term.
source "$(dirname "$0")/setup.sh"

if [ -d "$RUNS/image/image_tokenizer" ]; then
    echo "$RUNS/image/image_tokenizer is there already"
    exit
fi
changes=()
if [ "$TINY" = 1 ]; then
    changes=(steps=6 batch=4 model.size=32 model.ch=32 model.codes=32 loss.perceptual_start=4)
fi
cm3leon train emoji-128-image "data=$(unpacked "$PACK")" \
    ${FEATURES:+"loss.features=$FEATURES"} "${changes[@]}" "$@" \
    --out "$RUNS/image" --resume latest --device "$DEVICE" --minutes "$(minutes_left)"
