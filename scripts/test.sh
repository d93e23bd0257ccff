#!/usr/bin/env bash
# All tests from a bare checkout: linters and tests in the modern lane, then tests in the k2 lane.
#
#   scripts/test.sh                 both lanes
#   scripts/test.sh --lane modern   one of them (modern or k2)
#   scripts/test.sh -- -k routing   what follows -- goes to pytest
#
# Set ICEFALL_ROOT to an icefall checkout to run the tests against its recipes as well (k2 lane).
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
        python=$(lane_python k2)
        ;;
    *)
        echo "unknown lane '$lane': expected modern or k2" >&2
        exit 2
        ;;
    esac
    echo "[$lane lane] pytest"
    "$python" -m pytest -q "$@" || failed=1
done
exit $failed
