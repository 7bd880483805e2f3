#!/usr/bin/env bash
# Image tokenizer, token shards and decoder of emoji-128 in one go of BUDGET seconds, results in OUT.
#
#   PACK=pack.tar.xz VAL=val.tar.xz FEATURES=mobilenet_v2.safetensors scripts/gpu/campaign.sh \
#     [NAME=VALUE]...
#
# How fast the GPU is shows first: a short probe of either training is timed, and the steps that fit
# are computed from it, so that the schedule ends when the time does. Where it is slower than that,
# the newest state is taken. Whatever is done is in OUT, also when a later stage fails. NAME=VALUE
# are settings of the decoder's recipe. Its own settings, beside those of setup.sh:
#
#   BUDGET         seconds of all of it (500)
#   SECONDS_IMAGE  when the image tokenizer is to be done (190); the decoder takes what is left
#   VIEWS          how often each picture is coded a little moved (16)
#   TEXT           text pieces (the default model's)
#   OUT            a folder for results, in files of at most 16 MB (RUNS/out)
source "$(dirname "$0")/setup.sh"

BUDGET=${BUDGET:-500}
SECONDS_IMAGE=${SECONDS_IMAGE:-190}
VIEWS=${VIEWS:-16}
TEXT=${TEXT:-cm3leon/assets/default/tokenizer.model}
OUT=${OUT:-$RUNS/out}
RESERVE=15 # seconds to validate, save and copy at the end
LATE=40    # seconds that the image tokenizer may take from the decoder
probe_image=60 probe_decoder=80 most=100000 size=128
image_changes=()
changes=("rows.moved=0.5" "sample_prompts=[]")
if [ "$TINY" = 1 ]; then
    probe_image=12 probe_decoder=8 most=12 size=32 VIEWS=2
    image_changes=(batch=4 "model.size=$size" model.ch=32 model.codes=32)
    changes+=(batch=8 micro_tokens=4096 model.layers=1 model.width=32 model.heads=2)
    changes+=(workers=1 cached_rows=64 'rows.edits={}' 'rows.questions={}')
fi
changes+=("$@")
WORDS=$RUNS/words
mkdir -p "$OUT" "$WORDS"

