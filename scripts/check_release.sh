#!/usr/bin/env bash
# Would a release work? Builds the sdist and the wheel, checks what is in them, installs the wheel into a
# clean environment, and uses it from an empty folder: help, doctor, and the embedded recipe, which is
# trained dense and routed, checked and reported. Takes some minutes, most of them for installing torch.
#
#   scripts/check_release.sh [OUT]      default OUT: a new folder, removed at the end
#
# `twine check` runs where twine is installed. Nothing is uploaded.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lanes.sh
unset PYTHONPATH

if [ $# -gt 0 ]; then
    out=$1
    mkdir -p "$out"
    out=$(cd "$out" && pwd)
else
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
python=$(modern_python)
make_lane modern "$python"
builder=$(lane_python modern)

echo "1/5 sdist, and the wheel made from it -> $out/dist"
mkdir -p "$out/source"
# The working tree as git sees it: a build writes into its folder.
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$out/source"
"$builder" -m build --no-isolation --outdir "$out/dist" "$out/source" >"$out/build.log" 2>&1 || {
    tail -n 20 "$out/build.log"
    exit 1
}
wheel=$(echo "$out"/dist/*.whl)

echo "2/5 twine check"
if "$builder" -c "import twine" 2>/dev/null; then
    "$builder" -m twine check --strict "$out"/dist/*
else
    echo "NOT RUN: twine is not installed (pip install twine)"
fi

echo "3/5 the wheel in a clean environment -> $out/venv"
"$python" -m venv "$out/venv"
bin="$out/venv/bin"
"$bin/python" -m pip install -q --disable-pip-version-check \
    -c scripts/requirements-modern.txt "$wheel[recipe,plots]"

mkdir -p "$out/empty"
cd "$out/empty"
where=$("$bin/python" -c "import panda_icefall; print(panda_icefall.__file__)")
case $where in
"$out/venv"/*) ;;
*)
    echo "the package comes from $where, expected it from $out/venv"
    exit 1
    ;;
esac

echo "4/5 commands that need nothing"
"$bin/panda-icefall" --version
"$bin/panda-icefall" --help >/dev/null
[ "$("$bin/panda-icefall" bounded --list | wc -l)" -gt 0 ]
"$bin/panda-icefall" doctor || echo "the doctor found something to do (no k2 and no icefall here)"

echo "5/5 the embedded recipe, out of the wheel"
egs=$("$bin/python" -c "from panda_icefall.shipped import shipped_folder; print(shipped_folder('egs'))")
recipe="$egs/tones/ASR/pruned_transducer"
"$bin/python" "$recipe/prepare.py" --data-dir data --num-train 40 --num-dev 8 --num-test 8 --num-jobs 2
train() { # NAME VERB OPTIONS...
    local name=$1 verb=$2
    shift 2
    "$bin/panda-icefall" "$verb" "$recipe/train.py" --data-dir data --exp-dir "$name" \
        --max-duration 60 --num-epochs 100 "$@"
}
train dense run --panda-max-batches 4 --panda-memory-log dense/memory.jsonl
train routed run --use-panda 1 --panda-max-batches 4 --panda-memory-log routed/memory.jsonl
train check check --updates 1
"$bin/panda-icefall" report dense routed --out report
echo "the release works: $wheel"
