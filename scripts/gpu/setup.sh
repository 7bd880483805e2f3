# Read by the scripts beside this one; docs/gpu-runs.md says how to use them. Their settings:
#
#   PACK      what `python3 scripts/gpu/pack.py` wrote, with its edits and questions beside it
#   RUNS      the folder of all that is made (runs)
#   MINUTES   stop after so many with the state saved; run the script again to go on (9)
#   PYTHON    a Python that has torch (python3)
#   WHEELS    a folder of wheels that this Python lacks; they go to RUNS/site, without a network
#   DEVICE    cpu, cuda or auto (auto)
#   TINY      1: the whole path in a minute on a CPU, with networks too small to be of use
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

RUNS=${RUNS:-runs}
MINUTES=${MINUTES:-9}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-auto}
TINY=${TINY:-0}
export PYTHONUNBUFFERED=1
mkdir -p "$RUNS"

if [ -n "${WHEELS:-}" ] && [ ! -d "$RUNS/site" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --target "$RUNS/site" "$WHEELS"/*.whl
fi
if [ -d "$RUNS/site" ]; then
    PYTHONPATH=$(cd "$RUNS/site" && pwd)
    export PYTHONPATH
fi

cm3leon() { "$PYTHON" -m cm3leon "$@"; }

minutes_left() { # of MINUTES, since the script began; at least 1
    local left=$((MINUTES - (SECONDS + 59) / 60))
    echo $((left > 1 ? left : 1))
}

unpacked() { # a pack's tar, uncompressed; tars are read only so
    local tar
    tar=$RUNS/$(basename "${1%.xz}")
    if [ ! -f "$tar" ]; then
        "$PYTHON" -c 'import lzma, pathlib, sys
data = pathlib.Path(sys.argv[1]).read_bytes()
data = lzma.decompress(data) if sys.argv[1].endswith(".xz") else data
pathlib.Path(sys.argv[2]).write_bytes(data)' "$1" "$tar"
    fi
    echo "$tar"
}
