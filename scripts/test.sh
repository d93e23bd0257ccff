#!/usr/bin/env bash
# All tests from a bare checkout: linters and tests in the modern lane, tests in the k2 lane.
#
#   scripts/test.sh                    both lanes, side by side
#   scripts/test.sh --lane modern      one of them (modern or k2)
#   scripts/test.sh -- -m "not slow"   what follows -- goes to pytest: here the quick set
#
# Set ICEFALL_ROOT to an icefall checkout to run the tests against its recipes as well (k2 lane), and
# ESPNET_ROOT and WENET_ROOT for the losses of ESPnet and WeNet.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lanes.sh

lanes="modern k2"
while [ $# -gt 0 ]; do
    case $1 in
    --lane)
        lanes=${2:?--lane needs modern or k2}
        shift 2
        ;;
    --)
        shift
        break
        ;;
    *)
        echo "usage: scripts/test.sh [--lane modern|k2] [-- PYTEST_ARGUMENTS]" >&2
        exit 2
        ;;
    esac
done

failed=0
ready=""
for lane in $lanes; do
    case $lane in
    modern)
        python=$(modern_python) || exit 1
        make_lane modern "$python" || exit 1
        python=$(lane_python modern)
        echo "[modern lane] ruff, mypy"
        "$python" -m ruff check . && "$python" -m ruff format --check -q . && "$python" -m mypy || failed=1
        ;;
    k2)
        if ! python=$(find_python 3.10); then
            echo "[k2 lane] NOT RUN: no Python 3.10 found on PATH or in pyenv; the k2 1.23.4 wheel needs it"
            if [ "${CI:-}" = true ]; then exit 1; fi
            continue
        fi
        make_lane k2 "$python" || exit 1
        ;;
    *)
        echo "unknown lane '$lane': expected modern or k2" >&2
        exit 2
        ;;
    esac
    ready="$ready $lane"
done

run_tests() { # LANE PYTEST_ARGUMENTS...
    local lane=$1
    shift
    "$(lane_python "$lane")" -m pytest -q --durations=15 -o cache_dir=".pytest_cache/$lane" "$@"
}

# Two lanes run side by side: tests are mostly one thread, and only read the checkout. What the second
# one prints is shown when the first one is through.
read -r first second <<<"$ready"
if [ -n "$second" ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    log=$(mktemp)
    set -m # a job of its own: without, it would ignore the SIGINT that tests send
    run_tests "$second" "$@" >"$log" 2>&1 </dev/null &
    beside=$!
    set +m
    trap 'kill -- -$beside 2>/dev/null; rm -f "$log"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi
if [ -n "$first" ]; then
    echo "[$first lane] pytest"
    run_tests "$first" "$@" || failed=1
fi
if [ -n "$second" ]; then
    wait $beside || failed=1
    echo "[$second lane] pytest"
    cat "$log"
fi
exit $failed
