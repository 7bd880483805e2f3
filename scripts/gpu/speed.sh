#!/usr/bin/env bash
# Time training on one GPU: tokens a second, MFU and memory of 350m and 760m at context 4096 in bf16,
# with and without torch.compile, PyTorch's attention against xformers, and ZeRO's cost.
#
#   WHEELS=wheels scripts/gpu/speed.sh [NAME=VALUE]...
#
# xformers and DeepSpeed come by WHEELS; what is not there is passed over, aloud. Each variant is one
# run of STEPS steps (20) of 16 rows on noise; its first five steps do not count. What is timed already
# is not timed again. The last lines are a table of all of it.
source "$(dirname "$0")/setup.sh"

STEPS=${STEPS:-20}
SIZES=${SIZES:-350m 760m}
PLACE=$RUNS/speed
tiny=()
changes=(batch=16 "steps=$STEPS" save_every=100000 validate_every=100000 sample_every=100000)
if [ "$TINY" = 1 ]; then
    tiny=(--tiny)
    changes+=(batch=2 model.layers=1 model.width=32 model.heads=2 model.context=256)
    changes+=(micro_tokens=512 workers=0)
fi
[ -d "$PLACE/shards" ] || PYTHONPATH="$PWD:${PYTHONPATH:-}" "$PYTHON" scripts/gpu/synthetic.py \
    "$PLACE" "${tiny[@]}"

timed() { # NAME SIZE NAME=VALUE...: one variant; its log stays, its weights do not
    local name=$2-$1 size=$2
    shift 2
    [ -f "$PLACE/$name.jsonl" ] && return
    if [ "$(minutes_left)" -le 1 ] && [ "$TINY" != 1 ]; then
        echo "no time is left for $name; run the script again" >&2
        return
    fi
    rm -rf "${PLACE:?}/run"
    if cm3leon pretrain "$size" "shards=$PLACE/shards" "image_tokenizer=$PLACE/image_tokenizer" \
        "text_tokenizer=$PLACE/tokenizer.model" engine.recompute=false engine.zero=0 \
        "${changes[@]}" "$@" --out "$PLACE/run" --device "$DEVICE" --processes 1; then
        cp "$PLACE/run/log.jsonl" "$PLACE/$name.jsonl"
    else
        echo "$name: passed over" >&2
    fi
    rm -rf "${PLACE:?}/run"
}

for size in $SIZES; do
    timed plain "$size" "$@"
    timed compile "$size" engine.compile=true "$@"
    timed xformers "$size" engine.attention=xformers "$@"
    timed recompute "$size" engine.recompute=true "$@"
    for stage in 1 2 3; do
        timed "zero$stage" "$size" "engine.zero=$stage" "$@"
    done
done
"$PYTHON" - "$PLACE" <<'PYTHON_END'
import json, statistics, sys
from pathlib import Path

print(f"{'variant':24} {'tokens/s':>10} {'MFU':>6} {'memory':>9}")
for path in sorted(Path(sys.argv[1]).glob("*.jsonl")):
    lines = [json.loads(line) for line in path.read_text().splitlines()][5:]
    if not lines:
        continue
    tokens, mfu, memory = (
        statistics.median(line.get(name, float("nan")) for line in lines)
        for name in ("tokens_per_second", "mfu", "memory_gb")
    )
    print(f"{path.stem:24} {tokens:10,.0f} {mfu:6.1%} {memory:6.1f} GB")
PYTHON_END
