#!/usr/bin/env bash
# The main job on the embedded recipe, from a bare checkout: the same training twice, dense and with
# PANDA, then the contract check, a table and a figure. No k2, no icefall, no download of data.
#
#   scripts/demo.sh [OUT]      default OUT: out/demo
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lanes.sh

out=${1:-out/demo}
mkdir -p "$out"
out=$(cd "$out" && pwd)
recipe=egs/tones/ASR/pruned_transducer
steps=24

python=$(modern_python)
make_lane modern "$python"
bin="$venvs/modern/bin"

echo "1/5 synthetic speech and a BPE model of 4336 classes -> $out/data"
"$bin/python" "$recipe/prepare.py" --data-dir "$out/data" --vocab-size 4336 \
    --num-train 320 --num-dev 16 --num-test 16 --num-jobs 2

train() { # NAME VERB OPTIONS...: the recipe's train.py on that data; its log goes to a file
    local name=$1 verb=$2
    shift 2
    rm -rf "${out:?}/$name"
    mkdir -p "$out/$name"
    "$bin/panda-icefall" "$verb" "$recipe/train.py" --data-dir "$out/data" --vocab-size 4336 \
        --exp-dir "$out/$name" --max-duration 120 --num-epochs 100 --log-interval 6 "$@"
}

echo "2/5 train.py, dense: $steps batches"
train dense run --panda-max-batches $steps --panda-memory-log "$out/dense/memory.jsonl"
echo "3/5 train.py --use-panda 1: the same $steps batches"
train panda run --use-panda 1 --panda-max-batches $steps --panda-memory-log "$out/panda/memory.jsonl"
echo "4/5 contract: dense against routed on the recipe's own batches"
train check check --updates 2
echo "5/5 table and figure"
"$bin/python" scripts/plot_runs.py --dense "$out/dense/memory.jsonl" \
    --panda "$out/panda/memory.jsonl" --png "$out/demo.png"

cat <<TXT
figure       $out/demo.png
memory logs  $out/dense/memory.jsonl
             $out/panda/memory.jsonl
contract     $out/check/panda-check.json
next         $bin/panda-icefall report $out/dense $out/panda $out/check --out $out/report
             your own recipe: "Turn it on in an icefall recipe" in README.md
TXT
