#!/usr/bin/env bash
# Training on a GPU: epochs with and without bf16 and remat, the published benchmarks end to end, the yardstick.
#
#     benchmarks/gpu.sh DATA OUT [BUDGET_SECONDS]
#
# DATA holds quadruple folders: ICEWS14s, YAGO for the part yago, and for the part gdelt GDELT, beside GDELT's event
# files in the folder events. OUT gets one JSON file and one log per run, and summary.jsonl. Nothing runs longer than
# the budget (default 540 s): what is left of it when a part begins is shared out among its trainings, and whatever
# still runs at its end is stopped. PARTS chooses and orders the parts, SEED is that of the trainings, and PYTHON
# (default python3) must import what geopol_tkg needs:
#
#     PARTS="epochs icews14s yago yardstick"
#
# epochs      train_epoch.py: the second of two epochs, without compilation or validation, and the peak of the device
# icews14s    counts, RE-GCN, TiRGN and RE-GCN beside counts: training with early stopping, then the test split
# yago        TiRGN as published and with a history of one step
# gdelt       TiRGN on the academic benchmark, measured on valid, and on the event files in hours, days and codes; only
#             when it is asked for, with a budget of its own
# yardstick   train_step.py: steps against eager PyTorch; needs a torch that sees the GPU
#
# DEVICE=cpu and EXTRA="--embedding-dim 8" try the script out without a GPU.
set -euo pipefail
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
budget=${3:-540}
device=${DEVICE:-gpu}
parts=${PARTS:-epochs icews14s yago yardstick}
seed=${SEED:-0}
python=${PYTHON:-python3}
read -ra extra <<<"${EXTRA:-}"
repo=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

left() { echo $((budget - SECONDS)); }
failed() { # name of a run, and why as JSON
    printf '{"run": "%s", "exit": %s}\n' "$1" "$2" | tee -a "$out/summary.jsonl" >&2
}
record() { # name, then a command that prints one JSON object
    local name=$1 code=0 seconds
    shift
    seconds=$(left)
    if [ "$seconds" -lt 5 ]; then
        code='"no time left"'
    else
        timeout -s TERM -k 10 "$seconds" "$@" >"$out/$name.json" 2>"$out/$name.log" || code=$?
    fi
    if [ "$code" = 0 ]; then
        printf '{"run": "%s", "result": %s}\n' "$name" "$(tr -d '\n' <"$out/$name.json")" >>"$out/summary.jsonl"
    else
        failed "$name" "$code"
        [ ! -f "$out/$name.log" ] || tail -n 5 "$out/$name.log" >&2
    fi
}
tkg() { # name of the run, then a command of the program
    local name=$1
    shift
    record "$name" "$python" -m geopol_tkg "$@"
}
train() { # name, dataset, preset or model, most seconds, more options; SPLIT is the one measured
    local name=$1 dataset=$2 preset=$3 seconds=$4 model how split=${SPLIT:-test}
    shift 4
    model=${preset%%-*}
    how=--preset
    [ "$preset" != "$model" ] || how=--model
    if [ "$seconds" -lt 10 ]; then
        failed "$name" '"no time left"'
        return
    fi
    tkg "train-$name" train "$dataset" "$how" "$preset" --precision auto --device "$device" --no-wandb --json \
        --seed "$seed" --max-time "$seconds" --model-dir "models/$name" --logdir runs --run-name "$name" "$@" "${extra[@]}"
    cp "models/$name/metrics.jsonl" "$out/$name-metrics.jsonl" 2>/dev/null || true
    [ ! -f "models/$name/${model}_best.json" ] ||
        tkg "$split-$name" eval "models/$name/${model}_best" --split "$split" --device "$device" --json
}

: >"$out/summary.jsonl"
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >"$out/machine.txt" 2>&1 || true
"$python" -c 'import jax; jax.print_environment_info()' >>"$out/machine.txt" 2>&1

for part in $parts; do
    case $part in
    epochs | icews14s | yardstick)
        [ -d icews14s ] || tkg ingest-icews14s ingest "$data/ICEWS14s" --out icews14s --quiet --json
        ;;
    esac
    case $part in
    epochs)
        for model in regcn tirgn; do
            for variant in "bf16 remat" "bf16 no-remat" "f32 remat" "f32 no-remat"; do
                read -r precision remat <<<"$variant"
                record "epoch-$model-$precision-$remat" "$python" "$repo/benchmarks/train_epoch.py" --dataset icews14s \
                    --model $model --precision "$precision" "--$remat" --epochs 2 --device "$device" "${extra[@]}"
            done
        done
        ;;
    icews14s)
        share=$(($(left) / 13))
        train counts icews14s counts-icews14s "$share" --patience 4
        train regcn icews14s regcn-icews14s $((2 * share))
        train tirgn icews14s tirgn-icews14s $((5 * share))
        train prior icews14s counts-icews14s "$share" --patience 4 --no-countries
        train regcn-counts icews14s regcn-counts-icews14s $((2 * share)) --count-prior models/prior/counts_best
        tkg test-average eval models/regcn-counts/regcn_best+models/prior/counts_best --device "$device" --json
        tkg test-recurrency eval recurrency --data icews14s --json
        ;;
    yago)
        tkg ingest-yago ingest "$data/YAGO" --out yago --quiet --json
        share=$(($(left) / 5))
        train yago-published yago tirgn-yago $((2 * share))
        train yago-window yago tirgn-yago $((2 * share)) --history-window 1 --batch-size 512 --schedule cosine --epochs 4
        ;;
    gdelt)
        hours=(--granularity 1h --num-days 0 --min-entity-count 10)
        tkg ingest-gdelt ingest "$data/GDELT" --out gdelt --quiet --json
        tkg ingest-hourly ingest "$data/events" "${hours[@]}" --out hourly --quiet --json
        tkg ingest-daily ingest "$data/events" --num-days 0 --out daily --quiet --json
        tkg ingest-code ingest "$data/events" "${hours[@]}" --entity code --out code --quiet --json
        share=$(($(left) / 10))
        SPLIT=valid train gdelt gdelt tirgn-gdelt $((3 * share)) # the benchmark's copy at hand has no whole test split
        for dataset in hourly daily code; do
            train "$dataset" "$dataset" tirgn $((2 * share)) --batch-size 1024 --epochs 10
        done
        ;;
    yardstick)
        for model in regcn tirgn; do
            record "steps-$model" "$python" "$repo/benchmarks/train_step.py" --dataset icews14s --model $model --steps 12 \
                --device "$device" "${extra[@]}"
        done
        ;;
    *)
        echo "gpu.sh: no part is called $part" >&2
        exit 2
        ;;
    esac
done
cat "$out/summary.jsonl"
