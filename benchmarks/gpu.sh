#!/usr/bin/env bash
# Training on a GPU: epoch time and peak memory with and without bf16 and remat, then ICEWS14s end to end.
#
#     benchmarks/gpu.sh DATA OUT [BUDGET_SECONDS]
#
# DATA holds quadruple folders (ICEWS14s, and YAGO if there is one); OUT gets one JSON file per run and
# summary.jsonl. Needs geopol_tkg importable by PYTHON (default python3) and ends inside the budget
# (default 540 s): trainings get what is left of it, TiRGN half. DEVICE=cpu and EXTRA="--embedding-dim 8" try
# the script out without a GPU.
set -euo pipefail
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
budget=${3:-540}
device=${DEVICE:-gpu}
read -ra extra <<<"${EXTRA:-}"
repo=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

tkg() { "${PYTHON:-python3}" -m geopol_tkg "$@"; }
record() { # name, then a command that prints one JSON object
    local name=$1
    shift
    if "$@" >"$out/$name.json" 2>"$out/$name.log"; then
        printf '{"run": "%s", "result": %s}\n' "$name" "$(cat "$out/$name.json")" >>"$out/summary.jsonl"
    else
        printf '{"run": "%s", "exit": %s}\n' "$name" "$?" >>"$out/summary.jsonl"
        tail -n 5 "$out/$name.log" >&2
    fi
}

: >"$out/summary.jsonl"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >"$out/machine.txt" 2>&1 || true
"${PYTHON:-python3}" -c 'import jax; jax.print_environment_info()' >>"$out/machine.txt" 2>&1

tkg ingest "$data/ICEWS14s" --out icews14s --quiet --json >"$out/ingest.json"

# Epoch time and memory, two epochs each so that the second one is without compilation.
length_of() { [ "$1" = regcn ] && echo 3 || echo 9; }
for model in regcn tirgn; do
    for variant in "bf16 remat" "bf16 no-remat" "f32 remat" "f32 no-remat"; do
        read -r precision remat <<<"$variant"
        name="epoch-$model-$precision-$remat"
        record "$name" tkg train icews14s --model $model --history-length "$(length_of $model)" --history-window 0 \
            --batch-size 0 --precision "$precision" "--$remat" --epochs 2 --eval-interval 2 --device "$device" \
            --model-dir "$name" --logdir runs --run-name "$name" --no-wandb --json "${extra[@]}"
        cp "$name/metrics.jsonl" "$out/$name-metrics.jsonl" 2>/dev/null || true
    done
done

# End to end: train with early stopping, then test beside the baselines.
train() { # name of the run, preset, most seconds, more options
    local name=$1 preset=$2 seconds=$3
    shift 3
    record "train-$name" tkg train icews14s --preset "$preset" --precision auto --device "$device" --no-wandb --json \
        --max-time "$seconds" --model-dir "models/$name" --logdir runs --run-name "$name" "$@" "${extra[@]}"
    record "test-$name" tkg eval "models/$name/${preset%%-*}_best" --device "$device" --json
    cp "models/$name/metrics.jsonl" "$out/$name-metrics.jsonl" 2>/dev/null || true
}

left=$((budget - SECONDS - 60))
train counts counts-icews14s $((left / 10)) --patience 4
left=$((budget - SECONDS - 60))
train regcn regcn-icews14s $((left / 4))
train tirgn tirgn-icews14s $((left / 2))
train regcn-counts regcn-icews14s $((left / 4)) --count-prior models/counts/counts_best
record test-recurrency tkg eval recurrency --data icews14s --json
cat "$out/summary.jsonl"
