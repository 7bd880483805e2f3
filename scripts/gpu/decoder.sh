#!/usr/bin/env bash
# Train the decoder of emoji-128: RUNS/emoji-128/model, a checkpoint in files of at most 16 MB.
#
#   PACK=pack.tar.xz scripts/gpu/decoder.sh [NAME=VALUE]...
#   SHARDS=shards.tar.xz TEXT=tokenizer.model IMAGE=image_tokenizer scripts/gpu/decoder.sh
#
# What is not given is made from the pack: token shards, text pieces; the image tokenizer is the one
# of image-tokenizer.sh. SHARDS may be a folder, or a tar of one that is named `shards`. VAL is a pack
# that is not trained on; held-out bits are measured on it.
source "$(dirname "$0")/setup.sh"

IMAGE=${IMAGE:-$RUNS/image/image_tokenizer}
TEXT=${TEXT:-$RUNS/tokenizer.model}
SHARDS=${SHARDS:-$RUNS/shards}
text_changes=()
changes=()
if [ "$TINY" = 1 ]; then
    text_changes=(pieces=300)
    changes=(steps=6 batch=8 micro_tokens=4096 model.layers=1 model.width=32 model.heads=2)
    changes+=(workers=1 cached_rows=64 'rows.edits={}' 'rows.questions={}')
fi
if [[ $SHARDS == *.tar* ]]; then
    [ -d "$RUNS/shards" ] || "$PYTHON" -m tarfile --filter data -e "$SHARDS" "$RUNS"
    SHARDS=$RUNS/shards
fi
if [ ! -d "$SHARDS" ] || [ ! -f "$TEXT" ]; then
    tar=$(unpacked "$PACK")
    edits=${PACK%.tar*}.edits.jsonl.gz
    questions=${PACK%.tar*}.questions.jsonl.gz
fi
if [ ! -d "$SHARDS" ]; then
    cm3leon data encode "$tar" --tokenizer "$IMAGE" --out "$SHARDS" \
        --edits "$edits" --questions "$questions" --device "$DEVICE"
fi
if [ -n "${VAL:-}" ] && [ ! -d "$RUNS/shards-val" ]; then
    cm3leon data encode "$(unpacked "$VAL")" --tokenizer "$IMAGE" --out "$RUNS/shards-val" \
        --device "$DEVICE"
fi
if [ ! -f "$TEXT" ]; then
    cm3leon train emoji-64-text "data=$tar" "edits=$edits" \
        "questions=$questions" "${text_changes[@]}" --out "$TEXT"
fi
cm3leon pretrain emoji-128 "shards=$SHARDS" "image_tokenizer=$IMAGE" "text_tokenizer=$TEXT" \
    ${VAL:+"validation=$RUNS/shards-val"} "${changes[@]}" "$@" \
    --out "$RUNS/emoji-128" --resume latest --device "$DEVICE" --minutes "$(minutes_left)"
