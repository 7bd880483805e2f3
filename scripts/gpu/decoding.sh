#!/usr/bin/env bash
# Time decoding on one GPU: the 7B shape with random weights, guided, 1,024 image tokens, in bf16, int8
# and int4; and 760m with 64 pictures at once.
#
#   scripts/gpu/decoding.sh [OPTION OF bench generate]...
#
# It needs no data and no wheels. Each case is one run of TIMES timed pictures (3).
source "$(dirname "$0")/setup.sh"

TIMES=${TIMES:-3}
tiny=()
[ "$TINY" != 1 ] || tiny=(--layers 1 --width 64 --tokens 8)

timed() { # OPTION OF bench generate...
    cm3leon bench generate --times "$TIMES" --device "$DEVICE" "${tiny[@]}" "$@"
}

for precision in bf16 int8 int4; do
    timed --shape 7b --precision "$precision" "$@"
done
timed --shape 760m -n 64 "$@"