bring() { # what is there, to OUT; each once but for the logs
    local made=$RUNS/image/image_tokenizer
    if [ -d "$made" ] && [ ! -f "$OUT/image_tokenizer.tar" ]; then
        tar cf "$OUT/image_tokenizer.tar" -C "$RUNS/image" image_tokenizer
    fi
    if [ -d "$RUNS/emoji-128/model" ] && [ ! -f "$OUT/model.tar.00" ]; then
        tar cf - -C "$RUNS/emoji-128" model | split -d -b 16000000 - "$OUT/model.tar."
    fi
    (cd "$RUNS" && tar czf "$OUT_FULL/logs.tar.gz" words $(ls -d ./*/log.jsonl ./image/*.png)) \
        2>/dev/null || true
}
OUT_FULL=$(cd "$OUT" && pwd)
trap bring EXIT

stage() { # NAME COMMAND...: what it says goes to WORDS/NAME.txt, its end is shown; sets TOOK
    local name=$1 began=$SECONDS
    shift
    echo "[$SECONDS s] $name"
    if ! "$@" >"$WORDS/$name.txt" 2>&1; then
        tail -n 30 "$WORDS/$name.txt" | cut -c 1-300 | tail -c 3000
        echo "[$SECONDS s] $name failed"
        exit 1
    fi
    TOOK=$((SECONDS - began))
    tail -n 2 "$WORDS/$name.txt" | cut -c 1-300
}

minutes() { # SECONDS; at least a few
    local left=$(($1 > 5 ? $1 : 5))
    printf '%d.%02d\n' $((left / 60)) $((left % 60 * 100 / 60))
}

steps_in() { # RUN SECONDS TOOK PARTS: steps as fast as the last of RUN's; see below
    "$PYTHON" - "$@" "$most" <<'PYTHON_END'
import json, sys
from pathlib import Path

run, seconds, took, parts, most = sys.argv[1:]
log = [json.loads(line)["seconds"] for line in Path(run, "log.jsonl").read_text().splitlines()]


def pace(start: float, end: float) -> float:  # seconds a step between two places of the probe
    first, last = int(len(log) * start) - 1, int(len(log) * end) - 1
    return (log[last] - log[first]) / (last - first)


# `image`: the last quarter of the steps has the perceptual term, as the last half of the probe had
step = 0.75 * pace(0.25, 0.5) + 0.25 * pace(0.7, 1) if parts == "image" else pace(0.5, 1)
beside = float(took) - log[-1]  # to start and to end
steps = int(0.92 * (float(seconds) - beside) / max(step, 1e-4))
steps = max(4, min(steps, int(most)))
print(f"{1e3 * step:.1f} ms a step, {beside:.0f} s beside them: {steps} steps", file=sys.stderr)
print(steps)
PYTHON_END
}

train_image() { # NAME=VALUE... --out RUN
    cm3leon train emoji-128-image "data=$tar" \
        ${FEATURES:+"loss.features=$FEATURES"} "${image_changes[@]}" --device "$DEVICE" "$@"
}

train_decoder() { # NAME=VALUE... --out RUN
    cm3leon pretrain emoji-128 "shards=$RUNS/shards" "views=$RUNS/views" \
        "image_tokenizer=$RUNS/image/image_tokenizer" "text_tokenizer=$TEXT" "${changes[@]}" \
        --processes 1 --device "$DEVICE" "$@"
}

tar=$(unpacked "$PACK")
for what in edits questions; do
    [ ! -f "${PACK%.tar*}.$what.jsonl.gz" ] || cp "${PACK%.tar*}.$what.jsonl.gz" "$RUNS/"
done
val=${VAL:+$(unpacked "$VAL")}

stage pixels env PYTHONPATH="$PWD:${PYTHONPATH:-}" "$PYTHON" -c '
import sys
from pathlib import Path
from train.data.corpus import load_pixels

tar, size, cache = sys.argv[1:]
load_pixels([Path(tar)], int(size), frozenset(), Path(cache), say=print)' "$tar" "$size" "$RUNS/image"
mkdir -p "$RUNS/probe-image"
cp -rl "$RUNS/image"/pixels-* "$RUNS/probe-image/"
stage image-probe train_image "steps=$probe_image" "loss.perceptual_start=$((probe_image / 2))" \
    sample_every=100000 --out "$RUNS/probe-image"
steps=$(steps_in "$RUNS/probe-image" $((SECONDS_IMAGE - SECONDS)) "$TOOK" image)
stage image train_image "steps=$steps" "loss.perceptual_start=$((steps * 3 / 4))" \
    "save_every=$((steps / 4))" "sample_every=$steps" --out "$RUNS/image" --resume latest \
    --minutes "$(minutes $((SECONDS_IMAGE + LATE - SECONDS)))"
bring

stage shards env PYTHONPATH="$PWD:${PYTHONPATH:-}" "$PYTHON" scripts/gpu/shards.py "$tar" \
    "$RUNS/image" "$RUNS" --views "$VIEWS" ${val:+--val "$val"} --device "$DEVICE"
bring

stage decoder-probe train_decoder "steps=$probe_decoder" --out "$RUNS/probe-decoder"
steps=$(steps_in "$RUNS/probe-decoder" $((BUDGET - RESERVE - SECONDS)) "$TOOK" decoder)
stage decoder train_decoder "steps=$steps" "save_every=$((steps / 3 + 1))" \
    "validate_every=$((steps / 4))" ${val:+"validation=$RUNS/shards-val"} --out "$RUNS/emoji-128" \
    --resume latest --minutes "$(minutes $((BUDGET - RESERVE - SECONDS)))"
if [ ! -d "$RUNS/emoji-128/model" ]; then # stopped early
    stage export cm3leon export "$RUNS/emoji-128" --out "$RUNS/emoji-128/model"
fi

"$PYTHON" - "$RUNS" <<'PYTHON_END'
import json, sys
from pathlib import Path

for name in ("image", "emoji-128"):
    log = [json.loads(line) for line in Path(sys.argv[1], name, "log.jsonl").open()]
    told = [line for line in log if "held_out_image_bits" in line]
    print(name)
    for line in [*log[:: len(log) // 7 + 1], *told[-4:], log[-1]]:
        print(" ".join(f"{k} {v:.4g}" for k, v in line.items())[:280])
PYTHON_END
bring
ls -l "$OUT"
echo "[$SECONDS s] done"
