#!/usr/bin/env bash
# The quick tests with other versions of torch than those of the lanes, each in an environment of its own.
#
#   scripts/check_versions.sh                # torch 2.6.0
#   scripts/check_versions.sh 2.4.1 2.8.0    # others
#
# Needs Python 3.11. Each version downloads some GiB and takes five to ten minutes; environments are kept under
# .venvs/torch-VERSION and made again when the pins change. What does not depend on torch has the versions of the modern
# lane. Ends with one line for each version; exit status: 1 where tests failed.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lanes.sh

if [ $# -eq 0 ]; then
    set -- 2.6.0
fi
for version in "$@"; do
    if ! [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]]; then
        echo "usage: scripts/check_versions.sh [TORCH_VERSION...]; got '$version', expected 2.6.0 or its like" >&2
        exit 2
    fi
done
python=$(find_python 3.11) || { echo "no Python 3.11 found on PATH or in pyenv; install one" >&2 && exit 1; }

# What the tests import; torch brings its own further packages.
packages="lhotse sentencepiece soundfile urllib3 requests packaging tensorboard einops click rich pyyaml pydantic"
packages="$packages pytest hypothesis build wheel"

make_environment() { # VERSION
    local folder="$venvs/torch-$1" numpy=2.2.6 triton="" pins stamp
    # Wheels of torch before 2.3 were built for numpy 1.
    case $1 in 1.* | 2.[0-2].*) numpy=1.26.4 ;; esac
    # Kernels are tested in Triton's interpreter without a GPU; the 2.1.0 of torch 2.1 has none.
    case $1 in 1.* | 2.[0-5].*) triton=triton==3.2.0 ;; esac
    # setuptools and matplotlib as in the k2 lane: for an old torch, and for numpy 1.
    pins=("torch==$1" "numpy==$numpy" "setuptools==80.10.2" matplotlib==3.10.9)
    for package in $packages; do
        pins+=("$(grep -E "^$package==" scripts/requirements-modern.txt)") || return 1
    done
    stamp="$("$python" --version) ${pins[*]} $triton $(cksum <pyproject.toml) $repo"
    if [ "$(cat "$folder/.made" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    echo "[torch $1] making $folder"
    rm -rf "${folder:?}"
    "$python" -m venv "$folder" || return 1
    local pip=("$folder/bin/python" -m pip --disable-pip-version-check install -q)
    "${pip[@]}" "${pins[@]}" && "${pip[@]}" --no-deps --no-build-isolation -e . || return 1
    if [ -n "$triton" ]; then
        "${pip[@]}" --no-deps "$triton" || return 1
    fi
    printf '%s\n' "$stamp" >"$folder/.made"
}

failed=0
results=()
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
for version in "$@"; do
    if ! make_environment "$version"; then
        results+=("torch $version: its environment could not be made")
        failed=1
        continue
    fi
    python_of="$venvs/torch-$version/bin/python"
    log=$(mktemp)
    "$python_of" -m pytest -q -m "not slow" -o cache_dir=".pytest_cache/torch-$version" | tee "$log" || failed=1
    have=$("$python_of" -c "import importlib.metadata as m; print(*(m.version(n) for n in ('numpy', 'lhotse')))")
    results+=("torch $version, numpy ${have% *}, lhotse ${have#* }: $(tail -n 1 "$log")")
    rm -f "$log"
done
printf '%s\n' "" "${results[@]}"
exit $failed
